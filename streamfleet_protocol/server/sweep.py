"""The orphan sweep: entries that were delivered and are in no pending entries list, which nobody would ever get again.

They arise where a consumer is deleted while a reply is on its way to it. Settled entries are deleted, so orphans drift
to the head of the stream. One is adopted when two sweeps a lease apart have seen it: a library that acknowledges and
deletes in two steps (the Go one) leaves such entries for a moment, and a live owner takes its own back by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import commands
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..notes import TaskAdopted
from ..replies import Ok, Outcome, Refused, first_error
from ..settings import ServerSettings
from ..timing import NEVER
from .intake import bodies
from .leases import pending_rows
from .missing import id_parts, last_delivered
from .setup import Setup
from .tasks import ServedQueue, Tasks

_HEAD = 16


@dataclass(slots=True)
class Head:
    """What the sweeps saw at the head of one queue's stream."""

    sweep_at: int
    suspects: dict[bytes, int] = field(default_factory=dict)
    """Orphan: when it was first seen."""
    orphans: list[bytes] = field(default_factory=list)
    """Seen for long enough."""


class Sweep:
    """Sweeps and adoptions."""

    def __init__(
        self,
        shared: Shared,
        settings: ServerSettings,
        queues: Sequence[ServedQueue],
        tasks: Tasks,
        setup: Setup,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.tasks = tasks
        self.setup = setup
        self.consumer = settings.consumer.encode()
        # Workers that start together do not sweep together.
        self.heads = [Head(shared.entropy.upper_half(settings.sweep_interval_ms)) for _ in queues]

    def started(self, now: int) -> None:
        """The clock of the first sweep begins to run."""
        for head in self.heads:
            head.sweep_at += now

    def due_at(self) -> int:
        """When to sweep, or to adopt."""
        due = NEVER
        states = self.setup.states
        for index, head in enumerate(self.heads):
            if states[index].grouped:
                at = 0 if head.orphans and self.tasks.room > 0 else head.sweep_at
                if at < due:
                    due = at
        return due

    def compose(self, now: int, write: Write) -> None:
        """Add sweeps and adoptions."""
        if now < self.due_at():
            return
        for queue, head in zip(self.queues, self.heads, strict=True):
            if not self.setup.is_grouped(queue.index):
                continue
            stream = queue.keys.stream
            if now >= head.sweep_at:
                head.sweep_at = now + self.settings.sweep_interval_ms
                sweep = (
                    commands.groups(stream),
                    commands.entries_after(stream, b"", _HEAD),
                    commands.pending_page(stream, b"", _HEAD),
                )
                write.middle.append(transaction_section(("sweep", "on_head"), sweep, queue.index))
            while head.orphans and self.tasks.room > 0:
                entry_id = head.orphans.pop(0)
                self.tasks.reserved += 1
                adopt = (commands.adopt(stream, self.consumer, self.settings.lease_ms, entry_id),)
                write.middle.append(Section(("sweep", "on_adopted"), adopt, (queue.index, entry_id)))

    def on_head(self, now: int, outcome: Outcome, index: int) -> None:
        """Delivered and pending nowhere: an orphan, if it stays so."""
        if not isinstance(outcome, Ok):
            if isinstance(outcome, Refused):
                self.shared.refused("sweeping", outcome.error)
            return
        error = first_error(outcome.values)
        if error is not None:
            self.shared.refused("sweeping", error)
            return
        head = self.heads[index]
        groups, entries, listing = outcome.values
        delivered = id_parts(last_delivered(groups))
        rows = pending_rows(listing)
        pending = {row.entry_id for row in rows}
        # What lies beyond a full page of pending ids may be pending.
        known_up_to = id_parts(rows[-1].entry_id) if len(rows) == _HEAD else delivered
        lost = [
            entry_id
            for entry_id, _ in bodies(entries)
            if entry_id not in pending and id_parts(entry_id) <= min(delivered, known_up_to)
        ]
        head.suspects = {entry_id: head.suspects.get(entry_id, now) for entry_id in lost}
        lease = self.settings.lease_ms
        head.orphans = [entry_id for entry_id, since in head.suspects.items() if now - since >= lease]
        if len(head.orphans) < len(head.suspects):
            head.sweep_at = min(head.sweep_at, now + lease)

    def on_adopted(self, _now: int, outcome: Outcome, context: tuple[int, bytes]) -> None:
        """Ours, and counted as the second delivery; an empty reply means that somebody has it."""
        index, entry_id = context
        self.tasks.reserved -= 1
        self.heads[index].suspects.pop(entry_id, None)
        if isinstance(outcome, Ok):
            for found_id, fields in bodies(outcome.values[0]):
                if self.tasks.take(index, found_id, fields, 2) is not None:
                    text = found_id.decode("ascii", "replace")
                    self.shared.note(TaskAdopted(self.queues[index].name, text, "delivered, and pending nowhere"))
        elif isinstance(outcome, Refused):
            self.shared.refused("adopting", outcome.error)
