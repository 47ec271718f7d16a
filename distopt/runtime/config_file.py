"""From a TOML file and ``--set`` overrides to a checked :class:`JobConfig`, and back.

Everything that is refused is a ConfigError that names the whole key, the value and what is allowed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from distopt.errors import ConfigError
from distopt.runtime import config_rules, config_schema, toml_text
from distopt.runtime.config import JobConfig

_KEY = re.compile(r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")
_DATES = (datetime.datetime, datetime.date, datetime.time)
"""Types that TOML has and JSON has not."""


def load_config(path: Path, overrides: Iterable[str] = ()) -> JobConfig:
    """Return the job in the TOML file ``path``, with ``overrides`` such as ``"strategy.replicas=4"`` laid over it.

    Raises: ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_config(text, overrides, source=str(path))


def parse_config(text: str, overrides: Iterable[str] = (), source: str = "configuration") -> JobConfig:
    """Return the job in the TOML document ``text``; ``source`` is what errors call it.

    Raises: ConfigError.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = f"at line {len(text.splitlines())}, the last"
        raise ConfigError(f"{source}: not valid TOML: {error}".replace("at end of document", last)) from error
    try:
        return _build_overridden(table, overrides)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def build_config(table: dict[str, Any]) -> JobConfig:
    """Return the job of a table of plain values.

    Raises: ConfigError.
    """
    config_schema.refuse_unknown_keys(table, JobConfig)
    try:
        config = msgspec.convert(table, JobConfig, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(config_schema.explain(error, table, JobConfig)) from error
    config_rules.check(config)
    return config


def override(config: JobConfig, overrides: Iterable[str]) -> JobConfig:
    """Return ``config`` with overrides such as ``"deployment.on=mpi"``.

    Raises: ConfigError.
    """
    return _build_overridden(to_table(config), overrides)


def to_table(config: JobConfig) -> dict[str, Any]:
    """Return ``config`` as plain values, without what is not set."""
    table: dict[str, Any] = _without_none(msgspec.to_builtins(config, builtin_types=_DATES))
    return table


def resolved_toml(config: JobConfig) -> str:
    """Return ``config`` as TOML, defaults written out; reading it gives an equal ``config``."""
    return toml_text.document(to_table(config))


def job_digest(config: JobConfig) -> str:
    """Return the SHA-256, in hexadecimal, of what decides the bits of the result.

    That is task, data, optimizer, aggregation, number of replicas and seed; not where the job runs, what is kept of it,
    or its name.
    """
    text = json.dumps(_mathematics(config), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def mathematics_toml(config: JobConfig) -> str:
    """Return what :func:`job_digest` is taken of, as TOML, for processes to compare line by line."""
    return toml_text.document(_mathematics(config))


def differences(ours: JobConfig, theirs: JobConfig) -> list[str]:
    """Return one line ``key: ours, theirs`` for each value of the mathematics in which two jobs differ."""
    left, right = _flat(_mathematics(ours)), _flat(_mathematics(theirs))
    absent = "not set"
    return [f"{k}: {left.get(k, absent)}, {right.get(k, absent)}" for k in left | right if left.get(k) != right.get(k)]


def _mathematics(config: JobConfig) -> dict[str, Any]:
    table = to_table(config)
    return {key: table[key] for key in ("seed", "task", "data", "optimizer", "aggregation", "strategy")}


def _build_overridden(table: dict[str, Any], overrides: Iterable[str]) -> JobConfig:
    for text in overrides:
        key, value = _parse_override(text)
        _put(table, key, value)
    return build_config(table)


def _parse_override(text: str) -> tuple[str, Any]:
    """Split ``key=value``; the value is TOML, or else a bare string."""
    key, equals, written = text.partition("=")
    key, written = key.strip(), written.strip()
    if not equals or not _KEY.match(key):
        raise ConfigError(f"--set {text!r} is refused; allowed: KEY=VALUE, for example strategy.replicas=4")
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return key, written
    return key, parsed["value"] if parsed.keys() == {"value"} else written


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"unknown key {key}: {parent} = {toml_text.inline(inner)} is a value, not a table")
        table = inner
    table[last] = value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": toml_text.inline(value)}
        )
    return flat
