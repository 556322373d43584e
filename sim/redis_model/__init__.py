"""A model of a Redis or Valkey server: deterministic, in memory, with a clock from outside.

`ModelServer` serves the commands that the protocol emits, reply for reply like Redis 7.0, Redis 8.2 and
Valkey 9.1; a differential test holds it to them. What it has not raises `NotModelledError`, no guess.
"""

from .errors import ErrorReply, NotModelledError
from .keyspace import Snapshot
from .observer import Observer
from .replies import BLOCKED, Blocked, Outcome, Reply
from .server import Connection, ModelServer
from .slots import OWNED, UNASSIGNED, Elsewhere, Importing, Migrating, Owned, Slots, SlotState, Unassigned
from .versions import VERSIONS, Version, VersionName

__all__ = [
    "BLOCKED",
    "OWNED",
    "UNASSIGNED",
    "VERSIONS",
    "Blocked",
    "Connection",
    "Elsewhere",
    "ErrorReply",
    "Importing",
    "Migrating",
    "ModelServer",
    "NotModelledError",
    "Observer",
    "Outcome",
    "Owned",
    "Reply",
    "SlotState",
    "Slots",
    "Snapshot",
    "Unassigned",
    "Version",
    "VersionName",
]
