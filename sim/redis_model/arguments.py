"""Arguments of commands: whole numbers, scores, stream ids, both ways.

A stream id is one int, `ms << 64 | seq`: it compares, hashes and bisects faster than a pair.
"""

from __future__ import annotations

import math
from functools import lru_cache

from .errors import INVALID_ID, NOT_A_FLOAT, NOT_AN_INTEGER, CommandError
from .versions import Version

SEQ_MASK = (1 << 64) - 1
MAX_ID = (1 << 128) - 1
NEW_ENTRIES = MAX_ID
"""Stands for `>`, as in the servers' own code."""

_MAX_INT = (1 << 63) - 1


def to_bytes(argument: bytes | str | int) -> bytes:
    """The argument as it goes over the wire."""
    if isinstance(argument, bytes):
        return argument
    return argument.encode() if isinstance(argument, str) else b"%d" % argument


def parse_int(text: bytes, error: str = NOT_AN_INTEGER) -> int:
    """A signed 64-bit number in the one spelling that servers take: no `+`, no leading zero, no space."""
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 19 or (digits[:1] == b"0" and text != b"0"):
        raise CommandError(error)
    value = int(text)
    if not -_MAX_INT - 1 <= value <= _MAX_INT:
        raise CommandError(error)
    return value


def parse_float(text: bytes, error: str = NOT_A_FLOAT) -> float:
    """A score."""
    try:
        value = float(text)
    except ValueError:
        raise CommandError(error) from None
    if math.isnan(value) or b"_" in text or text != text.strip():
        raise CommandError(error)
    return value


def format_float(value: float, version: Version) -> bytes:
    """A score as the version writes it. Not exact for whole numbers above 17 digits."""
    if version.shortest_floats and abs(value) <= 1e17 and value == math.floor(value):
        return b"%d" % int(value)
    return (repr(value) if version.shortest_floats else f"{value:.17g}").encode()


def format_id(entry_id: int) -> bytes:
    """`ms-seq`."""
    return b"%d-%d" % (entry_id >> 64, entry_id & SEQ_MASK)


@lru_cache(maxsize=4096)
def parse_id(text: bytes, missing_seq: int = 0) -> int:
    """An id that names one entry: `ms-seq`, or `ms` alone with the sequence `missing_seq`."""
    ms_text, dash, seq_text = text.partition(b"-")
    if not ms_text.isdigit() or (dash and not seq_text.isdigit()):
        raise CommandError(INVALID_ID)
    ms = int(ms_text)
    seq = int(seq_text) if dash else missing_seq
    if ms > SEQ_MASK or seq > SEQ_MASK:
        raise CommandError(INVALID_ID)
    return ms << 64 | seq


def parse_range_start(text: bytes) -> int:
    """The lowest id of a range: `-`, `+`, an id, or `(` and an id."""
    if text[:1] == b"(" and len(text) > 1:
        entry_id = parse_id(text[1:])
        if entry_id == MAX_ID:
            raise CommandError("ERR invalid start ID for the interval")
        return entry_id + 1
    return _parse_bound(text, 0)


def parse_range_end(text: bytes) -> int:
    """The highest id of a range."""
    if text[:1] == b"(" and len(text) > 1:
        entry_id = parse_id(text[1:], SEQ_MASK)
        if entry_id == 0:
            raise CommandError("ERR invalid end ID for the interval")
        return entry_id - 1
    return _parse_bound(text, SEQ_MASK)


def _parse_bound(text: bytes, missing_seq: int) -> int:
    if text == b"-":
        return 0
    if text == b"+":
        return MAX_ID
    return parse_id(text, missing_seq)
