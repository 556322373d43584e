"""The end of a server: read no more, let handlers finish, hand back the rest, leave nothing behind.

Bounded whether or not Redis answers: after the grace, the time for canceled handlers to stop, and the time for Redis to
take back what is unfinished, the server ends. What could not be handed back is taken over when its lease has run out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from .. import commands
from ..effects import Lane, ServerStopped
from ..link import Link, Section, Write
from ..machine import Shared
from ..replies import Ok, Outcome
from ..settings import ServerSettings
from ..timing import NEVER
from .conclusions import Conclusions
from .handlers import Handlers
from .intake import Intake
from .leases import Leases
from .setup import Setup
from .tasks import ServedQueue, Tasks


class Stage(Enum):
    """A server's life."""

    NEW = "new"
    OPEN = "open"
    DRAINING = "draining"
    """Nothing is read or started; handlers have the grace."""
    CANCELING = "canceling"
    """Handlers were asked to stop."""
    RETURNING = "returning"
    """No handler is left; a last look finds what a cut read had brought, and everything is handed back."""
    LEAVING = "leaving"
    """The own consumers are deleted."""
    STOPPED = "stopped"


class Closing:
    """Leads a server from OPEN to STOPPED."""

    def __init__(
        self,
        shared: Shared,
        settings: ServerSettings,
        queues: Sequence[ServedQueue],
        links: dict[Lane, Link],
        tasks: Tasks,
        setup: Setup,
        intake: Intake,
        leases: Leases,
        handlers: Handlers,
        conclusions: Conclusions,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.links = links
        self.tasks = tasks
        self.setup = setup
        self.intake = intake
        self.leases = leases
        self.handlers = handlers
        self.conclusions = conclusions
        self.consumer = settings.consumer.encode()
        self.stage = Stage.NEW
        self.due_at = NEVER
        self.last_looks: tuple[int, ...] = ()
        """Number of each queue's last look before nothing could be read any more; another must be complete."""
        self.to_leave: list[int] = []
        """Queues whose own consumer may be deleted, if nothing is pending under it."""
        self.to_delete: list[int] = []
        self.leaving = 0

    @property
    def is_closing(self) -> bool:
        """Whether nothing new is taken."""
        return self.stage not in (Stage.NEW, Stage.OPEN)

    def begin(self, now: int, grace_ms: int) -> None:
        """Take nothing new; what is held and not started is handed back at once."""
        if self.stage is Stage.NEW:
            self._stop()
        elif self.stage is Stage.OPEN and not self.intake.sent and not any(look.number for look in self.leases.looks):
            # Redis has never heard this consumer's name: there is nothing to hand back, and nothing to wait for.
            self._stop()
        elif self.stage is Stage.OPEN:
            self.stage = Stage.DRAINING
            self.due_at = now + grace_ms
            self.handlers.closing = True
            self.intake.stop(now)
        elif self.stage is Stage.DRAINING:
            self.due_at = min(self.due_at, now + grace_ms)

    def go_on(self, now: int) -> None:
        """See whether the present stage is over."""
        if self.stage is Stage.DRAINING and (not self.tasks.running or now >= self.due_at):
            self.handlers.release_all()
            self.stage = Stage.CANCELING
            self.due_at = now + self.settings.cancel_wait_ms
        if self.stage is Stage.CANCELING and (not self.tasks.running or now >= self.due_at):
            self.handlers.abandon_all()
            self.stage = Stage.RETURNING
            self.due_at = now + self.settings.finish_timeout_ms
        if self.stage is Stage.RETURNING:
            self._return(now)
        if self.stage in (Stage.RETURNING, Stage.LEAVING) and now >= self.due_at:
            self._stop()

    def _return(self, now: int) -> None:
        if not self.intake.stopped:
            return
        looks = self.leases.looks
        if not self.last_looks:
            self.last_looks = tuple(look.number for look in looks)
            for queue in self.queues:
                self.leases.look_now(now, queue.index)
        looked = all(
            look.looked and not look.under_way and look.completed > number and not look.unadopted
            for look, number in zip(looks, self.last_looks, strict=True)
        )
        missing = self.leases.missing
        unsettled = self.tasks.by_id or self.conclusions.repairing or missing.ghosts or missing.removing
        if self.shared.fault is not None and not unsettled:
            # What is refused for good will not be looked at either: no more than one answer is waited for.
            self.due_at = min(self.due_at, now + self.settings.command_timeout_ms)
        if looked and not unsettled:
            if self.intake.last_answered:
                self.stage = Stage.LEAVING
                self.to_leave = [queue.index for queue in self.queues]
                self.leaving = len(self.queues)
            else:
                self._stop()

    def compose_due_at(self) -> int:
        """When there is a consumer to ask about or to delete."""
        return 0 if self.to_leave or self.to_delete else NEVER

    def compose(self, _now: int, write: Write) -> None:
        """Ask whether anything is pending under the own consumer, and delete it where nothing is."""
        for index in self.to_leave:
            question = (commands.pending_of(self.queues[index].keys.stream, self.consumer),)
            write.middle.append(Section(("closing", "on_pending"), question, index))
        self.to_leave.clear()
        for index in self.to_delete:
            deletion = (commands.delete_consumer(self.queues[index].keys.stream, self.consumer),)
            write.middle.append(Section(("closing", "on_deleted"), deletion, index))
        self.to_delete.clear()

    def on_pending(self, _now: int, outcome: Outcome, index: int) -> None:
        """Nothing: then nothing is dropped with it."""
        if isinstance(outcome, Ok) and not outcome.values[0]:
            self.to_delete.append(index)
        else:
            self._left()

    def on_deleted(self, _now: int, _outcome: Outcome, _index: int) -> None:
        """Gone, or collected by others some day."""
        self._left()

    def _left(self) -> None:
        self.leaving -= 1
        if not self.leaving and self.stage is Stage.LEAVING:
            self._stop()

    def _stop(self) -> None:
        for link in self.links.values():
            link.close(self.shared.effects)
        self.stage = Stage.STOPPED
        self.due_at = NEVER
        self.to_leave.clear()
        self.to_delete.clear()
        self.shared.effects.append(ServerStopped(self.conclusions.handed_back, len(self.tasks.by_id)))
