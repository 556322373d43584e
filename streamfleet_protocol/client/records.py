"""What a client holds of a task, and of a queue: waiting, in flight, confirmed and retained.

Each accepted task has an ordinal; whatever goes out again does so in the order of the ordinals. Each batch of a queue
has a number; the server keeps the number of the last batch it applied, in the same transaction as the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .. import commands
from ..commands import Command
from ..inputs import TaskOptions
from ..keys import QueueKeys
from ..members import pack_member
from ..replies import ErrorReply, RawReply
from ..timing import NEVER, RedisClock
from ..wire import Fields, TaskEntry, encode_task

TASK_OVERHEAD_BYTES = 400
"""What a retained task costs beyond its payload, about."""


@dataclass(slots=True)
class Outgoing:
    """A task that was accepted, and until it may be forgotten."""

    ordinal: int
    task_id: str
    data: bytes
    options: TaskOptions
    tracked: bool
    accepted_at: int
    fields: Fields | None = None
    """The entry as it is sent; fixed when it is sent for the first time."""
    due_ts: int = 0
    expires_ts: int = 0
    delayed: bool = False
    """When it was sent last it went to the delayed set, not to the stream."""
    written: bool = False
    """It was in a batch that was given to a connection."""
    settled: bool = False
    """Its handle has settled, so it need not be sent (again)."""

    def encode(self, client_id: str, now: int, redis_ms: int) -> Fields:
        """The entry's fields; times that count from the acceptance become times of Redis's clock, once."""
        if self.fields is None:
            options = self.options
            since_acceptance = now - self.accepted_at
            self.due_ts = options.due_ts
            if options.delay_ms:
                self.due_ts = redis_ms + options.delay_ms - since_acceptance
            self.expires_ts = options.expires_ts
            if options.expires_in_ms:
                self.expires_ts = redis_ms + options.expires_in_ms - since_acceptance
            self.fields = encode_task(
                TaskEntry(
                    task_id=self.task_id,
                    client_id=client_id,
                    data=self.data,
                    max_retries=options.max_retries or 0,
                    expires_ts=self.expires_ts,
                    retry_delay_ms=options.retry_delay_ms,
                    send_notif=self.tracked,
                    retry_backoff=options.retry_backoff,
                    retry_delay_max_ms=options.retry_delay_max_ms,
                    no_retry=options.max_retries == 0,
                )
            )
        return self.fields

    def command(self, keys: QueueKeys, redis_ms: int) -> Command:
        """What puts it into Redis: into the stream, or, before its time, into the delayed set."""
        assert self.fields is not None
        self.delayed = self.due_ts > redis_ms
        if self.delayed:
            return commands.sorted_add(keys.delayed, self.due_ts, pack_member(self.fields))
        return commands.append(keys.stream, self.fields)

    def over_at(self, clock: RedisClock) -> int:
        """The own time at which its time is over; not by Redis's clock where it counts from the acceptance, unsent."""
        if self.fields is None and self.options.expires_in_ms:
            return self.accepted_at + self.options.expires_in_ms
        expires_ts = self.options.expires_ts if self.fields is None else self.expires_ts
        return clock.own(expires_ts) if expires_ts else NEVER


@dataclass(slots=True)
class SentBatch:
    """The tasks of one batch, of one queue."""

    number: int
    tasks: tuple[Outgoing, ...]
    confirmed_at: int = NEVER

    @property
    def size(self) -> int:
        """Bytes held by it, about."""
        return sum(len(task.data) + TASK_OVERHEAD_BYTES for task in self.tasks)


@dataclass(slots=True)
class QueueOutbox:
    """All that a client holds for one queue, handles apart."""

    keys: QueueKeys
    connection_key: bytes
    waiting: deque[Outgoing] = field(default_factory=deque)
    in_flight: SentBatch | None = None
    retained: deque[SentBatch] = field(default_factory=deque)
    """Confirmed batches, their untracked tasks only."""
    sequence: int = 0
    """Number of the last batch that was sent."""
    confirmed: int = 0
    """Number of the last batch that is known to be applied."""

    def put_back(self, tasks: Iterable[Outgoing]) -> None:
        """Tasks that are missing in Redis go to the front of the queue."""
        self.waiting = deque(sorted([*tasks, *self.waiting], key=lambda task: task.ordinal))

    def take_back(self, stream: RawReply, delayed: RawReply) -> None:
        """Where a key holds something else, by the replies about it, what was in flight to it is not there.

        The sequence does not show that: in one transaction a wrong type stops only the commands on that key.
        """
        wrong = [isinstance(reply, ErrorReply) and reply.code == "WRONGTYPE" for reply in (stream, delayed)]
        if self.in_flight is None or not any(wrong):
            return
        number, tasks = self.in_flight.number, self.in_flight.tasks
        kept = tuple(task for task in tasks if not wrong[task.delayed])
        self.in_flight = SentBatch(number, kept) if kept else None
        self.put_back(task for task in tasks if wrong[task.delayed])

    def first_over_at(self, clock: RedisClock) -> int:
        """The own time from which the first waiting task need not be sent any more."""
        if not self.waiting:
            return NEVER
        return 0 if self.waiting[0].settled else self.waiting[0].over_at(clock)

    def oldest_unconfirmed(self) -> int:
        """The lowest ordinal that is not confirmed; NEVER where all are."""
        oldest = self.waiting[0].ordinal if self.waiting else NEVER
        return min(oldest, self.in_flight.tasks[0].ordinal) if self.in_flight else oldest

    def lost_above(self, sequence: int) -> list[Outgoing]:
        """Take out the retained tasks of all batches above `sequence`."""
        lost = [task for batch in self.retained if batch.number > sequence for task in batch.tasks]
        self.retained = deque(batch for batch in self.retained if batch.number <= sequence)
        return lost
