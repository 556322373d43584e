"""The exceptions that a person meets, as one tree.

    StreamfleetError
    ├── UsageError (ValueError)      the call is wrong; nothing was changed
    │   ├── InvalidOption
    │   ├── InvalidQueueName
    │   ├── UnknownQueue
    │   └── NoQueues
    ├── QueueFull                    no room in the local queue, and wait=False
    ├── Closed                       the client or server was closed
    ├── ServerRefused                Redis answered with an error that waiting does not cure
    ├── DecodeError                  bytes that are no entry of wire version 1
    └── TaskError                    how a tracked task ended, other than in success
        ├── TaskFailed
        ├── TaskExpired
        ├── TaskCanceled
        └── OutcomeUnknown

`InvariantBroken` is an AssertionError: a bug in this library. `Retry` and `Reject` are raised *by* handlers.
"""

from __future__ import annotations

from collections.abc import Sequence


class StreamfleetError(Exception):
    """Base of every error of this library."""

    accepted: int = 0
    """How many tasks of the failing enqueue call were accepted before the error; these are kept and sent."""


class UsageError(StreamfleetError, ValueError):
    """The call cannot be carried out as written. Nothing was changed."""


class InvalidOption(UsageError):
    """A setting or an argument has a value that cannot work; the message names it and says what would."""


class InvalidQueueName(UsageError):
    """The queue's name is empty, or would collide with a key of the wire format."""


class UnknownQueue(UsageError):
    """The queue is not among those that the client was made with."""


class NoQueues(UsageError):
    """A client without queues, or a server without handlers."""


class QueueFull(StreamfleetError):
    """The local queue has no room for the task(s), and the call said `wait=False`. None of them was accepted."""


class Closed(StreamfleetError):
    """The client or the server was closed before or during the call."""


class ServerRefused(StreamfleetError):
    """Redis refuses for a reason that waiting does not cure: a wrong password, a missing permission, a key
    of a wrong type, an unknown command.

    `code` is the first word of the reply (`NOPERM`, `WRONGPASS`, `WRONGTYPE` ...), `text` the whole reply.
    """

    def __init__(self, code: str, text: str, advice: str = "") -> None:
        super().__init__(f"{text}{'. ' + advice if advice else ''}")
        self.code = code
        self.text = text


class DecodeError(StreamfleetError):
    """The bytes are no entry of wire version 1; the message says which field is wrong and how."""


class TaskError(StreamfleetError):
    """A tracked task ended other than in success. `task_id` names it."""

    def __init__(self, task_id: str, message: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class TaskFailed(TaskError):
    """The handler failed and no retry is left, or it raised `Reject`. `reason` is the worker's own text."""

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, f"task {task_id} failed: {reason}")
        self.reason = reason


class TaskExpired(TaskError):
    """The task's time ran out before a worker started it.

    `confirmed` is True where that is certain: a worker said so, or the task never left this process. It is False
    where the deadline passed without a word: the task is over for its caller, but a handler may have run.
    """

    def __init__(self, task_id: str, confirmed: bool) -> None:
        certainty = "" if confirmed else "; no worker has confirmed it, a handler may have run"
        super().__init__(task_id, f"task {task_id} expired{certainty}")
        self.confirmed = confirmed


class TaskCanceled(TaskError):
    """The task was given up before it was ever sent (the client was closed), or a worker canceled it."""

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, f"task {task_id} was canceled: {reason}")


class OutcomeUnknown(TaskError):
    """What became of the task cannot be known: it was sent, and the word about its end is lost or not yet there."""

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, f"the outcome of task {task_id} is unknown: {reason}")


class InvariantBroken(AssertionError):
    """A bug in this library. The machine that raised it refuses every further step."""


class Retry(Exception):
    """Raise in a handler: this attempt did not work, try again.

    It counts as a retry. `delay` in seconds replaces the task's own delay, without jitter; None keeps it.
    """

    def __init__(self, delay: float | None = None, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Reject(Exception):
    """Raise in a handler: never try this task again. It goes to the dead letters with `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check(condition: bool, rule: str, *details: object) -> None:
    """Assert an invariant; stays on under `python -O`."""
    if not condition:
        raise InvariantBroken(f"{rule}: {details}" if details else rule)


def one_of(names: Sequence[str]) -> str:
    """`'a', 'b' or 'c'`, for messages."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
