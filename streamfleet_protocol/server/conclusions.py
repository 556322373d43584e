"""Endings other than success, fenced: retry, expiry, dead letter, hand-back.

Each may be decided by a worker that is no longer the owner, so each is a question (is the entry there, and mine?) under
a WATCH on the fence, and then one transaction that puts the successor in the entry's place. A success touches no fence;
where one came in between, XDEL answers 0, and the successor is taken out again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .. import commands
from ..commands import Command
from ..keys import receiver_key
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..members import pack_member
from ..notes import OperationRefused, TaskDeadLettered, TaskHandedBack, TaskHasExpired, TaskReleased, TaskRetried
from ..replies import ErrorReply, Ok, Outcome, RawReply, Refused
from ..settings import ServerSettings
from ..timing import NEVER, Backoff
from ..wire import Fields, Notification, NotificationType, dead_letter, encode_notification, with_retries
from .intake import bodies
from .leases import pending_rows
from .lifecycle import Happening
from .promotion import Promotion
from .setup import Setup
from .tasks import Conclusion, EndKind, HeldTask, ServedQueue, Tasks


class Need(Enum):
    """The key that a successor goes to, which must be of the right type before the entry is touched."""

    STREAM = "stream"
    DELAYED = "delayed"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Step:
    """One task's part of a transaction."""

    task: HeldTask
    elements: int
    key: bytes = b""
    """Where the successor goes; empty where there is none."""
    member: bytes = b""
    """The successor, in the delayed set."""
    body: Fields = ()
    """The successor's fields."""


@dataclass(slots=True)
class Endings:
    """The tasks of one queue whose successors go to one key."""

    backoff: Backoff
    tasks: deque[HeldTask] = field(default_factory=deque)


class Conclusions:
    """Asks, then replaces."""

    promotion: Promotion

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
        least, most = settings.backoff_least_ms, settings.command_backoff_most_ms
        self.endings = {(queue.index, need): Endings(Backoff(least, most)) for queue in self.queues for need in Need}
        self.repairs: deque[tuple[str, Command]] = deque()
        """Plain commands that must be carried out: successors to be taken out, bodies to be put in again."""
        self.repairing = 0
        """How many of them are not done yet, those in flight included."""
        self.repair_backoff = Backoff(least, most)
        self.handed_back = 0

    def add(self, task: HeldTask) -> None:
        """A task is to end so."""
        assert task.conclusion is not None
        self.endings[task.queue, need_of(task.conclusion)].tasks.append(task)

    def due_at(self) -> int:
        """When a question or a repair can go."""
        due = self.repair_backoff.until if self.repairs else NEVER
        for (queue, _), endings in self.endings.items():
            if endings.tasks and self.setup.is_fenced(queue):
                due = min(due, endings.backoff.until)
        return due

    def compose(self, now: int, write: Write) -> None:
        """Add repairs, and one question."""
        if self.repairs and now >= self.repair_backoff.until:
            for what, command in self.repairs:
                write.middle.append(Section(("conclusions", "on_repaired"), (command,), (what, command)))
            self.repairs.clear()
        if write.question:
            return
        for (index, need), endings in self.endings.items():
            if endings.tasks and now >= endings.backoff.until and self.setup.is_fenced(index):
                # To the end of the row, so that a constant flow of one kind keeps no other waiting.
                self.endings[index, need] = self.endings.pop((index, need))
                write.question.append(self._question(self.queues[index], need, self._next(endings)))
                return

    def _next(self, endings: Endings) -> list[HeldTask]:
        tasks: list[HeldTask] = []
        size = 0
        while endings.tasks and len(tasks) < self.settings.batch and size < self.settings.batch_bytes:
            task = endings.tasks.popleft()
            tasks.append(task)
            size += sum(map(len, task.fields))
        return tasks

    def _question(self, queue: ServedQueue, need: Need, tasks: list[HeldTask]) -> Section:
        keys = queue.keys
        question = [commands.watch(keys.fence)]
        for task in tasks:
            question.append(commands.entry(keys.stream, task.entry_id))
            question.append(commands.pending_entry(keys.stream, task.entry_id))
        if need is Need.DELAYED:
            question.append(commands.sorted_length(keys.delayed))
        elif need is Need.DEAD:
            question.append(commands.length(keys.dead))
        return Section(("conclusions", "on_answer"), tuple(question), (queue.index, need, tuple(tasks)))

    def on_answer(self, now: int, outcome: Outcome, context: tuple[int, Need, tuple[HeldTask, ...]]) -> None:
        """Those that are there and mine can be replaced."""
        index, need, tasks = context
        if isinstance(outcome, Refused):
            self._again(now, index, need, tasks, outcome.error)
        elif not isinstance(outcome, Ok):
            self._again(now, index, need, tasks, None)
        else:
            steps: list[Step] = []
            replacement: list[Command] = []
            for at, task in enumerate(tasks):
                if self._is_ours(task, outcome.values[1 + 2 * at], outcome.values[2 + 2 * at]):
                    step, replacing = self._replace(now, self.queues[index], task)
                    steps.append(step)
                    replacement.extend(replacing)
            if steps:
                self.shared.guarded = transaction_section(
                    ("conclusions", "on_replaced"), replacement, (index, need, tuple(steps))
                )

    def _is_ours(self, task: HeldTask, entry: RawReply, listing: RawReply) -> bool:
        rows = pending_rows(listing)
        mine = bool(rows) and rows[0].owner == self.consumer
        if mine and bodies(entry):
            return True
        stream = self.queues[task.queue].keys.stream
        if mine:
            reason = "the entry is gone: another has settled it, or it was deleted"
            self.repair("removing a ghost", commands.acknowledge(stream, (task.entry_id,)))
        elif rows:
            reason = f"{rows[0].owner.decode('utf-8', 'replace')} has taken it over"
        else:
            reason = "it is pending nowhere: done, or taken out"
        self._released(task, reason)
        return False

    def _released(self, task: HeldTask, reason: str) -> None:
        self.tasks.move(task, Happening.LEASE_LOST)
        self.shared.note(TaskReleased(self.queues[task.queue].name, task.task_id, reason))

    def _replace(self, now: int, queue: ServedQueue, task: HeldTask) -> tuple[Step, list[Command]]:
        conclusion = task.conclusion
        assert conclusion is not None
        keys = queue.keys
        replacing: list[Command] = []
        key, member, body = b"", b"", task.fields
        if conclusion.kind is EndKind.HAND_BACK:
            key = keys.stream
            replacing.append(commands.append(key, body))
        elif conclusion.kind is EndKind.RETRY:
            assert task.entry is not None
            body = with_retries(body, task.entry.retries + 1)
            if conclusion.delay_ms:
                key, member = keys.delayed, pack_member(body)
                self.promotion.expect(queue.index, now + conclusion.delay_ms)
                due = self.shared.clock.read(now) + conclusion.delay_ms
                replacing.append(commands.sorted_add(key, due, member))
            else:
                key = keys.stream
                replacing.append(commands.append(key, body))
        elif conclusion.kind is EndKind.DEAD:
            key = keys.dead
            body = self._dead_letter(now, task, conclusion)
            most = self.settings.dead_letters_max
            replacing.append(commands.append_trimmed(key, body, most) if most else commands.append(key, body))
        replacing.append(commands.acknowledge(keys.stream, (task.entry_id,)))
        replacing.append(commands.delete_entries(keys.stream, (task.entry_id,)))
        word = self._word(task, conclusion)
        if word is not None:
            replacing.append(word)
        return Step(task, len(replacing), key, member, body), replacing

    def _dead_letter(self, now: int, task: HeldTask, conclusion: Conclusion) -> Fields:
        return dead_letter(
            task.fields,
            reason=conclusion.reason,
            entry_id=task.entry_id,
            consumer=self.consumer,
            deliveries=task.deliveries,
            time_ms=self.shared.clock.read(now),
        )

    def _word(self, task: HeldTask, conclusion: Conclusion) -> Command | None:
        """The notification that ends the handle, where this ends the task."""
        entry = task.entry
        if entry is None or not entry.send_notif or conclusion.kind in (EndKind.RETRY, EndKind.HAND_BACK):
            return None
        expired = conclusion.kind is EndKind.EXPIRED
        kind = NotificationType.EXPIRED if expired else NotificationType.ERROR
        word = encode_notification(Notification(entry.task_id, kind, conclusion.reason))
        return commands.append_to_existing(receiver_key(entry.client_id), word)

    def on_replaced(self, now: int, outcome: Outcome, context: tuple[int, Need, tuple[Step, ...]]) -> None:
        """Look at every element: EXEC is not all-or-nothing. Whatever is not known is asked again from the start."""
        index, need, steps = context
        if not isinstance(outcome, Ok):
            error = outcome.error if isinstance(outcome, Refused) else None
            self._again(now, index, need, [step.task for step in steps], error)
            return
        self.endings[index, need].backoff.succeeded()
        at = 0
        for step in steps:
            self._replaced(index, step, outcome.values[at : at + step.elements])
            at += step.elements

    def _replaced(self, index: int, step: Step, replies: Sequence[RawReply]) -> None:
        task, conclusion = step.task, step.task.conclusion
        assert conclusion is not None
        keys = self.queues[index].keys
        successor = replies[0] if step.key else None
        deleted = replies[2 if step.key else 1]
        if isinstance(successor, ErrorReply):
            # The key changed its type within one round trip. The entry is gone, its body is still in hand.
            self.shared.note(OperationRefused(f"{conclusion.kind.value} of a task", successor.text))
            body = task.fields if conclusion.kind is EndKind.DEAD else step.body
            if deleted == 1:
                self.repair("putting a task back", commands.append(keys.stream, body))
        elif deleted == 0 and step.member:
            self.repair("taking a successor out", commands.sorted_remove(step.key, (step.member,)))
        elif deleted == 0 and isinstance(successor, bytes):
            self.repair("taking a successor out", commands.delete_entries(step.key, (successor,)))
        self.tasks.move(task, Happening.SETTLED)
        if deleted == 0:
            reason = "a success came in between"
            self.shared.note(TaskReleased(self.queues[index].name, task.task_id, reason))
        else:
            self._tell(index, task, conclusion)

    def repair(self, what: str, command: Command) -> None:
        """A plain command that is repeated until it is carried out."""
        self.repairs.append((what, command))
        self.repairing += 1

    def _tell(self, index: int, task: HeldTask, conclusion: Conclusion) -> None:
        name = self.queues[index].name
        if conclusion.kind is EndKind.HAND_BACK:
            self.handed_back += 1
            self.shared.note(TaskHandedBack(name, task.task_id))
        elif conclusion.kind is EndKind.EXPIRED:
            self.shared.note(TaskHasExpired(name, task.task_id))
        elif conclusion.kind is EndKind.DEAD:
            self.shared.note(TaskDeadLettered(name, task.task_id, conclusion.reason))
        else:
            attempt = task.entry.retries + 1 if task.entry is not None else 0
            self.shared.note(TaskRetried(name, task.task_id, attempt, conclusion.delay_ms, conclusion.reason))

    def on_repaired(self, now: int, outcome: Outcome, context: tuple[str, Command]) -> None:
        """Repeated until it is carried out."""
        if isinstance(outcome, Ok):
            self.repair_backoff.succeeded()
            self.repairing -= 1
            return
        self.repairs.append(context)
        self.repair_backoff.failed(now, self.shared.entropy)
        if isinstance(outcome, Refused):
            self.shared.refused(context[0], outcome.error)

    def _again(self, now: int, index: int, need: Need, tasks: Sequence[HeldTask], error: ErrorReply | None) -> None:
        """To the front; the entries stay pending here meanwhile."""
        endings = self.endings[index, need]
        endings.tasks.extendleft(reversed(tasks))
        if error is None:
            return
        endings.backoff.failed(now, self.shared.entropy)
        if error.code == "WRONGTYPE" and need is not Need.STREAM:
            self.shared.note(OperationRefused(f"writing to {need.value} of {self.queues[index].name!r}", error.text))
        else:
            self.shared.refused("ending a task", error)


def need_of(conclusion: Conclusion) -> Need:
    """The key that must be of the right type for this ending."""
    if conclusion.kind is EndKind.DEAD:
        return Need.DEAD
    return Need.DELAYED if conclusion.kind is EndKind.RETRY and conclusion.delay_ms else Need.STREAM
