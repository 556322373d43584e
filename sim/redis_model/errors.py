"""Error replies, and what the model raises instead of guessing."""

from __future__ import annotations

from streamfleet_protocol.replies import ErrorReply

__all__ = ["CommandError", "ErrorReply", "NotModelledError"]

SYNTAX = "ERR syntax error"
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_AN_INTEGER = "ERR value is not an integer or out of range"
NOT_A_FLOAT = "ERR value is not a valid float"
INVALID_ID = "ERR Invalid stream ID specified as stream command argument"


class CommandError(Exception):
    """A command answers with an error; it is never seen outside of the model."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.reply = ErrorReply(text)


class NotModelledError(Exception):
    """A real server has this command or option, the model has not: a wrong reply would be worse than none."""


def wrong_arity(name: str) -> CommandError:
    """The error for a wrong number of arguments; `name` as the server spells it (`xgroup|create`)."""
    return CommandError(f"ERR wrong number of arguments for '{name}' command")
