"""What processes of one job must agree on."""

from __future__ import annotations

import msgspec
import pytest

from distopt.protocol.manifest import (
    Manifest,
    VariableSpec,
    content_diff,
    differences,
    numeric_differences,
    numerics_diff,
)

JOB = """
seed = 1
[optimizer]
name = "sgd"
learning_rate = 0.1
"""
REFERENCE = Manifest(
    job=JOB,
    variables=(VariableSpec("w:0", (64, 10), "float32"), VariableSpec("b:0", (10,), "float32")),
    optimizer={"name": "SGD"},
    hooks=("clip",),
    versions={"distopt": "1"},
    numerics={"numpy": "2.0", "blas": "a"},
)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"job": JOB.replace("0.1", "0.2")}, "configuration optimizer.learning_rate: 0.1 against 0.2"),
        ({"job": "seed = 1"}, 'configuration optimizer.name: "sgd" against (absent)'),
        ({"variables": REFERENCE.variables[:1]}, "variable 1: b:0 float32[10] against (absent)"),
        ({"variables": REFERENCE.variables[::-1]}, "variable 0: w:0 float32[64, 10] against b:0 float32[10]"),
        ({"optimizer": {"name": "Adam"}}, "optimizer name: SGD against Adam"),
        ({"hooks": ("clip", "mean")}, "hook 1: (absent) against mean"),
        ({"versions": {"distopt": "2"}}, "version of distopt: 1 against 2"),
    ],
)
def test_difference_names_what_and_both_values(changed: dict[str, object], line: str) -> None:
    assert line in differences(REFERENCE, msgspec.structs.replace(REFERENCE, **changed))


def test_equal_manifests_have_no_differences() -> None:
    assert differences(REFERENCE, msgspec.structs.replace(REFERENCE, numerics={})) == []
    assert numeric_differences(REFERENCE, REFERENCE) == []


def test_numeric_difference_names_key_and_both_values() -> None:
    other = msgspec.structs.replace(REFERENCE, numerics={"numpy": "2.0", "blas": "b", "simd": "avx2"})
    assert numeric_differences(REFERENCE, other) == [
        "numerics blas: a against b",
        "numerics simd: (absent) against avx2",
    ]


def test_many_differences_are_counted_instead_of_listed() -> None:
    lines = differences(Manifest(job="\n".join(f"k{i} = 1" for i in range(20))), Manifest())
    assert len(lines) == 9
    assert lines[-1] == "and 12 more differences"


def name(rank: int) -> str:
    return f"rank {rank}"


@pytest.mark.parametrize(
    ("values", "odd", "whose"),
    [
        ("aab", (2,), "the value of 2 of 3 first"),
        ("baa", (0,), "the value of 2 of 3 first"),
        ("ab", (1,), "rank 0's value first"),
        ("abc", (1, 2), "rank 0's value first"),
        ("bcaaa", (0, 1), "the value of 3 of 5 first"),
    ],
)
def test_diff_names_those_outside_of_the_largest_group(values: str, odd: tuple[int, ...], whose: str) -> None:
    for diff, manifests, what in (
        (content_diff, [Manifest(optimizer={"name": value}) for value in values], "optimizer name"),
        (numerics_diff, [Manifest(numerics={"blas": value}) for value in values], "numerics blas"),
    ):
        found = diff(dict(enumerate(manifests)), name)
        assert found is not None
        assert found.odd == odd
        for rank in odd:
            assert f"rank {rank} " in found.text
            assert f"({whose}): {what}: {'a'} against {values[rank]}" in found.text


def test_processes_that_agree_have_no_diff() -> None:
    for manifests in ({}, dict.fromkeys(range(3), REFERENCE)):
        assert content_diff(manifests, name) is None
        assert numerics_diff(manifests, name) is None
    assert content_diff({0: REFERENCE, 1: msgspec.structs.replace(REFERENCE, numerics={})}, name) is None


def test_default_dictionaries_are_not_shared() -> None:
    assert Manifest().numerics is not Manifest().numerics
