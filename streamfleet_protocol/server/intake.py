"""Reading new entries, on a lane of its own: no more than there is room for, fairly over the queues.

While there is work, each queue in turn is asked without waiting for as much as there is room; once all were found
empty, one blocking read of a single entry waits on all of them. So the first of many waiting workers does not take a
whole burst. Reads are numbered: an entry may be adopted only when the read that may be bringing it is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import commands
from ..effects import Effect, Lane
from ..link import Link, LinkState, Section, Write
from ..machine import Shared
from ..replies import ErrorReply, Ok, Outcome, RawReply, Refused, Remedy, Unknown
from ..settings import ServerSettings
from ..timing import NEVER, Backoff
from .setup import Setup
from .tasks import ServedQueue, Tasks

if TYPE_CHECKING:
    from .leases import Leases

_UNSETTLED_MOST = 1000
_UNBLOCK_AGAIN_MS = 50
_BLOCK_FOR_SOME_MS = 100
"""BLOCK while not all queues are ready: those that get ready meanwhile wait for the end of the read."""


class Intake:
    """The reads of a server."""

    leases: Leases

    def __init__(
        self,
        shared: Shared,
        settings: ServerSettings,
        queues: Sequence[ServedQueue],
        tasks: Tasks,
        setup: Setup,
        link: Link,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.tasks = tasks
        self.setup = setup
        self.link = link
        self.by_stream = {queue.keys.stream: queue.index for queue in queues}
        self.backoff = Backoff(settings.backoff_least_ms, settings.backoff_most_ms)
        self.turn = 0
        self.empty_in_a_row = 0
        self.sent = 0
        """Number of the last read."""
        self.open = False
        """It is not over: neither answered nor lost."""
        self.blocking = False
        self.client_number: int | None = None
        """Redis's number of the read connection."""
        self.identified = False
        self.stopping = False
        self.unblock_at = NEVER
        """When to end the blocked read through the command lane."""
        self.cut_at = NEVER
        self.last_answered = True
        """Whether the last read was answered, so that no entry can be on its way to nobody."""

    @property
    def over(self) -> int:
        """Number of the last read that is over."""
        return self.sent - 1 if self.open else self.sent

    def due_at(self) -> int:
        """When a read can go on the free read lane, or a stopping one is cut."""
        if self.stopping:
            return self.cut_at
        if not self.link.ready or not self._may_read():
            return NEVER
        return self.backoff.until

    def pump(self, now: int) -> None:
        """Read, where the lane is free and there is room."""
        if self.stopping:
            self._go_on_stopping(now)
            return
        if self.link.state is LinkState.IDLE and self.setup.any_grouped:
            self.link.open(now, self.shared.effects)
        if now < self.due_at():
            return
        if not self.identified:
            self.identified = True
            self._send(now, Section(("intake", "on_identified"), (commands.CLIENT_ID,)), 0)
            return
        self.sent += 1
        self.open = True
        consumer = self.settings.consumer.encode()
        ready = [queue for queue in self.queues if self.leases.is_ready(queue.index)]
        if self.empty_in_a_row >= len(ready):
            self.blocking = True
            streams = [queue.keys.stream for queue in ready]
            block_ms = self.settings.block_ms
            if len(ready) < len(self.queues):
                block_ms = min(block_ms, _BLOCK_FOR_SOME_MS)
            command = commands.read_new(consumer, streams, 1, block_ms)
            self._send(now, Section(("intake", "on_read"), (command,), (-1, 1)), block_ms)
        else:
            queue = ready[self.turn % len(ready)]
            self.turn += 1
            self.blocking = False
            count = self.tasks.room
            command = commands.read_new(consumer, [queue.keys.stream], count, None)
            self._send(now, Section(("intake", "on_read"), (command,), (queue.index, count)), 0)

    def _send(self, now: int, section: Section, block_ms: int) -> None:
        timeout_ms = block_ms + (self.settings.read_margin_ms if block_ms else self.settings.command_timeout_ms)
        slot = self.queues[max(0, section.context[0] if section.context else 0)].keys.slot
        self.shared.effects.append(self.link.send(now, (section,), timeout_ms, slot))

    def _may_read(self) -> bool:
        """Room for more, and not only for a crumb; and an end of what is unsettled."""
        tasks = self.tasks
        prefetch = tasks.prefetch
        return (
            tasks.held <= prefetch // 2
            and tasks.held + len(tasks.running) + tasks.reserved < tasks.settings.concurrency + prefetch
            and tasks.unsettled < _UNSETTLED_MOST
            and self.leases.any_ready()
        )

    def on_identified(self, _now: int, outcome: Outcome, _context: None) -> None:
        """The number by which the blocking read can be ended from the command lane."""
        number = outcome.values[0] if isinstance(outcome, Ok) else None
        self.client_number = number if isinstance(number, int) else None

    def on_read(self, now: int, outcome: Outcome, context: tuple[int, int]) -> None:
        """Entries, or none, or an error, or no answer: then the next look finds what the read took."""
        _, count = context
        self.open = False
        self.last_answered = not isinstance(outcome, Unknown)
        if isinstance(outcome, Ok):
            self.backoff.succeeded()
            taken = self._take(outcome.values[0])
            full = taken >= count and taken > 0
            self.empty_in_a_row = 0 if full else self.empty_in_a_row + 1
            if self.blocking and not taken:
                self.empty_in_a_row = len(self.queues)
        elif isinstance(outcome, Refused):
            self._refused(now, outcome.error)
        self.leases.read_is_over(now, lost=isinstance(outcome, Unknown))

    def _refused(self, now: int, error: ErrorReply) -> None:
        remedy = self.shared.refused("reading", error, Lane.READ)
        self.backoff.failed(now, self.shared.entropy)
        if remedy is Remedy.NEW_GROUP:
            for queue in self.queues:
                # The text names the key; where a server does not, every group is made sure of.
                if queue.keys.stream.decode() in error.text or len(self.queues) == 1:
                    self.setup.group_lost(queue.index, error.text)

    def _take(self, reply: RawReply) -> int:
        taken = 0
        for stream in reply if isinstance(reply, list | tuple) else ():
            if not isinstance(stream, list | tuple) or len(stream) != 2:
                continue
            name, entries = stream
            queue = self.by_stream.get(name) if isinstance(name, bytes) else None
            if queue is None:
                continue
            for entry_id, fields in bodies(entries):
                taken += 1
                self.tasks.take(queue, entry_id, fields, 1)
        return taken

    # Stopping.

    def connection_lost(self) -> None:
        """The read lane's connection is gone."""
        self.identified = False
        self.client_number = None

    def stop(self, now: int) -> None:
        """Read no more. A blocked read is ended through the command lane, and cut where that does not help."""
        self.stopping = True
        if self.open:
            unblockable = self.blocking and self.client_number is not None
            self.unblock_at = now if unblockable else NEVER
            self.cut_at = now + (self.settings.command_timeout_ms if unblockable or not self.blocking else 0)
        else:
            self.cut_at = now

    @property
    def stopped(self) -> bool:
        """Whether no read can bring anything any more."""
        return self.stopping and self.link.state is LinkState.IDLE

    def unblock_due_at(self) -> int:
        """When the command lane has something to do for a read."""
        return self.unblock_at if self.open and self.client_number is not None else NEVER

    def compose(self, now: int, write: Write) -> None:
        """Add the command that ends the blocked read."""
        if now >= self.unblock_due_at():
            assert self.client_number is not None
            self.unblock_at = NEVER
            write.middle.append(Section(("intake", "on_unblocked"), (commands.unblock(self.client_number),)))

    def on_unblocked(self, now: int, outcome: Outcome, _context: None) -> None:
        """Without the permission the read is cut. Where it has not reached the server yet, it is unblocked later."""
        if not isinstance(outcome, Ok):
            self.cut_at = now
        elif outcome.values[0] == 0:
            self.unblock_at = now + _UNBLOCK_AGAIN_MS

    def _go_on_stopping(self, now: int) -> None:
        if self.link.state is LinkState.IDLE:
            self.cut_at = NEVER
        elif not self.open or now >= self.cut_at:
            effects: list[Effect] = self.shared.effects
            for section in self.link.close(effects):
                if section.handler == ("intake", "on_read"):
                    self.on_read(now, Unknown(), section.context)
            self.cut_at = NEVER


def bodies(entries: RawReply) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """The (id, fields) of an entries' reply; those without a body are left out."""
    found = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        if isinstance(entry, list | tuple) and len(entry) == 2:
            entry_id, fields = entry
            if isinstance(entry_id, bytes) and isinstance(fields, list | tuple):
                found.append((entry_id, tuple(fields)))
    return found
