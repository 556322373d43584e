"""The keys: values, expiry, who watches them, which blocked readers a change may wake."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from .errors import WRONG_TYPE, CommandError
from .observer import Observer
from .streams import Stream
from .versions import Version
from .zset import ZSet

Value = bytes | dict[bytes, bytes] | ZSet | Stream
Frozen = tuple[Hashable, ...]


class Watcher(Protocol):
    """A connection with a WATCH: `dirty` once a watched key was touched."""

    dirty: bool


@dataclass(slots=True)
class Snapshot:
    """A copy of all data. Compares with `==`; may be restored any number of times, into any server."""

    data: dict[bytes, Value]
    expires: dict[bytes, int]

    def frozen(self) -> Frozen:
        """All of it as nested tuples: equal, and of equal hash, exactly where the snapshots are equal."""
        return freeze(self.data, self.expires)


def _copy(value: Value) -> Value:
    """A copy that shares only what never changes (entries, pending records, members)."""
    if isinstance(value, bytes):
        return value
    return value.copy()


def freeze(data: Mapping[bytes, Value], expires: Mapping[bytes, int]) -> Frozen:
    """The data of a server as nested tuples, which hash; equal exactly where the data is equal."""
    return (
        tuple((key, _freeze(data[key])) for key in sorted(data)),
        tuple(sorted(expires.items())),
    )


def _freeze(value: Value) -> Hashable:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return ("hash", *sorted(value.items()))
    return value.frozen()


class Keyspace:
    """The one database of a server."""

    __slots__ = (
        "blocked",
        "changes",
        "data",
        "expires",
        "next_expiry",
        "now",
        "observer",
        "ready",
        "version",
        "watched",
    )

    def __init__(self, version: Version, now: int) -> None:
        self.version = version
        self.now = now
        self.data: dict[bytes, Value] = {}
        self.expires: dict[bytes, int] = {}
        self.next_expiry: float = float("inf")
        """No key expires before this; it may be too early, never too late."""
        self.watched: dict[bytes, list[Watcher]] = {}
        self.blocked: dict[bytes, int] = {}
        """Keys with blocked readers, and how many."""
        self.ready: dict[bytes, None] = {}
        """Keys whose blocked readers are to be looked at after this command, in order of their signals."""
        self.observer: Observer | None = None
        self.changes = 0
        """Grows with each change that replicas are told of."""

    # Values of one type. A wrong type is an error; a missing key is None.

    def stream(self, key: bytes) -> Stream | None:
        """The stream at `key`."""
        value = self.data.get(key)
        if value is None or isinstance(value, Stream):
            return value
        raise CommandError(WRONG_TYPE)

    def string(self, key: bytes) -> bytes | None:
        """The string at `key`."""
        value = self.data.get(key)
        if value is None or isinstance(value, bytes):
            return value
        raise CommandError(WRONG_TYPE)

    def hash(self, key: bytes) -> dict[bytes, bytes] | None:
        """The hash at `key`."""
        value = self.data.get(key)
        if value is None or isinstance(value, dict):
            return value
        raise CommandError(WRONG_TYPE)

    def zset(self, key: bytes) -> ZSet | None:
        """The sorted set at `key`."""
        value = self.data.get(key)
        if value is None or isinstance(value, ZSet):
            return value
        raise CommandError(WRONG_TYPE)

    # Changes.

    def touch(self, key: bytes) -> None:
        """The key changed, as WATCH sees it. Group operations do not come here: WATCH is blind to them."""
        self.changes += 1
        watchers = self.watched.get(key)
        if watchers:
            for watcher in watchers:
                watcher.dirty = True

    def signal(self, key: bytes) -> None:
        """Readers blocked on the key must be looked at once the command, or the whole EXEC, is over."""
        if key in self.blocked:
            self.ready[key] = None

    def add(self, key: bytes, value: Value) -> None:
        """A new key. The caller touches it."""
        self.data[key] = value
        if isinstance(value, Stream):
            self.signal(key)

    def replace(self, key: bytes, value: Value) -> None:
        """SET: whatever was there is gone, with its expiry."""
        if key in self.data:
            self.expires.pop(key, None)
            self.signal(key)
        self.data[key] = value
        self.touch(key)

    def delete(self, key: bytes) -> bool:
        """Returns whether there was such a key."""
        if self.data.pop(key, None) is None:
            return False
        self.expires.pop(key, None)
        self.signal(key)
        self.touch(key)
        return True

    def clear(self) -> None:
        """FLUSHALL."""
        self.changes += 1
        for key in list(self.data):
            self.delete(key)

    # Expiry, by the server's wall clock.

    def set_expiry(self, key: bytes, at: int) -> None:
        """The key goes at that time, which is in the future."""
        self.expires[key] = at
        self.next_expiry = min(self.next_expiry, at)

    def set_time(self, now: int) -> None:
        """The wall clock; it may go back. Keys whose time is over go at once, and their watchers know."""
        self.now = now
        if now < self.next_expiry:
            return
        for key in [key for key, at in self.expires.items() if at <= now]:
            self.delete(key)
        self.next_expiry = min(self.expires.values(), default=float("inf"))

    # Copies.

    def snapshot(self) -> Snapshot:
        """A copy of the data, without watchers and readers."""
        return Snapshot({key: _copy(value) for key, value in self.data.items()}, dict(self.expires))

    def restore(self, snapshot: Snapshot) -> None:
        """The data becomes that of the snapshot; keys that expired meanwhile are gone."""
        before = self.data
        self.data = {key: _copy(value) for key, value in snapshot.data.items()}
        self.expires = dict(snapshot.expires)
        self.next_expiry = min(self.expires.values(), default=float("inf"))
        for key in self._watched_or_blocked():
            if key in before or key in self.data:
                self.touch(key)
                self.signal(key)
        self.set_time(self.now)

    def _watched_or_blocked(self) -> Iterator[bytes]:
        yield from self.watched
        yield from self.blocked
