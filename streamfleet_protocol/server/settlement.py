"""Successes: notify, then settle; the first success wins, whoever has the entry by then.

Where nobody is to be told, plain XDEL, then XACK: there is no bad state in between (after XDEL the task cannot run
again, and a pending id without an entry is removed by the next claim), and a full server accepts both. Where a client
tracks the task, both and the notification are one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .. import commands
from ..keys import receiver_key
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..notes import OperationRefused
from ..replies import ErrorReply, Ok, Outcome, Refused, first_error
from ..settings import ServerSettings
from ..timing import NEVER, Backoff
from ..wire import Notification, NotificationType, encode_notification
from .lifecycle import Happening
from .tasks import HeldTask, ServedQueue, Tasks


@dataclass(slots=True)
class Successes:
    """What of one queue is to be settled."""

    plain_backoff: Backoff
    tracked_backoff: Backoff
    plain: list[HeldTask] = field(default_factory=list)
    tracked: list[HeldTask] = field(default_factory=list)


class Settlement:
    """Settles successes, many in one write."""

    def __init__(self, shared: Shared, settings: ServerSettings, queues: Sequence[ServedQueue], tasks: Tasks) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.tasks = tasks
        least, most = settings.backoff_least_ms, settings.command_backoff_most_ms
        self.successes = [Successes(Backoff(least, most), Backoff(least, most)) for _ in queues]

    def add(self, task: HeldTask) -> None:
        """A handler has succeeded."""
        entry = task.entry
        assert entry is not None
        successes = self.successes[task.queue]
        (successes.tracked if entry.send_notif else successes.plain).append(task)

    def due_at(self) -> int:
        """When something can be settled."""
        due = NEVER
        for successes in self.successes:
            if successes.plain:
                due = min(due, successes.plain_backoff.until)
            if successes.tracked:
                due = min(due, successes.tracked_backoff.until)
        return due

    def compose(self, now: int, write: Write) -> None:
        """Add what can be settled."""
        for queue, successes in zip(self.queues, self.successes, strict=True):
            if successes.plain and now >= successes.plain_backoff.until:
                most = self.settings.batch
                tasks, successes.plain = successes.plain[:most], successes.plain[most:]
                ids = [task.entry_id for task in tasks]
                stream = queue.keys.stream
                settle = (commands.delete_entries(stream, ids), commands.acknowledge(stream, ids))
                write.middle.append(Section(("settlement", "on_plain"), settle, (queue.index, tuple(tasks))))
            if successes.tracked and now >= successes.tracked_backoff.until:
                self._add_tracked(queue, successes, write)

    def _add_tracked(self, queue: ServedQueue, successes: Successes, write: Write) -> None:
        tasks: list[HeldTask] = []
        size = 0
        for task in successes.tracked[: self.settings.batch]:
            size += len(task.result or b"")
            if tasks and size > self.settings.batch_bytes:
                break
            tasks.append(task)
        del successes.tracked[: len(tasks)]
        ids = [task.entry_id for task in tasks]
        stream = queue.keys.stream
        settle = [commands.delete_entries(stream, ids), commands.acknowledge(stream, ids)]
        for task in tasks:
            entry = task.entry
            assert entry is not None
            word = Notification(entry.task_id, NotificationType.COMPLETED, "", task.result)
            settle.append(commands.append_to_existing(receiver_key(entry.client_id), encode_notification(word)))
        context = (queue.index, tuple(tasks))
        write.middle.append(transaction_section(("settlement", "on_tracked"), settle, context))

    def on_plain(self, now: int, outcome: Outcome, context: tuple[int, tuple[HeldTask, ...]]) -> None:
        """Settled, or settled again: both commands may be repeated."""
        index, tasks = context
        successes = self.successes[index]
        if isinstance(outcome, Ok):
            successes.plain_backoff.succeeded()
            self._settled(tasks)
            return
        successes.plain = [*tasks, *successes.plain]
        if isinstance(outcome, Refused):
            self.shared.refused("settling", outcome.error)
            successes.plain_backoff.failed(now, self.shared.entropy)

    def on_tracked(self, now: int, outcome: Outcome, context: tuple[int, tuple[HeldTask, ...]]) -> None:
        """Settled; a notification that could not be written loses only that word, which the client's audit answers."""
        index, tasks = context
        successes = self.successes[index]
        error: ErrorReply | None = None
        if isinstance(outcome, Ok):
            error = first_error(outcome.values[:2])
            if error is None:
                successes.tracked_backoff.succeeded()
                self._settled(tasks)
                unheard = first_error(outcome.values[2:])
                if unheard is not None:
                    self.shared.note(OperationRefused("notifying a client", unheard.text))
                return
        elif isinstance(outcome, Refused):
            error = outcome.error
        # Unknown, Aborted, refused: again. A second word about the same success is dropped by the client.
        successes.tracked = [*tasks, *successes.tracked]
        if error is not None:
            self.shared.refused("settling", error)
            successes.tracked_backoff.failed(now, self.shared.entropy)

    def _settled(self, tasks: Sequence[HeldTask]) -> None:
        for task in tasks:
            self.tasks.move(task, Happening.SETTLED)
