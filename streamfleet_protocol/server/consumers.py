"""Collection of consumers that have been silent for a day of *my own* time and have nothing pending.

An id that was delivered to one in that very moment is dropped with it; its live owner takes it back, or the sweep does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import commands
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..notes import GarbageCollected
from ..replies import Ok, Outcome, RawReply, Refused
from ..settings import ServerSettings
from ..timing import NEVER, milliseconds
from .setup import Setup
from .tasks import ServedQueue

_TOLERANCE_MS = 1000


@dataclass(slots=True)
class Shown:
    """When a consumer last did something by Redis's clock, and since when on the own clock that has not changed."""

    stamp: int
    since: int


class Consumers:
    """Looks at the consumers of one queue at a time."""

    def __init__(self, shared: Shared, settings: ServerSettings, queues: Sequence[ServedQueue], setup: Setup) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.setup = setup
        self.own = settings.consumer.encode()
        self.turn = 0
        self.look_at = settings.collect_interval_ms
        self.shown: list[dict[bytes, Shown]] = [{} for _ in queues]
        self.silent: list[tuple[int, bytes]] = []

    def forget(self) -> None:
        """An outage: nobody may have had a chance to show life."""
        for shown in self.shown:
            shown.clear()
        self.silent.clear()

    def due_at(self) -> int:
        """When to look, or to collect."""
        if not self.setup.complete:
            return NEVER
        return 0 if self.silent else self.look_at

    def compose(self, now: int, write: Write) -> None:
        """Add a look at one queue, or collections."""
        if now < self.due_at():
            return
        for index, consumer in self.silent:
            stream = self.queues[index].keys.stream
            collect = (commands.pending_of(stream, consumer), commands.delete_consumer(stream, consumer))
            write.middle.append(transaction_section(("consumers", "on_collected"), collect, (index, consumer)))
        self.silent.clear()
        if now >= self.look_at:
            self.look_at = now + self.settings.collect_interval_ms
            look = (commands.TIME, commands.consumers(self.queues[self.turn].keys.stream))
            write.middle.append(Section(("consumers", "on_look"), look, self.turn))
            self.turn = (self.turn + 1) % len(self.queues)

    def on_look(self, now: int, outcome: Outcome, index: int) -> None:
        """Compare with what they showed before."""
        if not isinstance(outcome, Ok):
            if isinstance(outcome, Refused):
                self.shared.refused("looking at consumers", outcome.error)
            return
        time, listing = outcome.values
        redis_ms = milliseconds(time)
        if redis_ms is None:
            return
        before = self.shown[index]
        after: dict[bytes, Shown] = {}
        for name, pending, idle_ms in _consumers(listing):
            if name == self.own or pending:
                continue
            stamp = redis_ms - idle_ms
            known = before.get(name)
            same = known is not None and abs(known.stamp - stamp) <= _TOLERANCE_MS
            after[name] = known if same and known is not None else Shown(stamp, now)
            if now - after[name].since >= self.settings.consumer_silence_ms:
                self.silent.append((index, name))
        self.shown[index] = after

    def on_collected(self, _now: int, outcome: Outcome, context: tuple[int, bytes]) -> None:
        """Gone; or found again by a later look."""
        index, consumer = context
        self.shown[index].pop(consumer, None)
        if isinstance(outcome, Ok) and isinstance(outcome.values[1], int):
            name = consumer.decode("utf-8", "replace")
            self.shared.note(GarbageCollected(self.queues[index].name, "consumer", name))


def _consumers(reply: RawReply) -> list[tuple[bytes, int, int]]:
    """(name, pending, idle ms) of an XINFO CONSUMERS reply."""
    found = []
    for consumer in reply if isinstance(reply, list | tuple) else ():
        if isinstance(consumer, list | tuple):
            keys = (key for key in consumer[::2] if isinstance(key, bytes))
            facts = dict(zip(keys, consumer[1::2], strict=False))
            name, pending, idle = facts.get(b"name"), facts.get(b"pending"), facts.get(b"idle")
            if isinstance(name, bytes) and isinstance(pending, int) and isinstance(idle, int):
                found.append((name, pending, idle))
    return found
