"""What all drivers' connections share: URLs, packing, replies, and errors as the machines take them.

redis-py parses the URL, opens the connection and authenticates. From then on the socket is ours: it is written with
packed commands and read with hiredis' reader, many replies to a receive. redis-py's own retries are off, since only
the machine decides what is sent again.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import hiredis
import redis
from redis.backoff import NoBackoff

from streamfleet_protocol.commands import Command
from streamfleet_protocol.errors import InvalidOption
from streamfleet_protocol.replies import ErrorReply, RawReply

_SCHEMES = ("redis", "rediss", "unix")
_NOT_ENOUGH = object()


def check_url(url: str) -> None:
    """Raise InvalidOption unless the URL is of a form that can be connected to."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
        _ = parts.port
    except ValueError:
        # Neither its text nor the URL's parts are shown: they may hold a piece of a password.
        raise InvalidOption(
            "the URL's port is not a number from 0 to 65535, or a bracket is open; in a user name or password "
            "'/', '?', '#', '[', ']' are written as %2F, %3F, %23, %5B, %5D"
        ) from None
    if parts.scheme not in _SCHEMES:
        raise InvalidOption(
            f"a URL with the scheme {parts.scheme!r} is not known; it begins with redis://, rediss:// or unix://"
        )
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        # redis-py would silently use database 0.
        raise InvalidOption("the URL's path is not the number of a database, as in redis://host/5")


def unusable_url(error: Exception) -> InvalidOption:
    """What redis-py's own objection to a URL that passed `check_url` means."""
    return InvalidOption(f"the URL cannot be used: {error}")


def connection_arguments(parsed: Mapping[str, Any], connect_timeout_ms: int) -> dict[str, Any]:
    """Arguments of a redis-py connection, from its own parsing of a URL and what we insist on."""
    return {
        **parsed,
        "protocol": 2,
        "decode_responses": False,
        "health_check_interval": 0,
        "socket_connect_timeout": connect_timeout_ms / 1000,
        # A limit on the handshake only: the machine gives up whatever takes too long.
        "socket_timeout": connect_timeout_ms / 1000,
    }


def pack(commands: Iterable[Command]) -> bytes:
    """The commands as they are written to the socket."""
    return b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]


class ReplyReader:
    """Collects the replies of one batch at a time."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=_error_reply, notEnoughData=_NOT_ENOUGH)
        self._replies: list[RawReply] = []

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        self._reader.feed(data)

    def take(self, count: int) -> list[RawReply] | None:
        """The next `count` replies, once all of them are there. Raises hiredis.ProtocolError for garbage.

        More replies than commands are garbage too: whatever follows could be taken for another command's.
        """
        gets, replies = self._reader.gets, self._replies
        while True:
            reply = gets()
            if reply is _NOT_ENOUGH:
                break
            replies.append(reply)
        if len(replies) > count:
            raise hiredis.ProtocolError(f"a reply that nobody asked for: {replies[count]!r}")
        if len(replies) < count:
            return None
        self._replies = []
        return replies


def connection_error(error: BaseException) -> ErrorReply:
    """Why a connection could not be opened, or was lost. Never contains a password."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ErrorReply(f"TLS {cause.verify_message or cause}")
        cause = cause.__cause__ or cause.__context__
    text = str(error) or type(error).__name__
    code = getattr(error, "status_code", None)
    for kind, its_code in _CODES.items():
        if code is None and isinstance(error, kind):
            code = its_code
    if code is not None and text.startswith(f"{code} "):
        return ErrorReply(text)
    if code is None and isinstance(error, redis.ResponseError):
        # redis-py leaves the code in the text of the errors that it has no class for.
        first = text.split(" ", 1)[0]
        return ErrorReply(text if first.isupper() else f"ERR {text}")
    return ErrorReply(f"{code or 'CONNECTION'} {text}")


def _error_reply(text: str | bytes) -> Any:
    return ErrorReply(text if isinstance(text, str) else text.decode("utf-8", "replace"))


NO_RETRY: dict[str, Any] = {"retries": 0, "backoff": NoBackoff()}
"""Arguments of a `Retry` that never tries again."""

_CODES: dict[type[BaseException], str] = {
    redis.exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    redis.exceptions.AuthenticationError: "WRONGPASS",
    redis.exceptions.AuthorizationError: "NOPERM",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.TimeoutError: "TIMEOUT",
    TimeoutError: "TIMEOUT",
}
