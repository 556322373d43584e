"""What a command comes to: a reply, or a wait for one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

from .errors import ErrorReply

# As hiredis gives them in RESP2. The list's elements are replies again.
Reply = bytes | int | None | ErrorReply | list[Any]


class Blocked(Enum):
    """The type of `BLOCKED`."""

    BLOCKED = "blocked"


BLOCKED: Final = Blocked.BLOCKED
"""Instead of a reply: the connection waits, its reply comes later."""

Outcome = Reply | Literal[Blocked.BLOCKED]

OK: Final = b"OK"
QUEUED: Final = b"QUEUED"


@dataclass(slots=True)
class ReadRequest:
    """A parsed XREAD or XREADGROUP; what a blocked reader is served by."""

    keys: tuple[bytes, ...]
    after: tuple[int, ...]
    """Per key the id to read above; `NEW_ENTRIES` for `>`."""
    count: int
    """0: no limit."""
    block_ms: int | None
    group: bytes | None
    consumer: bytes
    noack: bool
