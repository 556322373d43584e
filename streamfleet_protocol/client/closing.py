"""The end of a client: confirm what was accepted, look for words once more, remove its keys, settle the rest."""

from __future__ import annotations

from enum import Enum

from .. import commands
from ..effects import ClientClosed, End, Lane, Rejection
from ..link import Link, LinkState, Section, Write
from ..machine import Shared
from ..replies import Outcome
from ..settings import ClientSettings
from ..timing import NEVER
from .admission import Admission
from .outbox import Outbox
from .tracker import Tracker


class Stage(Enum):
    """A client's life."""

    OPEN = "open"
    FLUSHING = "flushing"
    """Closing: what is accepted is still confirmed."""
    RESOLVING = "resolving"
    """The time is over: only the batch in flight is waited for."""
    TIDYING = "tidying"
    """The last look at the receiver stream, and the removal of the client's keys."""
    CLOSED = "closed"


class Closing:
    """Leads a client from OPEN to CLOSED within a bounded time, whether or not Redis answers."""

    def __init__(
        self,
        shared: Shared,
        settings: ClientSettings,
        links: dict[Lane, Link],
        outbox: Outbox,
        admission: Admission,
        tracker: Tracker,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.links = links
        self.outbox = outbox
        self.admission = admission
        self.tracker = tracker
        self.stage = Stage.OPEN
        self.due_at = NEVER
        """When the present stage is over at the latest."""

    def begin(self, now: int, timeout_ms: int) -> None:
        """Accept nothing more; confirm what is accepted within the time."""
        if self.stage is Stage.OPEN:
            self.stage = Stage.FLUSHING
            self.due_at = now + timeout_ms
            self.admission.closed = True
            self.admission.reject_waiting(Rejection.CLOSED, "the client was closed")

    def go_on(self, now: int) -> None:
        """See whether the present stage is over."""
        link = self.links[Lane.COMMAND]
        queues = self.outbox.queues.values()
        if self.stage is Stage.FLUSHING:
            if not any(queue.waiting or queue.in_flight for queue in queues):
                self._begin_tidying(now)
            elif now >= self.due_at:
                self.stage = Stage.RESOLVING
                self.due_at = now + self.settings.command_timeout_ms
        if self.stage is Stage.RESOLVING:
            resolved = not any(queue.in_flight for queue in queues)
            if resolved or not link.token or now >= self.due_at:
                self._begin_tidying(now)
        if self.stage is Stage.TIDYING and (now >= self.due_at or link.state is not LinkState.UP):
            self._end()

    def _begin_tidying(self, now: int) -> None:
        self.stage = Stage.TIDYING
        self.due_at = now + self.settings.command_timeout_ms
        self.links[Lane.READ].close(self.shared.effects)

    def compose(self, write: Write) -> None:
        """The last look first: a word that lies unread must not become an OutcomeUnknown."""
        client = self.settings.client_id.encode()
        receiver = self.tracker.receiver
        queues = self.outbox.queues.values()
        tidying = [commands.delete(queue.connection_key) for queue in queues]
        tidying += [commands.hash_delete(queue.keys.producers, (client, client + b":t")) for queue in queues]
        if receiver.wanted:
            write.middle.append(receiver.last_read())
            tidying.append(commands.delete(receiver.key))
        if not receiver.unsure:
            # A creation that is still under way would make a stream that nobody lists.
            tidying += [commands.sorted_remove(queue.keys.receivers, (client,)) for queue in queues]
        write.middle.append(Section(("closing", "on_tidied"), tuple(tidying)))

    def on_tidied(self, _now: int, _outcome: Outcome, _context: None) -> None:
        """Whatever could not be removed is collected by others."""
        self._end()

    def _end(self) -> None:
        unsent: list[str] = []
        unknown: list[str] = []
        for queue in self.outbox.queues.values():
            in_flight = queue.in_flight.tasks if queue.in_flight else ()
            for task in (*in_flight, *queue.waiting):
                if not task.settled:
                    (unknown if task.written else unsent).append(task.task_id)
        for task_id, handle in list(self.tracker.handles.items()):
            if handle.task.written:
                self.tracker.settle(task_id, End.UNKNOWN, "the client was closed before its end was known")
            else:
                self.tracker.settle(task_id, End.CANCELED, "the client was closed before it was sent")
        for link in self.links.values():
            link.close(self.shared.effects)
        self.stage = Stage.CLOSED
        self.due_at = NEVER
        self.admission.end()
        self.shared.effects.append(ClientClosed(self.outbox.confirmed, tuple(unsent), tuple(unknown)))
