"""What came back: raw replies, the four outcomes, and what each server error leads to.

A raw reply is what RESP2 gives (bytes, int, list, None); an error reply is an ErrorReply value, never an exception. A
section of a batch ends in one of four outcomes, and no handler may treat one as another:

- Ok: executed. Elements of a transaction may still be errors: EXEC is not all-or-nothing.
- Refused: an error reply. Of a plain section any part may have been applied, of a transaction nothing.
- Aborted: EXEC answered nil, a watched key was touched; nothing was applied.
- Unknown: sent, no answer. It may have been applied, or may be applied later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .errors import ServerRefused


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error reply of the server, or of the attempt to connect."""

    text: str

    @property
    def code(self) -> str:
        """The first word, `WRONGTYPE` for example."""
        return self.text.split(" ", 1)[0]


RawReply = bytes | int | None | ErrorReply | Sequence["RawReply"]


@dataclass(frozen=True, slots=True)
class Ok:
    """Executed; for a transaction, the elements of EXEC's reply."""

    values: Sequence[RawReply]


@dataclass(frozen=True, slots=True)
class Refused:
    """The server answered with `error`. `values` are all replies of a plain section, empty for a transaction."""

    error: ErrorReply
    values: Sequence[RawReply] = ()


@dataclass(frozen=True, slots=True)
class Aborted:
    """A guarded EXEC that applied nothing, since a watched key was touched."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The connection went before the answer."""


Outcome = Ok | Refused | Aborted | Unknown


class Remedy(Enum):
    """What an error reply leads to."""

    WAIT = "wait"
    """Transient: back off and try again."""
    RECONNECT = "reconnect"
    """Transient, and another server may be the right one: drop the connection, connect again."""
    NEW_GROUP = "new group"
    """The consumer group is gone: create it again."""
    RAISE = "raise"
    """Waiting does not cure it: a person must act."""


_WAIT = frozenset({"LOADING", "BUSY", "OOM", "NOREPLICAS", "MISCONF", "TRYAGAIN", "CLUSTERDOWN", "BUSYKEY"})
_RECONNECT = frozenset({"READONLY", "MASTERDOWN", "UNBLOCKED", "MOVED", "ASK", "CONNECTION", "TIMEOUT"})
_RAISE = {
    "NOAUTH": "Give a user name and password in the URL.",
    "WRONGPASS": "Check user name and password.",
    "NOPERM": "Give this user the permission; the documentation lists what is needed.",
    "WRONGTYPE": "A key of a queue holds something else: another program uses the name, or it was restored wrongly.",
    "CROSSSLOT": "Keys of one queue are in different slots; this is a bug, please report it.",
    "TLS": "Check the certificates and the host name.",
    "CONFIGURATION": "Check the URL.",
    "NOPROTO": "This server is too old: Redis 7.0 or Valkey 7.2 is needed.",
    "UNSUPPORTED": "This server is too old: Redis 7.0 or Valkey 7.2 is needed.",
}
_ERR_RAISE = (
    "unknown command",
    "unknown subcommand",
    "wrong number of arguments",
    "syntax error",
    "db index",
    "invalid db",
)


def remedy_for(error: ErrorReply) -> Remedy:
    """The one place where an error reply of any server is classified.

    An error that nobody knows is waited out, and reported each time: a proxy's own texts are mostly of passing nature,
    and a worker that ends for nothing stops consuming.
    """
    code = error.code
    if code in _RAISE:
        return Remedy.RAISE
    if code == "NOGROUP":
        return Remedy.NEW_GROUP
    if code in _WAIT:
        return Remedy.WAIT
    if code in _RECONNECT:
        return Remedy.RECONNECT
    text = error.text.lower()
    if code == "ERR" and any(part in text for part in _ERR_RAISE):
        return Remedy.RAISE
    if "max number of clients" in text:
        return Remedy.RECONNECT
    return Remedy.WAIT


def refusal(error: ErrorReply) -> ServerRefused:
    """The exception for an error that a person must cure."""
    return ServerRefused(error.code, error.text, _RAISE.get(error.code, ""))


def first_error(values: Sequence[RawReply]) -> ErrorReply | None:
    """The first error among replies, or None."""
    for value in values:
        if isinstance(value, ErrorReply):
            return value
    return None


def plain_outcome(replies: Sequence[RawReply]) -> Outcome:
    """The outcome of commands outside a transaction."""
    error = first_error(replies)
    return Ok(replies) if error is None else Refused(error, replies)


def transaction_outcome(replies: Sequence[RawReply]) -> Outcome:
    """The outcome of `MULTI ... EXEC` from the replies of all its commands (Redis documentation, "Transactions")."""
    result = replies[-1]
    if isinstance(result, ErrorReply):
        return Refused(_cause(replies[:-1], result))
    if result is None:
        return Aborted()
    if isinstance(result, list | tuple) and len(result) == len(replies) - 2:
        return Ok(result)
    # No server answers so. What sits in between may have applied it or not.
    return Unknown()


def _cause(queued: Sequence[RawReply], result: ErrorReply) -> ErrorReply:
    """EXECABORT only repeats: the cause is the error of a queued command, or stands in EXECABORT's own text."""
    earlier = first_error(queued)
    if earlier is not None:
        return earlier
    _, found, cause = result.text.partition("because of: ")
    return ErrorReply(cause) if found else result
