"""How far a group is behind, as servers guess it: `entries-read` and `lag` of XINFO GROUPS.

The guess is often wrong or missing, differently by version; the model repeats it so that nobody trusts it.
"""

from __future__ import annotations

from .streams import UNKNOWN, Group, Stream
from .versions import Version


def note_delivery(stream: Stream, group: Group, entry_id: int, version: Version) -> None:
    """`entries_read` when the group's last id moves on to `entry_id`; to be called before it does."""
    if version.strict_tombstones:
        counted = group.last_id >= stream.ids[0] and not _deleted_after(stream, group.last_id, version)
    else:
        counted = not _deleted_after(stream, entry_id, version)
    if group.entries_read != UNKNOWN and counted:
        group.entries_read += 1
    elif stream.added:
        group.entries_read = _distance(stream, entry_id, version)


def lag(stream: Stream, group: Group, version: Version) -> int | None:
    """How many entries the group has still to get; None where the server cannot say."""
    if not stream.added:
        return 0
    if version.lag_by_content:
        if not stream.ids:
            return 0
        if group.last_id < stream.ids[0] and stream.max_deleted < stream.ids[0]:
            return len(stream.ids)
    if group.entries_read != UNKNOWN and not _deleted_after(stream, group.last_id, version):
        return stream.added - group.entries_read
    read = _distance(stream, group.last_id, version)
    return None if read == UNKNOWN else stream.added - read


def _deleted_after(stream: Stream, start: int, version: Version) -> bool:
    """Whether XDEL removed something from `start` on, as far as one remembered id tells."""
    if not stream.ids or not stream.max_deleted:
        return False
    if not version.strict_tombstones and stream.ids[0] > stream.max_deleted:
        return False
    return start <= stream.max_deleted


def _distance(stream: Stream, entry_id: int, version: Version) -> int:
    """How many entries were ever added up to that id, or UNKNOWN."""
    if not stream.added:
        return 0
    if not stream.ids and entry_id <= stream.last_id:
        return stream.added
    if version.strict_tombstones and entry_id and entry_id < stream.max_deleted:
        return UNKNOWN
    if entry_id == stream.last_id:
        return stream.added
    if entry_id > stream.last_id:
        return UNKNOWN
    first = stream.ids[0]
    if not stream.max_deleted or stream.max_deleted < first:
        if entry_id < first:
            return stream.added - len(stream.ids)
        if entry_id == first:
            return stream.added - len(stream.ids) + 1
    return UNKNOWN
