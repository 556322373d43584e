"""What a machine wants done, in causal order: command intents for the lanes, and events for the application.

Every effect is frozen and compares by value, so that two runs can be compared effect by effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .commands import Command
from .notes import Note
from .replies import ErrorReply
from .wire import TaskEntry


class Lane(Enum):
    """An ordered command channel, one connection, with one batch in flight."""

    COMMAND = "command"
    READ = "read"
    """For blocking reads, which would hold up everything else."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open the lane's connection and authenticate it; answer Connected or Disconnected with this generation."""

    lane: Lane
    generation: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the lane's connection, or give up opening it. Nothing is answered; what still arrives is dropped."""

    lane: Lane
    generation: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Write these commands in one go; answer Reply with this token and one raw reply a command."""

    token: int
    lane: Lane
    slot: int
    """Cluster slot of the keys (of the first queue, where several queues share the lane)."""
    purposes: tuple[str, ...]
    """What the sections of the batch are for, for traces."""
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Noted:
    """A fact for the user's callback and the log."""

    note: Note


@dataclass(frozen=True, slots=True)
class Faulted:
    """Redis refuses for a reason that a person must cure. A server stops; a client goes on trying."""

    error: ErrorReply


@dataclass(frozen=True, slots=True)
class FaultCleared:
    """What `Faulted` told is over."""


class Rejection(Enum):
    """Why an enqueue call ended early."""

    UNKNOWN_QUEUE = "unknown queue"
    QUEUE_FULL = "queue full"
    TOO_LARGE = "too large"
    CLOSED = "closed"
    FAULT = "fault"
    WITHDRAWN = "withdrawn"


class End(Enum):
    """How a tracked task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Accepted:
    """All tasks of an enqueue call are in the local queue; from now on they are not lost."""

    call: int
    count: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """An enqueue call ended before all its tasks were accepted; the first `accepted` of them were."""

    call: int
    rejection: Rejection
    detail: str
    accepted: int
    error: ErrorReply | None = None


@dataclass(frozen=True, slots=True)
class Flushed:
    """All that was accepted before the flush call is confirmed by Redis."""

    call: int


@dataclass(frozen=True, slots=True)
class Confirmed:
    """These tracked tasks are in Redis."""

    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """A tracked task has ended."""

    task_id: str
    end: End
    text: str = ""
    result: bytes | None = None
    confirmed: bool = True
    """False: concluded from the clock, without a word of a worker."""


@dataclass(frozen=True, slots=True)
class ClientClosed:
    """The client is closed. Its tasks that were not settled have been settled before."""

    confirmed: int
    """Tasks that Redis has confirmed, over the client's whole life."""
    unsent: tuple[str, ...]
    """Ids of the accepted tasks that were never written to a connection."""
    unknown: tuple[str, ...]
    """Ids of those that were written, with no confirmation."""


class StartHandler(NamedTuple):
    """Run the handler of `queue` on this task; answer with the same `run`.

    A tuple, as the answer HandlerSucceeded: one of each is made for every task, at a third of a dataclass's cost.
    """

    run: int
    queue: str
    entry_id: bytes
    entry: TaskEntry
    deliveries: int


@dataclass(frozen=True, slots=True)
class CancelHandler:
    """Ask a running handler to stop; it still answers when it has."""

    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class ServerStopped:
    """The server is closed; `handed_back` tasks were unfinished and are in the queue again."""

    handed_back: int
    unfinished: int
    """Tasks that could not be handed back (Redis was away): their leases run out, then others take them."""


Effect = (
    Connect
    | Disconnect
    | Batch
    | Noted
    | Faulted
    | FaultCleared
    | Accepted
    | Rejected
    | Flushed
    | Confirmed
    | Settled
    | ClientClosed
    | StartHandler
    | CancelHandler
    | ServerStopped
)
