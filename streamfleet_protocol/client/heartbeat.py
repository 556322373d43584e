"""The heartbeat: it shows that the client lives, and that Redis still has what it confirmed.

It reads the sequence and never writes it: a late heartbeat of an old connection would turn it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import commands
from ..commands import ONE_DAY_MS, Command
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..replies import Aborted, ErrorReply, Ok, Outcome, Refused, first_error
from ..settings import ClientSettings
from ..timing import Backoff, milliseconds
from .records import QueueOutbox

if TYPE_CHECKING:
    from .outbox import Outbox
    from .receiver import Receiver


class Heartbeat:
    """One beat for all queues of the client."""

    def __init__(
        self,
        shared: Shared,
        settings: ClientSettings,
        queues: dict[str, QueueOutbox],
        outbox: Outbox,
        receiver: Receiver,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = queues
        self.outbox = outbox
        self.receiver = receiver
        self.next_at = 0
        self.backoff = Backoff(settings.backoff_least_ms, settings.backoff_most_ms)

    def due_at(self) -> int:
        """When the next beat is to go; at once where the receiver stream is to be made."""
        return min(self.next_at, self.receiver.make_at())

    def beat_soon(self, now: int) -> None:
        """Make the next beat before its time."""
        self.next_at = min(self.next_at, max(now, self.backoff.until))

    def compose(self, now: int, write: Write) -> None:
        """Add a beat. The client is listed before its stream is made, else a crash leaves a stream nobody finds."""
        self.next_at = now + self.settings.heartbeat_ms
        client = self.settings.client_id.encode()
        redis_ms = self.shared.clock.read(now)
        beat: list[Command] = []
        signs: list[Command] = []
        for queue in self.queues.values():
            keys = queue.keys
            beat.append(commands.hash_get(keys.producers, client))
            beat.append(commands.hash_set(keys.producers, client + b":t", redis_ms))
            beat.append(commands.expire(queue.connection_key, ONE_DAY_MS))
            signs.append(commands.sorted_add(keys.receivers, redis_ms, client))
        write.middle.append(transaction_section(("heartbeat", "on_beat"), beat))
        write.middle.append(self.outbox.watch_again())
        write.middle.append(Section(("heartbeat", "on_signs"), (*signs, commands.TIME)))
        if self.receiver.wanted:
            write.middle.append(self.receiver.creation())

    def on_beat(self, now: int, outcome: Outcome, _context: None) -> None:
        """Compare the sequences; a watch key that is gone must be set before it can guard anything.

        Aborted leads to the arming as for a batch, and then to another beat.
        """
        if isinstance(outcome, Aborted):
            self.next_at = now
        elif isinstance(outcome, Refused):
            self._refused(now, outcome.error)
        elif isinstance(outcome, Ok):
            error = first_error(outcome.values)
            if error is not None:
                self._refused(now, error)
                return
            self.shared.works("heartbeat")
            self.shared.outlive_fault()
            for at, queue in enumerate(self.queues.values()):
                sequence, _, guarded = outcome.values[3 * at : 3 * at + 3]
                self.outbox.resolve(now, queue, sequence)
                if guarded != 1:
                    self.outbox.disarm()
            self.outbox.checks += 1
            self.outbox.forget_old(now)

    def on_signs(self, now: int, outcome: Outcome, _context: None) -> None:
        """The sign of life is there, and Redis's time is known anew."""
        if isinstance(outcome, Refused):
            self._refused(now, outcome.error, "sign of life")
        elif isinstance(outcome, Ok):
            self.shared.works("sign of life")
            if self.backoff.until <= now:
                # The beat before it in the same write was not refused either.
                self.backoff.succeeded()
            redis_ms = milliseconds(outcome.values[-1])
            if redis_ms is not None:
                self.shared.clock.learn(redis_ms, now)

    def _refused(self, now: int, error: ErrorReply, operation: str = "heartbeat") -> None:
        self.shared.refused(operation, error)
        self.next_at = min(self.next_at, self.backoff.failed(now, self.shared.entropy))
