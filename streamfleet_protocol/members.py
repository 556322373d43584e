"""Members of the delayed set: a task entry's fields, packed with their lengths as netstrings."""

from __future__ import annotations

from .errors import DecodeError
from .wire import Fields, raw_field


def pack_member(fields: Fields) -> bytes:
    """A task entry as a member of the delayed set: netstrings, the task id and the retries first.

    Beginning with these two makes it unique, however often a reply is lost and the command sent again.
    """
    parts = (raw_field(fields, b"id"), raw_field(fields, b"retries"), *fields)
    return b"".join([b"%d:%b," % (len(part), part) for part in parts])


def unpack_member(member: bytes) -> Fields:
    """The fields in a member of the delayed set. Raises DecodeError."""
    parts: list[bytes] = []
    at = 0
    while at < len(member):
        part, at = _netstring(member, at)
        parts.append(part)
    if len(parts) < 4 or len(parts) % 2:
        raise DecodeError(f"a delayed task has {len(parts)} parts; an even number of at least 4 was expected")
    return tuple(parts[2:])


def member_task_id(member: bytes) -> bytes:
    """The raw task id of a member of the delayed set; empty where it cannot be read. Never raises."""
    try:
        return _netstring(member, 0)[0]
    except DecodeError:
        return b""


def _netstring(packed: bytes, at: int) -> tuple[bytes, int]:
    colon = packed.find(b":", at, at + 12)
    digits = packed[at:colon]
    if colon < 0 or not digits.isdigit():
        raise DecodeError(f"a delayed task is damaged at byte {at}: no length")
    end = colon + 1 + int(digits)
    if packed[end : end + 1] != b",":
        raise DecodeError(f"a delayed task is damaged at byte {at}: its part does not end where its length says")
    return packed[colon + 1 : end], end + 1
