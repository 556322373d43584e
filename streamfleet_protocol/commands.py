"""The Redis commands that the protocol uses, as argument vectors; each command is spelled in this file only.

A command is a flat tuple of bytes, text and whole numbers. Drivers pack it, the simulator executes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .keys import RECEIVER_GROUP, SERVER_GROUP
from .wire import Fields

Argument = bytes | str | int
Command = tuple[Argument, ...]

MULTI: Command = (b"MULTI",)
EXEC: Command = (b"EXEC",)
UNWATCH: Command = (b"UNWATCH",)
TIME: Command = (b"TIME",)
CLIENT_ID: Command = (b"CLIENT", b"ID")
INFO_MEMORY: Command = (b"INFO", b"memory")

TEN_YEARS_MS = 10 * 365 * 24 * 3600 * 1000
ONE_DAY_MS = 24 * 3600 * 1000


def transaction(commands: Iterable[Command]) -> tuple[Command, ...]:
    """The commands as one MULTI/EXEC."""
    return (MULTI, *commands, EXEC)


def watch(*keys: bytes) -> Command:
    """WATCH; every EXEC of the connection ends it."""
    return (b"WATCH", *keys)


def exists(*keys: bytes) -> Command:
    """EXISTS: how many of the keys there are."""
    return (b"EXISTS", *keys)


def append(stream: bytes, fields: Fields) -> Command:
    """XADD at the stream's end."""
    return (b"XADD", stream, b"*", *fields)


def append_trimmed(stream: bytes, fields: Fields, length: int) -> Command:
    """XADD that keeps about the newest `length` entries."""
    return (b"XADD", stream, b"MAXLEN", b"~", length, b"*", *fields)


def append_to_existing(stream: bytes, fields: Fields) -> Command:
    """XADD NOMKSTREAM: answers nil where the stream is gone, and does not make it again."""
    return (b"XADD", stream, b"NOMKSTREAM", b"*", *fields)


def delete_entries(stream: bytes, ids: Sequence[bytes]) -> Command:
    """XDEL."""
    return (b"XDEL", stream, *ids)


def acknowledge(stream: bytes, ids: Sequence[bytes]) -> Command:
    """XACK. It asks nobody who owns the entries."""
    return (b"XACK", stream, SERVER_GROUP, *ids)


def entry(stream: bytes, entry_id: bytes) -> Command:
    """XRANGE of a single id."""
    return (b"XRANGE", stream, entry_id, entry_id)


def entries_after(stream: bytes, entry_id: bytes, count: int) -> Command:
    """XRANGE of the entries above `entry_id`; from the head where it is empty."""
    return (b"XRANGE", stream, b"(" + entry_id if entry_id else b"-", b"+", b"COUNT", count)


def length(stream: bytes) -> Command:
    """XLEN; a key of a wrong type shows."""
    return (b"XLEN", stream)


def read_new(consumer: bytes, streams: Sequence[bytes], count: int, block_ms: int | None) -> Command:
    """XREADGROUP of entries that nobody got yet. COUNT is per stream. Without `block_ms` it answers at once."""
    block: Command = () if block_ms is None else (b"BLOCK", block_ms)
    return (
        b"XREADGROUP",
        b"GROUP",
        SERVER_GROUP,
        consumer,
        b"COUNT",
        count,
        *block,
        b"STREAMS",
        *streams,
        *([b">"] * len(streams)),
    )


def read_receiver(stream: bytes, after: bytes, count: int, block_ms: int | None) -> Command:
    """XREAD of notifications above the id `after`."""
    block: Command = () if block_ms is None else (b"BLOCK", block_ms)
    return (b"XREAD", b"COUNT", count, *block, b"STREAMS", stream, after)


def pending_page(stream: bytes, after: bytes, count: int) -> Command:
    """XPENDING of the whole group: id, owner, idle ms, deliveries; above `after`, from the lowest where empty."""
    return (b"XPENDING", stream, SERVER_GROUP, b"(" + after if after else b"-", b"+", count)


def pending_entry(stream: bytes, entry_id: bytes) -> Command:
    """XPENDING of a single id."""
    return (b"XPENDING", stream, SERVER_GROUP, entry_id, entry_id, 1)


def pending_of(stream: bytes, consumer: bytes) -> Command:
    """XPENDING of one consumer, its first entry."""
    return (b"XPENDING", stream, SERVER_GROUP, b"-", b"+", 1, consumer)


def renew(stream: bytes, consumer: bytes, ids: Sequence[bytes]) -> Command:
    """XCLAIM of one's own entries, min-idle 0, JUSTID: a new delivery time, the same count. Guarded by the fence."""
    return (b"XCLAIM", stream, SERVER_GROUP, consumer, 0, *ids, b"JUSTID")


def claim(stream: bytes, consumer: bytes, ids: Sequence[bytes]) -> Command:
    """XCLAIM of another's entries; the count goes up, the bodies come back. Guarded by the fence."""
    return (b"XCLAIM", stream, SERVER_GROUP, consumer, 0, *ids)


def adopt(stream: bytes, consumer: bytes, lease_ms: int, entry_id: bytes) -> Command:
    """XCLAIM FORCE of an entry in no pending entries list.

    min-idle is ignored where the entry is in no list and protects one that is; the count becomes 2.
    """
    return (b"XCLAIM", stream, SERVER_GROUP, consumer, lease_ms, entry_id, b"FORCE")


def probe(stream: bytes, consumer: bytes) -> tuple[Command, ...]:
    """A renewal of nothing: refused exactly when renewals are, and it changes nothing."""
    return transaction([(b"XCLAIM", stream, SERVER_GROUP, consumer, 0, b"0-0", b"JUSTID")])


def create_group(stream: bytes) -> Command:
    """XGROUP CREATE of the workers' group, from the first entry on; BUSYGROUP where it exists."""
    return (b"XGROUP", b"CREATE", stream, SERVER_GROUP, b"0", b"MKSTREAM")


def create_receiver(stream: bytes) -> Command:
    """Make the receiver stream. Its group is for the Go library's collector; we read without it."""
    return (b"XGROUP", b"CREATE", stream, RECEIVER_GROUP, b"0", b"MKSTREAM")


def groups(stream: bytes) -> Command:
    """XINFO GROUPS."""
    return (b"XINFO", b"GROUPS", stream)


def consumers(stream: bytes) -> Command:
    """XINFO CONSUMERS."""
    return (b"XINFO", b"CONSUMERS", stream, SERVER_GROUP)


def delete_consumer(stream: bytes, consumer: bytes) -> Command:
    """XGROUP DELCONSUMER; drops what is pending under it."""
    return (b"XGROUP", b"DELCONSUMER", stream, SERVER_GROUP, consumer)


def touch(key: bytes) -> Command:
    """PEXPIRE for ten years: touches the key for every WATCH, passes on a full server, answers 0 where it is absent."""
    return (b"PEXPIRE", key, TEN_YEARS_MS)


def expire(key: bytes, after_ms: int) -> Command:
    """PEXPIRE."""
    return (b"PEXPIRE", key, after_ms)


def increment(key: bytes) -> Command:
    """INCR."""
    return (b"INCR", key)


def get(key: bytes) -> Command:
    """GET."""
    return (b"GET", key)


def set_for_a_day(key: bytes, value: bytes) -> Command:
    """SET PX of one day."""
    return (b"SET", key, value, b"PX", ONE_DAY_MS)


def delete(*keys: bytes) -> Command:
    """DEL."""
    return (b"DEL", *keys)


def hash_get(key: bytes, field: bytes) -> Command:
    """HGET."""
    return (b"HGET", key, field)


def hash_get_all(key: bytes) -> Command:
    """HGETALL."""
    return (b"HGETALL", key)


def hash_set(key: bytes, field: bytes, value: Argument) -> Command:
    """HSET."""
    return (b"HSET", key, field, value)


def hash_delete(key: bytes, fields: Sequence[bytes]) -> Command:
    """HDEL."""
    return (b"HDEL", key, *fields)


def sorted_add(key: bytes, score: int, member: bytes) -> Command:
    """ZADD."""
    return (b"ZADD", key, score, member)


def sorted_remove(key: bytes, members: Sequence[bytes]) -> Command:
    """ZREM."""
    return (b"ZREM", key, *members)


def sorted_length(key: bytes) -> Command:
    """ZCARD; a key of a wrong type shows."""
    return (b"ZCARD", key)


def sorted_score(key: bytes, member: bytes) -> Command:
    """ZSCORE."""
    return (b"ZSCORE", key, member)


def sorted_first(key: bytes, count: int) -> Command:
    """ZRANGE of the `count` lowest members, with scores."""
    return (b"ZRANGE", key, 0, count - 1, b"WITHSCORES")


def sorted_scan(key: bytes, cursor: bytes) -> Command:
    """ZSCAN: whatever is there from first to last page is seen."""
    return (b"ZSCAN", key, cursor, b"COUNT", 200)


def unblock(client_number: int) -> Command:
    """CLIENT UNBLOCK: end the blocked read of another connection of this process."""
    return (b"CLIENT", b"UNBLOCK", client_number)
