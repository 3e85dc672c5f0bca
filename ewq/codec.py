"""Frozen dataclasses as JSON objects, and back, checked against their annotations."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
NAMED = 3
SHOWN_CHARACTERS = 60
KINDS: Mapping[type, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
}


class CodecError(ValueError):
    """JSON that is not what the dataclass says; the message names the key."""


def encode(value: Any) -> Any:
    """Dataclasses, enums, mappings and sequences as plain JSON; NaN, which JSON lacks, as null."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [encode(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def decode(kind: type[T], data: Any, where: str = "") -> T:
    """A dataclass from parsed JSON, else a CodecError; ``where`` names it there.

    Annotations may be ``str``, ``bool``, ``int``, ``float``, enums, dataclasses, ``X | None``,
    ``Mapping[str, X]`` and tuples; others pass unchecked. Fields with defaults may be missing.
    """
    if not isinstance(data, Mapping):
        raise _wrong(where, "keys and values", data)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    needed = {n for n, f in known.items() if f.default is f.default_factory is MISSING}
    _no_keys(where, "lacks", needed - data.keys())
    _no_keys(where, "has unknown", data.keys() - known.keys())
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], data[name], _at(where, name)) for name in data})


def _no_keys(where: str, what: str, found: Iterable[str]) -> None:
    if names := sorted(found):
        raise CodecError(f"{where or 'it'} {what} keys: {', '.join(names[:NAMED])}")


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if NoneType in inner:
        others = [kind for kind in inner if kind is not NoneType]
        return value if value is None or len(others) > 1 else _value(others[0], value, where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, "keys and values", value)
        return {key: _value(inner[1], entry, _at(where, key)) for key, entry in value.items()}
    if not isinstance(hint, type):
        return value
    if is_dataclass(hint):
        return decode(hint, value, where)
    return _scalar(hint, value, where)


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong(where, "a list", value)
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
    if len(kinds) != len(value):
        raise _wrong(where, f"{len(kinds)} entries", value)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_value(kind, entry, f"{where}[{index}]") for index, (kind, entry) in pairs)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if issubclass(hint, Enum):
        known = {entry.value: entry for entry in hint}
        if not isinstance(value, str) or value not in known:
            raise _wrong(where, f"one of {', '.join(known)}", value)
        return known[value]
    what, allowed = KINDS.get(hint, ("", (object,)))
    boolean = isinstance(value, bool) and hint in (int, float)
    infinite = isinstance(value, float) and not math.isfinite(value)
    if not isinstance(value, allowed) or boolean or infinite:
        raise _wrong(where, what, value)
    return float(value) if isinstance(value, int) and hint is float else value


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _wrong(where: str, expected: str, found: object) -> CodecError:
    shown = repr(found)
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}…"
    return CodecError(f"{where or 'it'}: expected {expected}, found {shown}")
