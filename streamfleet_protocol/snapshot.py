"""Freeze a machine's whole state to one hashable value, and thaw it to an equal, independent machine.

Works on any graph of plain objects, lists, deques, dicts and tuples; what is immutable is shared. An object reached
twice is frozen once and referred to by its number, so shared and circular references keep their shape. The order of
dicts is part of the state, since the order of effects may follow it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

_LEAVES = (int, str, bytes, float, bool, type(None), Enum)


class Frozen(tuple[Any, ...]):
    """One frozen object: its class, then its contents. A class of its own, so that data is never taken for it."""

    __slots__ = ()


class Reference(tuple[int]):
    """The number of an object that was frozen earlier."""

    __slots__ = ()


def freeze(value: object) -> object:
    """A hashable value that stands for `value`; equal states give equal values."""
    return _freeze(value, {}, [])


def thaw(frozen: object) -> Any:
    """A new object with the state that `freeze` saw."""
    return _thaw(frozen, [])


def _freeze(value: object, numbers: dict[int, int], keep: list[object]) -> object:
    kind = type(value)
    if _is_immutable(value):
        return value
    if isinstance(value, tuple):
        return Frozen((kind, *(_freeze(item, numbers, keep) for item in value)))
    if id(value) in numbers:
        return Reference((numbers[id(value)],))
    numbers[id(value)] = len(numbers)
    keep.append(value)
    if kind is list or kind is deque:
        return Frozen((kind, *(_freeze(item, numbers, keep) for item in value)))  # type: ignore[attr-defined]
    if kind is dict:
        pairs = value.items()  # type: ignore[attr-defined]
        return Frozen((dict, *((_freeze(key, numbers, keep), _freeze(item, numbers, keep)) for key, item in pairs)))
    if kind is set or kind is frozenset:
        return Frozen((kind, *sorted(value)))  # type: ignore[call-overload]
    return Frozen((kind, *((name, _freeze(getattr(value, name), numbers, keep)) for name in _attributes(value))))


def _thaw(frozen: object, objects: list[object]) -> Any:
    if type(frozen) is Reference:
        return objects[frozen[0]]
    if type(frozen) is not Frozen:
        return frozen
    kind, *contents = frozen
    if issubclass(kind, tuple):
        # Of named tuples, too.
        return tuple.__new__(kind, [_thaw(item, objects) for item in contents])
    if kind is list or kind is deque:
        sequence: Any = kind()
        objects.append(sequence)
        sequence.extend(_thaw(item, objects) for item in contents)
        return sequence
    if kind is dict:
        mapping: dict[object, object] = {}
        objects.append(mapping)
        for key, item in contents:
            name = _thaw(key, objects)
            mapping[name] = _thaw(item, objects)
        return mapping
    if kind is set or kind is frozenset:
        collection = kind(contents)
        objects.append(collection)
        return collection
    instance = kind.__new__(kind)
    objects.append(instance)
    for name, item in contents:
        object.__setattr__(instance, name, _thaw(item, objects))
    return instance


def _attributes(value: object) -> list[str]:
    """Names of all attributes, in the order of their definition."""
    names: list[str] = []
    for kind in reversed(type(value).__mro__):
        names.extend(name for name in getattr(kind, "__slots__", ()) if hasattr(value, name))
    names.extend(getattr(value, "__dict__", ()))
    return names


def _is_frozen_dataclass(kind: type) -> bool:
    return is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _is_immutable(value: object) -> bool:
    """Whether neither the value nor what it refers to can change."""
    if isinstance(value, _LEAVES):
        return True
    if isinstance(value, tuple):
        return all(_is_immutable(item) for item in value)
    return _is_frozen_dataclass(type(value)) and all(_is_immutable(getattr(value, name)) for name in _attributes(value))
