"""The stream and its consumer groups as data; the commands on them are elsewhere.

Entries and pending records are tuples that never change: a copy shares them and costs a pass over tables.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .arguments import MAX_ID, SEQ_MASK, format_id
from .errors import CommandError

Entry = tuple[bytes, tuple[bytes, ...]]
"""The id as text, and the fields and values in turn."""
Pending = tuple[bytes, int, int]
"""Owner, time of delivery (ms of the server's wall clock), number of deliveries."""

NODE_ENTRIES = 100
"""stream-node-max-entries: `MAXLEN ~` only drops whole nodes. Their limit of 4096 bytes is not modelled."""
UNKNOWN = -1
"""entries_read where a server does not know it."""


def insert_sorted(ids: list[int], entry_id: int) -> None:
    """Inserts an id that is not there; mostly it is the highest."""
    if not ids or entry_id > ids[-1]:
        ids.append(entry_id)
    else:
        ids.insert(bisect_left(ids, entry_id), entry_id)


def remove_sorted(ids: list[int], entry_id: int) -> None:
    """Removes an id that is there."""
    del ids[bisect_left(ids, entry_id)]


@dataclass(slots=True)
class Consumer:
    """One consumer of a group."""

    seen: int
    """7.0: the last served read or claim; later: the last attempt."""
    active: int = -1
    """The last read or claim that gave it something; -1: none. Shown from 7.2 on."""
    ids: list[int] = field(default_factory=list)
    """What is pending for it, in order."""
    told: int = UNKNOWN
    """When replicas last heard of it; UNKNOWN: they have no such consumer."""
    in_log: bool = False
    """That is in the append-only file as a command, executed anew when it is read, and not as a time."""

    def tell(self, now: int) -> None:
        """Replicas and the append-only file get a command that concerns it."""
        self.told = now
        self.in_log = True

    def copy(self) -> Consumer:
        """A copy."""
        return Consumer(self.seen, self.active, list(self.ids), self.told, self.in_log)


@dataclass(slots=True)
class Group:
    """A consumer group."""

    last_id: int
    entries_read: int = UNKNOWN
    pending: dict[int, Pending] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    """The keys of `pending` in order."""
    consumers: dict[bytes, Consumer] = field(default_factory=dict)
    told_read: int = UNKNOWN
    """entries_read as replicas have it."""
    told_pending: dict[int, Pending] = field(default_factory=dict)
    """Records as replicas have them, where a consumer has read its own history since: nobody is told of that."""

    def copy(self) -> Group:
        """A copy."""
        return Group(
            self.last_id,
            self.entries_read,
            dict(self.pending),
            list(self.ids),
            {name: consumer.copy() for name, consumer in self.consumers.items()},
            self.told_read,
            dict(self.told_pending),
        )

    def frozen(self) -> tuple[Hashable, ...]:
        """The same as tuples; what is pending for whom is in the records."""
        return (
            (self.last_id, self.entries_read, self.told_read),
            tuple((entry_id, self.pending[entry_id]) for entry_id in self.ids),
            tuple((name, one.seen, one.active, one.told, one.in_log) for name, one in sorted(self.consumers.items())),
            tuple(sorted(self.told_pending.items())),
        )

    def consumer(self, name: bytes, now: int) -> Consumer:
        """The consumer of that name, made where it is missing."""
        consumer = self.consumers.get(name)
        if consumer is None:
            consumer = self.consumers[name] = Consumer(now)
        return consumer

    def assign(self, entry_id: int, name: bytes, consumer: Consumer, at: int, count: int) -> None:
        """The entry is pending for that consumer from now on, whoever had it before."""
        if self.told_pending:
            self.told_pending.pop(entry_id, None)
        old = self.pending.get(entry_id)
        self.pending[entry_id] = (name, at, count)
        if old is None:
            insert_sorted(self.ids, entry_id)
        elif old[0] == name:
            return
        else:
            remove_sorted(self.consumers[old[0]].ids, entry_id)
        insert_sorted(consumer.ids, entry_id)

    def release(self, entry_id: int) -> bytes | None:
        """The entry is pending no more; returns its owner, or None where it was not pending."""
        old = self.pending.pop(entry_id, None)
        if old is None:
            return None
        if self.told_pending:
            self.told_pending.pop(entry_id, None)
        remove_sorted(self.ids, entry_id)
        remove_sorted(self.consumers[old[0]].ids, entry_id)
        return old[0]

    def drop_consumer(self, name: bytes) -> list[int] | None:
        """Removes the consumer with all that is pending for it; returns the ids, or None without such a consumer."""
        consumer = self.consumers.pop(name, None)
        if consumer is None:
            return None
        for entry_id in consumer.ids:
            del self.pending[entry_id]
            self.told_pending.pop(entry_id, None)
        gone = frozenset(consumer.ids)
        if gone:
            self.ids = [entry_id for entry_id in self.ids if entry_id not in gone]
        return consumer.ids


@dataclass(slots=True)
class Stream:
    """A stream."""

    entries: dict[int, Entry] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    """The keys of `entries` in order."""
    last_id: int = 0
    max_deleted: int = 0
    """The highest id that XDEL removed."""
    added: int = 0
    groups: dict[bytes, Group] = field(default_factory=dict)
    nodes: list[int] = field(default_factory=list)
    """The first id of each node."""
    node_fill: int = 0
    """How many entries were ever put into the last node."""

    def copy(self) -> Stream:
        """A copy."""
        return Stream(
            dict(self.entries),
            list(self.ids),
            self.last_id,
            self.max_deleted,
            self.added,
            {name: group.copy() for name, group in self.groups.items()},
            list(self.nodes),
            self.node_fill,
        )

    def frozen(self) -> tuple[Hashable, ...]:
        """The same as tuples."""
        return (
            "stream",
            tuple(self.entries[entry_id] for entry_id in self.ids),
            (self.last_id, self.max_deleted, self.added, self.node_fill),
            tuple(self.nodes),
            tuple((name, group.frozen()) for name, group in self.sorted_groups()),
        )

    def append(self, entry_id: int, fields: Sequence[bytes]) -> bytes:
        """Adds an entry with an id above all; returns the id as text."""
        if not self.ids or self.node_fill >= NODE_ENTRIES:
            if not self.ids:
                self.nodes.clear()
            self.nodes.append(entry_id)
            self.node_fill = 0
        self.node_fill += 1
        text = format_id(entry_id)
        self.entries[entry_id] = (text, tuple(fields))
        self.ids.append(entry_id)
        self.last_id = entry_id
        self.added += 1
        return text

    def next_id(self, now: int) -> int:
        """The id that `*` becomes: never below the last one, whatever the clock does."""
        if self.last_id == MAX_ID:
            raise CommandError("ERR The stream has exhausted the last possible ID, unable to add more items")
        return max(now << 64, self.last_id + 1)

    def delete(self, ids: Iterable[int]) -> list[int]:
        """XDEL; returns those that there were."""
        deleted: list[int] = []
        for entry_id in ids:
            if self.entries.pop(entry_id, None) is None:
                continue
            remove_sorted(self.ids, entry_id)
            self.max_deleted = max(self.max_deleted, entry_id)
            deleted.append(entry_id)
        return deleted

    def trim(self, maxlen: int, *, approximate: bool) -> int:
        """MAXLEN; returns how many went. What is pending stays pending."""
        surplus = len(self.ids) - maxlen
        if surplus <= 0:
            return 0
        if approximate:
            surplus = self._whole_nodes(surplus)
        for entry_id in self.ids[:surplus]:
            del self.entries[entry_id]
        del self.ids[:surplus]
        return surplus

    def _whole_nodes(self, surplus: int) -> int:
        """How many entries the leading nodes hold that may go as a whole."""
        count = 0
        while self.nodes:
            end = bisect_left(self.ids, self.nodes[1]) if len(self.nodes) > 1 else len(self.ids)
            if end > surplus:
                break
            count = end
            del self.nodes[0]
        return count

    def range(self, start: int, end: int, count: int = 0) -> list[int]:
        """The ids from `start` to `end`, both included; at most `count` unless it is 0."""
        low = bisect_left(self.ids, start)
        high = len(self.ids) if end == MAX_ID else bisect_right(self.ids, end)
        if count:
            high = min(high, low + count)
        return self.ids[low:high]

    def show(self, entry_id: int) -> list[bytes | list[bytes]]:
        """An entry as replies give it."""
        text, fields = self.entries[entry_id]
        return [text, list(fields)]

    def sorted_groups(self) -> Iterator[tuple[bytes, Group]]:
        """The groups in the order of replies: by name."""
        for name in sorted(self.groups):
            yield name, self.groups[name]


def next_millisecond_sequence(stream: Stream, ms: int) -> int:
    """The id that `ms-*` becomes."""
    last_ms = stream.last_id >> 64
    if ms != last_ms:
        return ms << 64
    if stream.last_id & SEQ_MASK == SEQ_MASK:
        raise CommandError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
    return stream.last_id + 1
