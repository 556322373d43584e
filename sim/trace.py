"""What happened in a run, event by event, as text that is the same in every process and on every Python.

The built-in `repr` is no such text: that of an Enum differs between versions of Python, that of a str depends on the
Unicode tables, and objects without one show their address. So values are spelled here, and what cannot be spelled the
same everywhere is refused.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import zip_longest
from operator import attrgetter
from typing import Any, NamedTuple, TextIO

BYTES_SHOWN = 120
"""A longer value is cut, and told by its length and checksum: payloads may have megabytes."""


class Entry(NamedTuple):
    """One event."""

    at_ms: int
    who: str
    what: str
    payload: object


class Difference(NamedTuple):
    """Where two traces part. A trace that has ended by then shows an empty line."""

    position: int
    first: str
    second: str

    def __str__(self) -> str:
        return f"event {self.position:,}\n  one:   {self.first or '(ended)'}\n  other: {self.second or '(ended)'}"


class Trace:
    """The events of one run.

    By default they are kept as they are, and become text when it is asked for: a payload must not be changed after it
    was added. With `out`, each event is written there at once as one line, and nothing is kept.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.entries: list[Entry] = []
        """Empty where the lines go to a file."""
        self._out = out
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, now_ms: int, who: str, what: str, payload: object) -> None:
        """One more event."""
        self._count += 1
        entry = Entry(now_ms, who, what, payload)
        if self._out is None:
            self.entries.append(entry)
            return
        text = line(entry)
        self._out.write(text + "\n")
        self._hash.update(text.encode() + b"\n")

    def lines(self) -> Iterator[str]:
        """The events that are kept, as text."""
        return map(line, self.entries)

    def digest(self) -> str:
        """SHA-256 over all lines, each with its newline."""
        for entry in self.entries[self._hashed :]:
            self._hash.update(line(entry).encode() + b"\n")
        self._hashed = len(self.entries)
        return self._hash.hexdigest()


def line(entry: Entry) -> str:
    """`time who what payload`, in one line."""
    return f"{entry.at_ms} {entry.who} {entry.what} {spell(entry.payload)}"


def first_difference(first: Iterable[str], second: Iterable[str]) -> Difference | None:
    """The first line in which two traces differ; None where they are equal."""
    for position, (one, other) in enumerate(zip_longest(first, second, fillvalue="")):
        if one != other:
            return Difference(position, one, other)
    return None


def spell(value: object) -> str:
    """A value as text. Raises TypeError for what has no text that is the same everywhere, sets among it."""
    kind = type(value)
    spelled = _SPELLING.get(kind)
    if spelled is None:
        spelled = _SPELLING[kind] = _spelling(kind)
    return spelled(value)


def _spelling(kind: type[Any]) -> Callable[[Any], str]:
    """How values of a class are spelled. Asked once for each class: all further values find it in the table."""
    if issubclass(kind, Enum):
        return _enum
    if issubclass(kind, BaseException):
        return lambda value: f"{kind.__name__}({_items(value.args)})"
    if is_dataclass(kind):
        return _record(kind.__name__, tuple(field.name for field in fields(kind)))
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _record(kind.__name__, kind._fields)
    for base in (bytes, bool, int, float, str, tuple, list, dict):
        if issubclass(kind, base):
            return _SPELLING[base]
    raise TypeError(f"a trace cannot hold a {kind.__name__}: its text would not be the same in another process")


def _record(name: str, names: tuple[str, ...]) -> Callable[[Any], str]:
    parts = [(f"{field}=", attrgetter(field)) for field in names]
    return lambda value: f"{name}({', '.join([start + spell(get(value)) for start, get in parts])})"


def _enum(value: Enum) -> str:
    return f"{type(value).__name__}.{value.name}"


def _bytes(value: bytes) -> str:
    if len(value) <= BYTES_SHOWN:
        return repr(bytes(value))
    return f"{bytes(value[:BYTES_SHOWN])!r}...({len(value)} bytes, crc {zlib.crc32(value):08x})"


def _str(value: str) -> str:
    # Not repr(), which knows more printable characters on each newer Python.
    if len(value) <= BYTES_SHOWN:
        return ascii(value)
    return f"{value[:BYTES_SHOWN]!a}...({len(value)} characters, crc {zlib.crc32(value.encode()):08x})"


def _items(values: Iterable[object]) -> str:
    return ", ".join([spell(value) for value in values])


_SPELLING: dict[type, Callable[[Any], str]] = {
    type(None): repr,
    bool: lambda value: "True" if value else "False",
    int: lambda value: int.__repr__(value),
    float: lambda value: float.__repr__(value),
    bytes: _bytes,
    str: _str,
    tuple: lambda value: f"({_items(value)})",
    list: lambda value: f"[{_items(value)}]",
    dict: lambda value: f"{{{', '.join([f'{spell(key)}: {spell(item)}' for key, item in value.items()])}}}",
}
