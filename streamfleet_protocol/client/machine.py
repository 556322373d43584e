"""The client's machine: it puts its parts together, and shares the lanes out among them."""

from __future__ import annotations

from ..commands import MULTI
from ..effects import Lane, Rejection
from ..garbage import Garbage
from ..inputs import ClientInput, CloseClient, Enqueue, Flush, Withdraw
from ..keys import queue_keys
from ..link import Section, Write
from ..machine import Machine
from ..replies import Aborted, Outcome, Refused
from ..settings import ClientSettings
from ..timing import NEVER, Backoff
from .admission import Admission
from .audit import Audit
from .closing import Closing, Stage
from .heartbeat import Heartbeat
from .outbox import Outbox
from .receiver import Receiver
from .records import QueueOutbox
from .tracker import Tracker


class ClientMachine(Machine[ClientInput]):
    """Accepts tasks, sends them, repairs losses, tracks outcomes."""

    def __init__(self, settings: ClientSettings) -> None:
        least, most = settings.backoff_least_ms, settings.backoff_most_ms
        backoffs = {lane: Backoff(least, most) for lane in (Lane.COMMAND, Lane.READ)}
        super().__init__(settings.seed, settings.connect_timeout_ms, backoffs)
        self.settings = settings
        self.command_timeout_ms = settings.command_timeout_ms
        self.queues: dict[str, QueueOutbox] = {}
        for name in settings.queues:
            keys = queue_keys(name)
            self.queues[name] = QueueOutbox(keys, keys.connection(settings.client_id))
        self.slot = next(iter(self.queues.values())).keys.slot
        self.tracker = Tracker(self.shared, settings)
        self.receiver = self.tracker.receiver = Receiver(self.shared, settings, self.tracker)
        self.admission = Admission(self.shared, settings, self.queues, self.tracker)
        self.outbox = Outbox(self.shared, settings, self.queues, self.admission, self.tracker, self.receiver)
        self.heartbeat = Heartbeat(self.shared, settings, self.queues, self.outbox, self.receiver)
        self.audit = Audit(self.shared, settings, self.queues, self.tracker, self.receiver, self.outbox, self.heartbeat)
        self.closing = Closing(self.shared, settings, self.links, self.outbox, self.admission, self.tracker)
        self.garbage = Garbage(
            self.shared,
            [queue.keys for queue in self.queues.values()],
            settings.client_id.encode(),
            silence_ms=settings.silence_ms,
            producer_silence_ms=settings.producer_silence_ms,
            interval_ms=settings.collect_interval_ms,
            backoff=Backoff(least, most),
        )

    # Inputs.

    def _take_lightly(self, now: int, event: ClientInput) -> bool:
        # While a batch is in flight, a task can only be put with the others that wait for the next one.
        if type(event) is not Enqueue or not self.command.token or self.admission.calls:
            return False
        self.admission.enqueue(now, event)
        if event.options.expires_in_ms or event.options.expires_ts or self.admission.calls:
            self.due = min(self.due, max(now, self._due_at()))
        return True

    def _on_input(self, now: int, event: ClientInput) -> None:
        if isinstance(event, Enqueue | Flush) and self.closing.stage is Stage.OPEN:
            self.links[Lane.COMMAND].open(now, self.shared.effects)
        if isinstance(event, Enqueue):
            self.admission.enqueue(now, event)
        elif isinstance(event, Withdraw):
            self.admission.withdraw(event.call)
        elif isinstance(event, Flush):
            self.admission.flush(event.call)
        elif isinstance(event, CloseClient):
            self.closing.begin(now, event.timeout_ms)

    def _on_up(self, now: int, lane: Lane) -> None:
        if lane is Lane.COMMAND:
            self.outbox.disarm()
        self.audit.reconnected(now)

    def _on_lost(self, now: int, lane: Lane) -> None:
        if lane is Lane.READ:
            self.receiver.reset_cursor()
        else:
            self.outbox.disarm()
            self.receiver.command_lane_lost()
            self.garbage.forget()
        self.audit.connection_lost()

    def _answer(self, now: int, section: Section, outcome: Outcome) -> None:
        super()._answer(now, section, outcome)
        if isinstance(outcome, Aborted | Refused) and section.commands[0] == MULTI:
            # An EXEC that applies nothing ends the watch all the same, and what the watch has seen is gone with it.
            self.outbox.disarm()
        if isinstance(outcome, Refused) and section.handler[0] in ("outbox", "heartbeat"):
            # While my own signs of life are refused, so are those of others.
            self.garbage.forget()

    def _on_time(self, now: int) -> None:
        if self.closing.stage is Stage.CLOSED:
            return
        self.tracker.on_time(now)
        self.audit.on_time(now)
        if self.admission.calls:
            self.outbox.drop_over(now)
        self._answer_calls(now)

    def _answer_calls(self, now: int) -> None:
        if self.shared.fault is not None and self.admission.calls:
            self.admission.reject_waiting(Rejection.FAULT, self.shared.fault.text)
        self.admission.admit(now)
        self.admission.answer_flushes()
        if self.closing.stage is not Stage.OPEN:
            self.closing.go_on(now)

    # Time.

    def _due_at(self) -> int:
        if self.closing.stage is Stage.CLOSED:
            return NEVER
        due = min(self.tracker.due_at(), self.closing.due_at, self._read_due_at())
        return min(due, self.outbox.room_at()) if self.admission.calls else due

    def _read_due_at(self) -> int:
        readable = self.receiver.stands and self.links[Lane.READ].ready
        return self.receiver.read_backoff.until if readable else NEVER

    def _compose_due_at(self) -> int:
        if self.closing.stage is Stage.TIDYING:
            return 0
        if not self.outbox.armed:
            return min(self.receiver.due_at(), self.outbox.due_at())
        due = min(part.due_at() for part in (self.receiver, self.audit, self.outbox, self.heartbeat))
        return min(due, self.garbage.due_at()) if self.closing.stage is Stage.OPEN else due

    # Batches.

    def _pump(self, now: int) -> None:
        super()._pump(now)
        if self.admission.calls or self.admission.flushes or self.closing.stage is not Stage.OPEN:
            # Tasks that fell out while the batch was composed have left room, and may have been the last of a flush.
            self._answer_calls(now)
            super()._pump(now)

    def _compose(self, now: int, write: Write) -> None:
        """At most one transaction a batch: its EXEC ends the WATCH that guards the tasks, which is then set anew."""
        if self.closing.stage is Stage.TIDYING:
            self.closing.compose(write)
            return
        self.receiver.compose(now, write)
        if not self.outbox.armed:
            self.outbox.compose(now, write)
            return
        self.audit.compose(now, write)
        if write.first:
            write.middle.append(self.outbox.watch_again())
            return
        if self.closing.stage is Stage.OPEN:
            self.garbage.compose(now, write)
        if now >= self.heartbeat.due_at():
            # Also in a long flush, which must not look like death.
            self.heartbeat.compose(now, write)
            return
        self.outbox.compose(now, write)

    def _pump_reads(self, now: int) -> None:
        link = self.links[Lane.READ]
        if self.closing.stage in (Stage.TIDYING, Stage.CLOSED) or not self.receiver.stands:
            return
        link.open(now, self.shared.effects)
        if link.ready:
            section = self.receiver.read(now)
            if section is not None:
                timeout = self.settings.block_ms + self.settings.read_margin_ms
                self.shared.effects.append(link.send(now, (section,), timeout, self.slot))
