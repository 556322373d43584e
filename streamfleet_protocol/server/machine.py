"""The server's machine: it puts its parts together, and shares the lanes out among them."""

from __future__ import annotations

from ..effects import Lane
from ..garbage import Garbage
from ..inputs import CloseServer, HandlerDone, ServerInput, StartServer
from ..keys import queue_keys
from ..link import Write
from ..machine import Machine, Part
from ..settings import ServerSettings
from ..timing import NEVER, Backoff
from .closing import Closing, Stage
from .conclusions import Conclusions
from .consumers import Consumers
from .handlers import Handlers
from .intake import Intake
from .leases import Leases
from .missing import Missing
from .promotion import Promotion
from .reclaim import Reclaim
from .settlement import Settlement
from .setup import Setup
from .sweep import Sweep
from .tasks import ServedQueue, Tasks


class ServerMachine(Machine[ServerInput]):
    """Consumes queues."""

    def __init__(self, settings: ServerSettings) -> None:
        least = settings.backoff_least_ms
        backoffs = {
            Lane.COMMAND: Backoff(least, settings.command_backoff_most_ms),
            Lane.READ: Backoff(least, settings.backoff_most_ms),
        }
        super().__init__(settings.seed, settings.connect_timeout_ms, backoffs)
        self.settings = settings
        self.command_timeout_ms = settings.command_timeout_ms
        queues = tuple(
            ServedQueue(index, queue_keys(queue.name), queue.timeout_ms) for index, queue in enumerate(settings.queues)
        )
        self.queues = queues
        self.slot = queues[0].keys.slot
        shared = self.shared
        self.tasks = Tasks(settings)
        self.setup = Setup(shared, settings, queues)
        self.intake = Intake(shared, settings, queues, self.tasks, self.setup, self.links[Lane.READ])
        self.leases = Leases(shared, settings, queues, self.tasks, self.setup, self.intake)
        self.missing = Missing(shared, settings, queues, self.tasks)
        self.reclaim = Reclaim(shared, settings, queues, self.tasks, self.setup)
        self.settlement = Settlement(shared, settings, queues, self.tasks)
        self.conclusions = Conclusions(shared, settings, queues, self.tasks, self.setup)
        self.handlers = Handlers(shared, settings, queues, self.tasks)
        self.promotion = Promotion(shared, settings, queues, self.setup)
        self.sweep = Sweep(shared, settings, queues, self.tasks, self.setup)
        self.consumers = Consumers(shared, settings, queues, self.setup)
        self.garbage = Garbage(
            shared,
            [queue.keys for queue in queues],
            b"",
            silence_ms=settings.silence_ms,
            producer_silence_ms=settings.producer_silence_ms,
            interval_ms=settings.collect_interval_ms,
            backoff=Backoff(least, settings.command_backoff_most_ms),
        )
        self.closing = Closing(
            shared,
            settings,
            queues,
            self.links,
            self.tasks,
            self.setup,
            self.intake,
            self.leases,
            self.handlers,
            self.conclusions,
        )
        # Parts that know each other in both directions.
        self.intake.leases = self.leases
        self.leases.missing = self.missing
        self.leases.reclaim = self.reclaim
        self.reclaim.leases = self.leases
        self.missing.handlers = self.handlers
        self.conclusions.promotion = self.promotion
        self.promotion.conclusions = self.conclusions
        self.handlers.leases = self.leases
        self.handlers.settlement = self.settlement
        self.handlers.conclusions = self.conclusions
        # Urgent before rare; a write has room for one question, and the first that asks gets it.
        self.parts: tuple[Part, ...] = (self.setup, self.leases, self.missing, self.settlement)
        self.working_parts: tuple[Part, ...] = (self.reclaim, self.promotion, self.sweep, self.consumers, self.garbage)
        """Parts that rest while the server closes."""
        self.asked = ""
        """Whose the last question was: the others go first now, or one that always has something to ask lets none."""

    # Inputs.

    def _on_input(self, now: int, event: ServerInput) -> None:
        if isinstance(event, HandlerDone):
            self.handlers.done(now, event)
        elif isinstance(event, StartServer):
            if self.closing.stage is Stage.NEW:
                self.closing.stage = Stage.OPEN
                self.sweep.started(now)
                self.links[Lane.COMMAND].open(now, self.shared.effects)
        elif isinstance(event, CloseServer):
            self.closing.begin(now, event.grace_ms)

    def _on_up(self, now: int, lane: Lane) -> None:
        """A new command connection begins with the setup, a new read connection with its own number."""

    def _on_lost(self, now: int, lane: Lane) -> None:
        if lane is Lane.READ:
            self.intake.connection_lost()
            return
        self.setup.connection_lost()
        self.leases.connection_lost(now)
        self.missing.connection_lost()
        self.consumers.forget()
        self.garbage.forget()

    def _on_late(self, now: int, late_ms: int) -> None:
        if late_ms > self.settings.renew_interval_ms and self.closing.stage is Stage.OPEN:
            self.leases.stalled(now, late_ms)

    def _on_time(self, now: int) -> None:
        if self.closing.stage in (Stage.NEW, Stage.STOPPED):
            return
        self.handlers.on_time(now)
        self.handlers.start(now)
        if self.shared.fault is not None:
            self.closing.begin(now, 0)
        if self.closing.is_closing:
            self.reclaim.closing = True
            self.closing.go_on(now)

    # Time.

    def _due_at(self) -> int:
        if self.closing.stage in (Stage.NEW, Stage.STOPPED):
            return NEVER
        return min(self.handlers.due_at(), self.closing.due_at, self.intake.due_at())

    def _compose_due_at(self) -> int:
        due = self.conclusions.due_at()
        for part in self.parts:
            at = part.due_at()
            if at < due:
                due = at
        if self.closing.is_closing:
            return min(due, self.closing.compose_due_at(), self.intake.unblock_due_at())
        for part in self.working_parts:
            at = part.due_at()
            if at < due:
                due = at
        return due

    # Batches.

    def _pump(self, now: int) -> None:
        super()._pump(now)
        if self.closing.is_closing:
            # The read lane may just have been closed, which a stage waits for.
            self._on_time(now)
            super()._pump(now)

    def _compose(self, now: int, write: Write) -> None:
        parts: list[Part] = [*self.parts, self.conclusions]
        if not self.closing.is_closing:
            parts += self.working_parts
        if self.asked == "leases":
            parts.sort(key=lambda part: part is self.leases)
        elif self.asked == "conclusions":
            parts.sort(key=lambda part: part is self.conclusions)
        for part in parts:
            part.compose(now, write)
        if self.closing.is_closing:
            self.closing.compose(now, write)
            self.intake.compose(now, write)
        if write.question:
            self.asked = write.question[0].handler[0]

    def _pump_reads(self, now: int) -> None:
        if self.closing.stage not in (Stage.NEW, Stage.STOPPED):
            self.intake.pump(now)
