"""Batches: each is applied exactly once, or known to be missing, whatever becomes of the connection.

- Armed WATCH: each new connection first sets the client's own `conn` key and watches it; each later EXEC is guarded by
  the WATCH of an earlier write. So no bytes of an old connection can run after a resend, and no batch is ever applied
  on top of a rollback or a flush.
- Sequence: the batch's number is written in the batch's own transaction. What `producers` holds is the last batch
  applied; exactly what is above it is missing, and goes out again under a new number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import commands
from ..commands import Command
from ..effects import Confirmed
from ..link import Section, Write, transaction_section
from ..machine import Shared
from ..notes import DataLossSeen, ExpiredUnsent, RetentionCut
from ..replies import ErrorReply, Ok, Outcome, RawReply, Refused
from ..settings import ClientSettings
from ..timing import NEVER, Backoff, milliseconds
from .records import Outgoing, QueueOutbox, SentBatch

if TYPE_CHECKING:
    from .admission import Admission
    from .receiver import Receiver
    from .tracker import Tracker


class Outbox:
    """Arming, batches, confirmation, repair."""

    def __init__(
        self,
        shared: Shared,
        settings: ClientSettings,
        queues: dict[str, QueueOutbox],
        admission: Admission,
        tracker: Tracker,
        receiver: Receiver,
    ) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = queues
        self.admission = admission
        self.tracker = tracker
        self.receiver = receiver
        self.armed = False
        self.epoch = 0
        self.backoff = Backoff(settings.backoff_least_ms, settings.backoff_most_ms)
        self.turn = 0
        """The queue that fills the next batch first."""
        self.confirmed = 0
        """Tasks confirmed, over the whole life."""
        self.retained_bytes = 0
        self.cut = False
        self.last: QueueOutbox | None = None
        """Whose batch was sent last."""
        self.checks = 0
        """How often Redis has shown what it still has: by a sequence, or by a transaction that the watch let pass."""

    # What is due.

    def due_at(self) -> int:
        """When a batch, or the arming, can go."""
        if self.armed and not any(self._sendable(queue) for queue in self.queues.values()):
            return NEVER
        return self.backoff.until

    def _sendable(self, queue: QueueOutbox) -> bool:
        """A tracked task waits until there is a stream for the word about it."""
        return bool(queue.waiting) and (not queue.waiting[0].tracked or self.receiver.stands)

    def compose(self, now: int, write: Write) -> None:
        """Add the arming, or the next batch."""
        if now < self.due_at():
            return
        if self.armed:
            self._add_batch(now, write)
        else:
            write.middle.append(Section(("outbox", "on_armed"), self._arming()))

    def watch_again(self) -> Section:
        """The WATCH that guards the next batch, behind every EXEC; and what shows that nothing was lost before it."""
        keys = self._connection_keys()
        watch = [commands.watch(*keys), commands.exists(*keys)]
        expected: list[RawReply] = [len(keys)]
        if self.last is not None:
            number = self.last.in_flight.number if self.last.in_flight else self.last.confirmed
            watch.append(commands.hash_get(self.last.keys.producers, self._client))
            expected.append(b"%d" % number if number else None)
        return Section(("outbox", "on_watched"), tuple(watch), tuple(expected))

    # Arming.

    def disarm(self) -> None:
        """A new connection, or an aborted transaction: nothing is sent before the sequence was looked at."""
        self.armed = False

    def _arming(self) -> tuple[Command, ...]:
        self.epoch += 1
        epoch = b"%d" % self.epoch
        questions = [
            command
            for queue in self.queues.values()
            for command in (
                commands.hash_get(queue.keys.producers, self._client),
                commands.length(queue.keys.stream),
                commands.sorted_length(queue.keys.delayed),
            )
        ]
        return (
            # After an aborted transaction the keys are watched again, and the SET would touch a key of our own WATCH.
            commands.UNWATCH,
            *(commands.set_for_a_day(key, epoch) for key in self._connection_keys()),
            commands.watch(*self._connection_keys()),
            commands.exists(*self._connection_keys()),
            commands.TIME,
            *questions,
        )

    def on_armed(self, now: int, outcome: Outcome, _context: None) -> None:
        """The sequences are known: resolve what was in flight, and see whether something was lost."""
        if isinstance(outcome, Refused):
            answers = outcome.values[len(self.queues) + 4 :]
            for queue, stream, delayed in zip(self.queues.values(), answers[1::3], answers[2::3], strict=True):
                queue.take_back(stream, delayed)
            self._refused(now, "arming", outcome.error)
        if not isinstance(outcome, Ok):
            return
        found, time, *answers = outcome.values[len(self.queues) + 2 :]
        if found != len(self.queues):
            # Flushed just now, before the WATCH: it guards nothing.
            return
        redis_ms = milliseconds(time)
        if redis_ms is None:
            self._refused(now, "arming", ErrorReply("ERR TIME answered something else than a time"))
            return
        self.shared.clock.learn(redis_ms, now)
        self.armed = True
        self.shared.works("arming")
        for queue, sequence in zip(self.queues.values(), answers[::3], strict=True):
            self.resolve(now, queue, sequence)
        self.checks += 1

    def on_watched(self, now: int, outcome: Outcome, expected: tuple[RawReply, ...]) -> None:
        """The next batch is guarded; or not: a WATCH behind a flush, or a rollback, has not seen it."""
        if not isinstance(outcome, Ok) or tuple(outcome.values[1:]) != expected:
            self.armed = False

    # Batches.

    def _add_batch(self, now: int, write: Write) -> None:
        batch: list[Command] = []
        shape: list[tuple[str, int]] = []
        room, size = self.settings.batch_commands, self.settings.batch_bytes
        names = tuple(self.queues)
        self.turn = (self.turn + 1) % len(names)
        for name in (*names[self.turn :], *names[: self.turn]):
            queue = self.queues[name]
            tasks = self._take(now, queue, room, size)
            if not tasks:
                continue
            room -= len(tasks)
            size -= sum(len(task.data) for task in tasks)
            queue.sequence += 1
            self.last = queue
            queue.in_flight = SentBatch(queue.sequence, tasks)
            redis_ms = self.shared.clock.read(now)
            batch.extend(task.command(queue.keys, redis_ms) for task in tasks)
            batch.append(commands.hash_set(queue.keys.producers, self._client, queue.sequence))
            shape.append((name, len(tasks)))
        if batch:
            write.middle.append(transaction_section(("outbox", "on_batch"), batch, tuple(shape)))
            write.middle.append(self.watch_again())

    def _take(self, now: int, queue: QueueOutbox, room: int, size: int) -> tuple[Outgoing, ...]:
        """The next tasks of a queue, encoded. Those that need not be sent any more fall out."""
        clock = self.shared.clock
        redis_ms = clock.read(now)
        client_id = self.settings.client_id
        tasks: list[Outgoing] = []
        while queue.waiting and len(tasks) < room:
            task = queue.waiting[0]
            if task.settled or task.over_at(clock) <= now:
                self._drop_first(queue)
                continue
            if len(task.data) > size and (tasks or room < self.settings.batch_commands):
                break
            if not self._sendable(queue):
                break
            queue.waiting.popleft()
            task.encode(client_id, now, redis_ms)
            task.written = True
            size -= len(task.data)
            tasks.append(task)
        return tuple(tasks)

    def drop_over(self, now: int) -> None:
        """Make room, whether or not there is a connection: take out what is over at the front of the queues."""
        for queue in self.queues.values():
            while queue.waiting and queue.first_over_at(self.shared.clock) <= now:
                self._drop_first(queue)

    def room_at(self) -> int:
        """When `drop_over` next makes room."""
        return min(queue.first_over_at(self.shared.clock) for queue in self.queues.values())

    def _drop_first(self, queue: QueueOutbox) -> None:
        task = queue.waiting.popleft()
        self.admission.left((task,))
        if task.settled:
            return
        if task.tracked:
            self.tracker.expired_unsent(task)
        else:
            self.shared.note(ExpiredUnsent(queue.keys.name, task.task_id))

    def on_batch(self, now: int, outcome: Outcome, shape: tuple[tuple[str, int], ...]) -> None:
        """The batch is applied, or was refused. If it was aborted, or is not known, the arming that follows tells."""
        if isinstance(outcome, Ok):
            self.checks += 1
            at = 0
            for name, count in shape:
                self._applied(now, self.queues[name], outcome.values[at : at + count])
                at += count + 1
            error = next((value for value in outcome.values if isinstance(value, ErrorReply)), None)
            if error is not None:
                self._refused(now, "enqueue", error)
            else:
                self.shared.works("enqueue")
                self.backoff.succeeded()
                self.forget_old(now)
        elif isinstance(outcome, Refused):
            for name, _ in shape:
                queue = self.queues[name]
                assert queue.in_flight is not None
                queue.put_back(queue.in_flight.tasks)
                queue.in_flight = None
            self._refused(now, "enqueue", outcome.error)

    def _applied(self, now: int, queue: QueueOutbox, replies: Sequence[RawReply]) -> None:
        batch = queue.in_flight
        assert batch is not None
        queue.in_flight = None
        queue.confirmed = batch.number
        # EXEC is not all-or-nothing: a task whose own command failed is not there, though the sequence went on.
        failed = [task for task, reply in zip(batch.tasks, replies, strict=True) if isinstance(reply, ErrorReply)]
        if failed:
            queue.put_back(failed)
            pairs = [(task, reply) for task, reply in zip(batch.tasks, replies, strict=True) if task not in failed]
            batch.tasks = tuple(task for task, _ in pairs)
            replies = [reply for _, reply in pairs]
        self._confirm(now, queue, batch, replies)

    def _confirm(self, now: int, queue: QueueOutbox, batch: SentBatch, replies: Sequence[RawReply]) -> None:
        """The batch is in Redis. `replies` are its entry ids where they are known."""
        self.confirmed += len(batch.tasks)
        self.admission.left(batch.tasks)
        tracked = []
        for at, task in enumerate(batch.tasks):
            if task.tracked:
                reply = replies[at] if replies else None
                self.tracker.confirmed(now, task, batch.number, reply if isinstance(reply, bytes) else b"")
                tracked.append(task.task_id)
        if tracked:
            self.shared.effects.append(Confirmed(tuple(tracked)))
            batch.tasks = tuple(task for task in batch.tasks if not task.tracked)
        if batch.tasks and self.settings.retention_ms:
            batch.confirmed_at = now
            queue.retained.append(batch)
            self.retained_bytes += batch.size
            self._bound_retention(now)

    # Repair.

    def resolve(self, now: int, queue: QueueOutbox, reply: RawReply) -> None:
        """Compare with the sequence that Redis holds: what is above it is missing, and goes out again."""
        sequence = int(reply) if isinstance(reply, bytes) and reply.isdigit() and len(reply) < 20 else -1
        if sequence > queue.sequence:
            sequence = -1
        batch, queue.in_flight = queue.in_flight, None
        if batch is not None:
            if batch.number <= sequence:
                self._confirm(now, queue, batch, ())
            else:
                queue.put_back(batch.tasks)
        if max(0, sequence) < queue.confirmed:
            lost = queue.lost_above(sequence)
            self.retained_bytes -= sum(SentBatch(0, (task,)).size for task in lost)
            lost += self.tracker.lost_above(queue, sequence)
            self.admission.came_back(lost)
            queue.put_back(lost)
            self.confirmed -= len(lost)
            what = "the producer's entry" if sequence < 0 else f"batches above {sequence} of {queue.confirmed}"
            self.shared.note(DataLossSeen(queue.keys.name, what, len(lost)))
            self.tracker.audit_soon(now)
        queue.confirmed = max(0, sequence)

    def forget_old(self, now: int) -> None:
        """An Ok of a batch or heartbeat: what was confirmed a retention time ago is safe enough."""
        for queue in self.queues.values():
            while queue.retained and queue.retained[0].confirmed_at + self.settings.retention_ms <= now:
                self.retained_bytes -= queue.retained.popleft().size

    def _bound_retention(self, now: int) -> None:
        if self.retained_bytes <= self.settings.retention_bytes:
            self.cut = self.cut and self.retained_bytes > self.settings.retention_bytes // 2
            return
        while self.retained_bytes > self.settings.retention_bytes:
            holders = [queue for queue in self.queues.values() if queue.retained]
            queue = min(holders, key=lambda held: held.retained[0].confirmed_at)
            batch = queue.retained.popleft()
            self.retained_bytes -= batch.size
            if not self.cut:
                self.cut = True
                self.shared.note(RetentionCut(queue.keys.name, now - batch.confirmed_at))

    def _refused(self, now: int, operation: str, error: ErrorReply) -> None:
        self.shared.refused(operation, error)
        self.backoff.failed(now, self.shared.entropy)

    def _connection_keys(self) -> list[bytes]:
        return [queue.connection_key for queue in self.queues.values()]

    @property
    def _client(self) -> bytes:
        return self.settings.client_id.encode()
