"""What the structs of a configuration allow, in words: for errors that name key, value, range and nearest key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from distopt.errors import ConfigError
from distopt.runtime.toml_text import inline

_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`")
_PART = re.compile(r"\[(?P<index>\d+)\]|(?P<name>[^.\[\]]+)")

_MOVED = {"optimizer.gradient_aggregator": "aggregation.name"}
"""Keys of earlier versions, and what they are called now."""


def refuse_unknown_keys(table: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    """Return if every key of ``table``, at any depth, is a field of ``struct``.

    Raises: ConfigError with the key's whole dotted name, the nearest known key, and all that are allowed there.
    """
    schema = inspect.type_info(struct)
    everything = list(_known_keys(schema, ""))
    for key, allowed in _unknown_keys(schema, table, ""):
        near = _MOVED.get(key) or _nearest(key, everything)
        hint = f"; did you mean {near}?" if near else ""
        raise ConfigError(f"unknown key {key}{hint} (allowed here: {', '.join(sorted(allowed))})")


def explain(error: msgspec.ValidationError, table: dict[str, Any], struct: type[msgspec.Struct]) -> str:
    """Return the message for ``error`` of converting ``table`` to ``struct``: key, value, what is allowed."""
    message = str(error)
    at = _AT.search(message)
    path: list[str | int] = [] if at is None else _parts(at["path"])
    if missing := _MISSING.match(message):
        path.append(missing["field"])
        return f"missing key {_dotted(path)}; it needs {_allowed_at(inspect.type_info(struct), table, path)}"
    value: Any = table
    for part in path:
        value = value[part]
    allowed = _allowed_at(inspect.type_info(struct), table, path)
    choices = re.findall(r'"([^"]+)"', allowed)
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f"{_dotted(path)} = {inline(value)} is refused{hint}; allowed: {allowed}"


def _unknown_keys(schema: inspect.Type, value: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    fields = _fields(schema, value)
    if fields is None or not isinstance(value, dict):
        return
    for key, item in value.items():
        if key not in fields:
            yield f"{prefix}{key}", list(fields)
        else:
            yield from _unknown_keys(fields[key], item, f"{prefix}{key}.")


def _fields(schema: inspect.Type, value: Any) -> dict[str, inspect.Type] | None:
    """Return the fields of the struct that ``value`` is meant to be, or None if that is not a struct or not known."""
    schema = _plain(schema)
    if isinstance(schema, inspect.StructType):
        fields = {field.encode_name: field.type for field in schema.fields}
        if schema.tag_field is not None:
            fields[schema.tag_field] = (
                inspect.LiteralType((schema.tag,)) if isinstance(schema.tag, str | int) else schema
            )
        return fields
    if isinstance(schema, inspect.UnionType) and isinstance(value, dict):
        structs = [option for option in schema.types if isinstance(option, inspect.StructType)]
        for option in structs:
            if value.get(option.tag_field) == option.tag:
                return _fields(option, value)
        if structs and structs[0].tag_field is not None:
            names = tuple(option.tag for option in structs if isinstance(option.tag, str))
            # The tag is absent or wrong: only the tag can be judged, so every key of every option is let through.
            merged = {name: field for option in structs for name, field in (_fields(option, {}) or {}).items()}
            return merged | {structs[0].tag_field: inspect.LiteralType(names)}
    return None


def _known_keys(schema: inspect.Type, prefix: str) -> Iterator[str]:
    schema = _plain(schema)
    if isinstance(schema, inspect.UnionType):
        for option in schema.types:
            yield from _known_keys(option, prefix)
    for key, field in (_fields(schema, None) or {}).items():
        yield f"{prefix}{key}"
        yield from _known_keys(field, f"{prefix}{key}.")


def _nearest(key: str, known: list[str]) -> str | None:
    """Return the known key that looks most like ``key``: by its last part anywhere, or by its whole name."""
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    section = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    for candidates in (siblings, known):
        if near := difflib.get_close_matches(key, candidates, n=1, cutoff=0.75):
            return near[0]
    if same:
        return same[0]
    by_last = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.7)
    return by_last[close[0]] if close else None


def _allowed_at(schema: inspect.Type, value: Any, path: list[str | int]) -> str:
    for part in path:
        if isinstance(part, int):
            schema = _plain(schema)
            if isinstance(schema, inspect.VarTupleType | inspect.ListType):
                schema = schema.item_type
        else:
            schema = (_fields(schema, value) or {}).get(part, inspect.AnyType())
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            value = None
    return describe(schema)


def describe(schema: inspect.Type) -> str:
    """Return in words what values a type allows, for example ``an integer >= 1``."""
    match schema:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return str(extra["description"]) if extra and "description" in extra else describe(inner)
        case inspect.IntType():
            return "an integer" + _range(schema)
        case inspect.FloatType():
            return "a number" + _range(schema)
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "a string" if not schema.min_length else "a string that is not empty"
        case inspect.LiteralType(values=values):
            return " or ".join(inline(value) for value in values)
        case inspect.VarTupleType(item_type=item, min_length=least):
            return ("a list" if not least else "a list that is not empty") + f", each item {describe(item)}"
        case inspect.UnionType(types=options):
            return " or ".join(dict.fromkeys(describe(o) for o in options if not isinstance(o, inspect.NoneType)))
        case inspect.StructType() | inspect.DictType():
            return "a table"
    return "any value"


def _range(schema: inspect.IntType | inspect.FloatType) -> str:
    bounds = ((">", schema.gt), (">=", schema.ge), ("<", schema.lt), ("<=", schema.le))
    words = [f"{sign} {bound}" for sign, bound in bounds if bound is not None]
    return " " + " and ".join(words) if words else ""


def _plain(schema: inspect.Type) -> inspect.Type:
    while isinstance(schema, inspect.Metadata):
        schema = schema.type
    return schema


def _parts(path: str) -> list[str | int]:
    return [int(part["index"]) if part["index"] else part["name"] for part in _PART.finditer(path)]


def _dotted(path: list[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the configuration"
