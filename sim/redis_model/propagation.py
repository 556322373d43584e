"""What replicas and the append-only file know of the data: both are told of changes by commands, and not of all.

Read from the sources of Redis 7.0, Redis 8 and Valkey 8, and tested on the three:

* A read of new entries and a claim are told as `XCLAIM ... TIME t RETRYCOUNT n FORCE JUSTID LASTID id`, one for each
  entry. So the consumer is known, with the time when that command was executed as its last sign of life.
* A read of a consumer's own history is told to nobody, though it renews times of delivery and counts.
* A consumer made by a read or a claim that gave it nothing is told to nobody; one made by XGROUP CREATECONSUMER, or by
  a read with NOACK, is. Later reads that give nothing are told to nobody either.
* 7.0 tells `entries-read` only with NOACK, or with an XCLAIM LASTID that claims nothing.
* A time of delivery in the future of whoever executes that XCLAIM becomes its now.

Whoever gets a full copy (a replica that attaches, a snapshot file) has all of it, times included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .keyspace import Snapshot, Value
from .streams import UNKNOWN, Consumer, Group, Stream


def replica_of(snapshot: Snapshot, now: int) -> Snapshot:
    """What a replica has that was attached all the time; `now` is its wall clock.

    Exact where its clock agrees with the primary's. Where it is behind, times are not later than `now`: a little
    late, since the replica has cut them when the commands came.
    """
    return Snapshot({key: _told(value, now) for key, value in snapshot.data.items()}, dict(snapshot.expires))


def replay_of(snapshot: Snapshot, now: int) -> Snapshot:
    """What a server has that starts with the append-only file at that time: its commands are executed anew."""
    told = replica_of(snapshot, now)
    for group in _groups(told.data):
        for consumer in group.consumers.values():
            if consumer.in_log:
                consumer.seen = now
                if consumer.active != UNKNOWN:
                    consumer.active = now
    return told


def tell_all(data: Mapping[bytes, Value], *, rewritten: bool) -> None:
    """Replicas have got a full copy; `rewritten`: and what was in the append-only file as commands is there as data."""
    for group in _groups(data):
        group.told_read = group.entries_read
        group.told_pending.clear()
        for consumer in group.consumers.values():
            consumer.told = consumer.seen
            if rewritten:
                consumer.in_log = False


def _groups(data: Mapping[bytes, Value]) -> Iterator[Group]:
    for value in data.values():
        if isinstance(value, Stream):
            yield from value.groups.values()


def _told(value: Value, now: int) -> Value:
    if not isinstance(value, Stream):
        return value if isinstance(value, bytes) else value.copy()
    stream = value.copy()
    for group in stream.groups.values():
        _forget_untold(group, now)
    return stream


def _forget_untold(group: Group, now: int) -> None:
    group.entries_read = group.told_read
    group.pending.update(group.told_pending)
    for entry_id, (owner, delivered, count) in group.pending.items():
        if delivered > now:
            group.pending[entry_id] = (owner, now, count)
    group.consumers = {
        name: Consumer(min(consumer.told, now), min(consumer.active, now), consumer.ids, in_log=consumer.in_log)
        for name, consumer in group.consumers.items()
        if consumer.told != UNKNOWN
    }
