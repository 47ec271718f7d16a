"""What every process of a job must agree on before step 0, compared without I/O."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Generic, NamedTuple, TypeVar

import msgspec

from distopt.agreement import odd_ones

_ABSENT = "(absent)"
_MOST_LINES = 8

Key = TypeVar("Key")


class VariableSpec(msgspec.Struct, frozen=True, array_like=True):
    """One variable, by what its bytes mean."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A job as one process built it.

    ``job``: the resolved configuration, one ``key = value`` a line. ``variables``: in creation order. ``optimizer``:
    its configuration. ``hooks``: names of registered functions, in order. ``versions``: of what decides the protocol
    and the state. ``numerics``: the fingerprint of what decides bits.
    """

    job: str = ""
    variables: tuple[VariableSpec, ...] = ()
    optimizer: dict[str, str] = {}
    hooks: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    numerics: dict[str, str] = {}


def differences(reference: Manifest, other: Manifest) -> list[str]:
    """Return one readable line for each difference but those in ``numerics``; empty where both agree.

    Each line names what differs, the reference's value, then the other's.
    """
    lines = [
        *_lines("configuration", _settings(reference.job), _settings(other.job)),
        *_sequence_lines("variable", reference.variables, other.variables),
        *_lines("optimizer", reference.optimizer, other.optimizer),
        *_sequence_lines("hook", reference.hooks, other.hooks),
        *_lines("version of", reference.versions, other.versions),
    ]
    return _shortened(lines)


def numeric_differences(reference: Manifest, other: Manifest) -> list[str]:
    """Return one readable line for each difference in the numerics fingerprint."""
    return _shortened(list(_lines("numerics", reference.numerics, other.numerics)))


class Diff(NamedTuple, Generic[Key]):
    """How some processes differ from most; ``odd`` are those."""

    odd: tuple[Key, ...]
    text: str


def content_diff(manifests: Mapping[Key, Manifest], name: Callable[[Key], str]) -> Diff[Key] | None:
    """Return how processes differ in anything but numerics from the largest group that agrees; None where none does.

    Among groups of one size the one that appears first in ``manifests`` is the reference. ``name``: of a process.
    """
    contents = {
        key: msgspec.json.encode(msgspec.structs.replace(manifest, numerics={}), order="deterministic")
        for key, manifest in manifests.items()
    }
    return _diff(manifests, contents, name, differences, "does not belong to this job")


def numerics_diff(manifests: Mapping[Key, Manifest], name: Callable[[Key], str]) -> Diff[Key] | None:
    """Return the same of the numerics fingerprints."""
    contents = {key: tuple(sorted(manifest.numerics.items())) for key, manifest in manifests.items()}
    return _diff(manifests, contents, name, numeric_differences, "computes with other numerics than the others")


def _diff(
    manifests: Mapping[Key, Manifest],
    contents: Mapping[Key, Hashable],
    name: Callable[[Key], str],
    compare: Callable[[Manifest, Manifest], list[str]],
    verdict: str,
) -> Diff[Key] | None:
    reference, odd = odd_ones(contents)
    if reference is None or not odd:
        return None
    agree = len(manifests) - len(odd)
    whose = f"{name(reference)}'s value first" if agree == 1 else f"the value of {agree} of {len(manifests)} first"
    texts = [
        f"{name(key)} {verdict} ({whose}): " + "; ".join(compare(manifests[reference], manifests[key])) for key in odd
    ]
    return Diff(odd, "; ".join(texts))


def _settings(job: str) -> dict[str, str]:
    """Return the configuration's lines by key; lines without ``=`` are keys of their own."""
    settings: dict[str, str] = {}
    section = ""
    for line in job.splitlines():
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            section = stripped.strip("[]") + "."
        elif stripped:
            key, _, value = stripped.partition("=")
            settings[section + key.strip()] = value.strip()
    return settings


def _lines(what: str, reference: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    for key in sorted({*reference, *other}):
        ours, theirs = reference.get(key, _ABSENT), other.get(key, _ABSENT)
        if ours != theirs:
            yield f"{what} {key}: {ours} against {theirs}"


def _sequence_lines(what: str, reference: Sequence[object], other: Sequence[object]) -> Iterator[str]:
    for position, (ours, theirs) in enumerate(zip_longest(reference, other, fillvalue=_ABSENT)):
        if ours != theirs:
            yield f"{what} {position}: {ours} against {theirs}"


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more differences"]
