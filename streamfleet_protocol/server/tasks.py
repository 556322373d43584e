"""All tasks of a worker, and how much room there is for more."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from ..errors import DecodeError, InvariantBroken
from ..keys import QueueKeys
from ..settings import ServerSettings
from ..timing import NEVER
from ..wire import Fields, TaskEntry, decode_task
from .lifecycle import TRANSITIONS, WITH_HANDLER, Happening, TaskState

# Looking a member up in its Enum takes longer than all the rest of a move.
_HELD, _RUNNING, _GONE = TaskState.HELD, TaskState.RUNNING, TaskState.GONE
_DURATION_UNITS = 256
_DURATION_WEIGHT = 8


class EndKind(Enum):
    """How a task ends here other than in success."""

    RETRY = "retry"
    EXPIRED = "expired"
    DEAD = "dead letter"
    HAND_BACK = "hand back"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What is to become of a task."""

    kind: EndKind
    reason: str = ""
    delay_ms: int = 0
    """Of a retry; 0 = at once."""


@dataclass(slots=True)
class HeldTask:
    """One entry that this worker has."""

    queue: int
    entry_id: bytes
    fields: Fields
    entry: TaskEntry | None
    """None where the fields cannot be decoded; `problem` then says why."""
    problem: str
    deliveries: int
    serial: int
    """Rises with each task taken."""
    state: TaskState = TaskState.HELD
    run: int = 0
    started_at: int = 0
    timeout_at: int = NEVER
    result: bytes | None = None
    conclusion: Conclusion | None = None
    doubtful: bool = False
    """The last look did not list it as mine: its handler is not started before it is known why."""

    @property
    def task_id(self) -> str:
        """For people: the task's id, or its entry's where it has none."""
        return self.entry.task_id if self.entry is not None else f"(entry {self.entry_id.decode('ascii', 'replace')})"


@dataclass(frozen=True, slots=True)
class ServedQueue:
    """A queue with a handler."""

    index: int
    keys: QueueKeys
    timeout_ms: int

    @property
    def name(self) -> str:
        """The queue's name."""
        return self.keys.name


class Tasks:
    """The table of tasks. Knows no commands."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.by_id: dict[tuple[int, bytes], HeldTask] = {}
        self.waiting: deque[HeldTask] = deque()
        """Those in HELD, in the order of their arrival; and some that have left it, to be passed over."""
        self.running: dict[int, HeldTask] = {}
        """By the number of the handler's run."""
        self.held = 0
        self.reserved = 0
        """Room that a claim under way will fill."""
        self.serial = 0
        self.runs = 0
        self.duration: int | None = None
        """Moving average of the handlers' duration, in 1/256 ms."""

    # The table.

    def take(self, queue: int, entry_id: bytes, fields: Fields, deliveries: int) -> HeldTask | None:
        """An entry is this worker's now; None where it was already."""
        if (queue, entry_id) in self.by_id:
            return None
        entry, problem = None, ""
        try:
            entry = decode_task(fields)
        except DecodeError as error:
            problem = str(error)
        self.serial += 1
        task = HeldTask(queue, entry_id, fields, entry, problem, deliveries, self.serial)
        self.by_id[queue, entry_id] = task
        self.waiting.append(task)
        self.held += 1
        return task

    def move(self, task: HeldTask, happening: Happening) -> TaskState:
        """Let something happen to a task; its new state."""
        before = task.state
        after = TRANSITIONS.get((before, happening))
        if after is None:
            raise InvariantBroken(f"a task's life follows the table: {happening} in {before}")
        if after is before:
            return after
        if before is _HELD:
            self.held -= 1
        if after is _RUNNING:
            self.runs += 1
            task.run = self.runs
            self.running[task.run] = task
        elif before in WITH_HANDLER and after not in WITH_HANDLER:
            del self.running[task.run]
        if after is _GONE:
            del self.by_id[task.queue, task.entry_id]
        task.state = after
        return after

    def of_queue(self, queue: int) -> Iterator[HeldTask]:
        """All tasks of one queue."""
        return (task for task in self.by_id.values() if task.queue == queue)

    def next_held(self, but: Collection[int] = (), *, doubtful: bool = False) -> HeldTask | None:
        """The task that has waited longest for its handler, and is of no queue of `but`.

        A doubtful one only where none is to be started.
        """
        waiting = self.waiting
        while waiting and waiting[0].state is not _HELD:
            waiting.popleft()
        for task in waiting:
            if task.state is _HELD and task.queue not in but and (doubtful or not task.doubtful):
                return task
        return None

    # Room.

    def measured(self, duration_ms: int) -> None:
        """A handler has run for this long."""
        units = duration_ms * _DURATION_UNITS
        if self.duration is None:
            self.duration = units
        else:
            self.duration += (units - self.duration) // _DURATION_WEIGHT

    @property
    def prefetch(self) -> int:
        """How many tasks may be held beyond those that run: a little work, so that an idle worker gets the rest."""
        settings = self.settings
        if settings.prefetch is not None:
            return settings.prefetch
        if self.duration is None:
            return 0
        work = settings.concurrency * settings.prefetch_work_ms * _DURATION_UNITS
        return min(settings.prefetch_most, work // max(self.duration, _DURATION_UNITS // 4))

    @property
    def room(self) -> int:
        """How many more tasks may be taken."""
        taken = self.held + len(self.running) + self.reserved
        return self.settings.concurrency + self.prefetch - taken

    @property
    def unsettled(self) -> int:
        """Tasks whose handler is done, and whose ending Redis has not confirmed."""
        return len(self.by_id) - self.held - len(self.running)
