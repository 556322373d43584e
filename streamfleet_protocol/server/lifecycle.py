"""The life of a task on a worker, as one table; the only place where that state changes is `Tasks.move`.

A pair that is not in the table cannot occur; meeting it is a bug, and raises InvariantBroken.
"""

from __future__ import annotations

from enum import Enum


class TaskState(Enum):
    """Where a task of this worker is."""

    HELD = "held"
    """It is ours and waits for its handler."""
    RUNNING = "running"
    TIMED_OUT = "timed out"
    """Its handler ran for too long and was asked to stop; whatever it answers, this attempt has failed."""
    RELEASING = "releasing"
    """The server closes, and its handler was asked to stop."""
    LOST = "lost"
    """Another worker has it, or it is gone; the handler was asked to stop, and only a success would count."""
    SUCCEEDED = "succeeded"
    """Its success is being settled."""
    CONCLUDING = "concluding"
    """Another ending is being settled: retry, expiry, dead letter, hand-back. Fenced, so it may fail to be ours."""
    GONE = "gone"
    """Over; the worker has forgotten it."""

    # By identity: an Enum hashes its name in Python, and the table is asked three times a task.
    __hash__ = object.__hash__


class Happening(Enum):
    """What can happen to a task."""

    START = "start"
    SUCCESS = "success"
    FAILURE = "failure"
    """The handler raised, or asked for a retry, or rejected the task."""
    STOPPED = "stopped"
    """The handler stopped because it was asked to."""
    TIMEOUT = "timeout"
    CONCLUDE = "conclude"
    """It ends without a start: expired, undecodable, delivered too often, handed back."""
    LEASE_LOST = "lease lost"
    RELEASE = "release"
    """The server's grace is over."""
    ABANDON = "abandon"
    """The handler was asked to stop and does not; the task is handed back all the same."""
    SETTLED = "settled"

    __hash__ = object.__hash__


_S, _H = TaskState, Happening

TRANSITIONS: dict[tuple[TaskState, Happening], TaskState] = {
    (_S.HELD, _H.START): _S.RUNNING,
    (_S.HELD, _H.CONCLUDE): _S.CONCLUDING,
    (_S.HELD, _H.LEASE_LOST): _S.GONE,
    (_S.RUNNING, _H.SUCCESS): _S.SUCCEEDED,
    (_S.RUNNING, _H.FAILURE): _S.CONCLUDING,
    (_S.RUNNING, _H.STOPPED): _S.CONCLUDING,
    (_S.RUNNING, _H.TIMEOUT): _S.TIMED_OUT,
    (_S.RUNNING, _H.LEASE_LOST): _S.LOST,
    (_S.RUNNING, _H.RELEASE): _S.RELEASING,
    (_S.TIMED_OUT, _H.SUCCESS): _S.CONCLUDING,
    (_S.TIMED_OUT, _H.FAILURE): _S.CONCLUDING,
    (_S.TIMED_OUT, _H.STOPPED): _S.CONCLUDING,
    (_S.TIMED_OUT, _H.LEASE_LOST): _S.LOST,
    (_S.TIMED_OUT, _H.RELEASE): _S.TIMED_OUT,
    (_S.TIMED_OUT, _H.ABANDON): _S.CONCLUDING,
    (_S.RELEASING, _H.SUCCESS): _S.SUCCEEDED,
    (_S.RELEASING, _H.FAILURE): _S.CONCLUDING,
    (_S.RELEASING, _H.STOPPED): _S.CONCLUDING,
    (_S.RELEASING, _H.TIMEOUT): _S.RELEASING,
    (_S.RELEASING, _H.LEASE_LOST): _S.LOST,
    (_S.RELEASING, _H.ABANDON): _S.CONCLUDING,
    (_S.LOST, _H.SUCCESS): _S.SUCCEEDED,
    (_S.LOST, _H.FAILURE): _S.GONE,
    (_S.LOST, _H.STOPPED): _S.GONE,
    (_S.LOST, _H.TIMEOUT): _S.LOST,
    (_S.LOST, _H.RELEASE): _S.LOST,
    (_S.LOST, _H.ABANDON): _S.GONE,
    (_S.SUCCEEDED, _H.SETTLED): _S.GONE,
    (_S.CONCLUDING, _H.SETTLED): _S.GONE,
    (_S.CONCLUDING, _H.LEASE_LOST): _S.GONE,
}

WITH_HANDLER = frozenset({_S.RUNNING, _S.TIMED_OUT, _S.RELEASING, _S.LOST})
"""States in which a handler is at work."""
LEASED = frozenset({_S.HELD, _S.RUNNING, _S.TIMED_OUT, _S.RELEASING})
"""States in which a task that is not pending under this worker any more has lost its lease."""
