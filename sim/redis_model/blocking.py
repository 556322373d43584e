"""Connections that are blocked: who waits, who is served in which order, and when a wait is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import CommandError, ErrorReply
from .keyspace import Keyspace
from .reading import check_again, read, serve_one_stream
from .replicas import Replicas
from .replies import ReadRequest, Reply
from .streams import Stream


@dataclass(slots=True)
class Reader:
    """A connection that waits."""

    connection: int
    request: ReadRequest
    deadline: int | None
    """On the server's wall clock, which may jump; None: no end."""
    asking: bool
    """ASKING came before: it is served in a slot that is being imported."""


@dataclass(slots=True)
class Waiter:
    """A connection in WAIT."""

    connection: int
    deadline: int | None
    """As that of a reader."""
    wanted: int
    """Replies once so many replicas have acknowledged."""
    offset: int
    """Up to where."""


class Readers:
    """The blocked connections of a server, readers for the most part, in the order of their arrival."""

    __slots__ = ("_keys", "_refusal", "_replicas", "by_connection", "unblocked")

    def __init__(self, keys: Keyspace, replicas: Replicas, refusal: Callable[[Reader], ErrorReply | None]) -> None:
        self._keys = keys
        self._replicas = replicas
        self._refusal = refusal
        self.by_connection: dict[int, Reader | Waiter] = {}
        self.unblocked: list[tuple[int, Reply]] = []
        """Replies not taken yet."""

    def wait(self, connection: int, timeout: int, wanted: int, offset: int) -> None:
        """The connection waits for replicas from now on."""
        deadline = self._keys.now + timeout if timeout else None
        self.by_connection[connection] = Waiter(connection, deadline, wanted, offset)

    def block(self, connection: int, request: ReadRequest, now: int, *, asking: bool) -> None:
        """The connection waits for entries from now on."""
        deadline = now + request.block_ms if request.block_ms else None
        self.by_connection[connection] = Reader(connection, request, deadline, asking)
        blocked = self._keys.blocked
        for key in request.keys:
            blocked[key] = blocked.get(key, 0) + 1

    def remove(self, connection: int) -> Reader | Waiter | None:
        """The connection waits no more, without a reply."""
        reader = self.by_connection.pop(connection, None)
        if isinstance(reader, Reader):
            blocked = self._keys.blocked
            for key in reader.request.keys:
                blocked[key] -= 1
                if not blocked[key]:
                    del blocked[key]
        return reader

    def answer(self, connection: int, reply: Reply) -> bool:
        """Ends the wait with that reply; returns whether there was one."""
        if self.remove(connection) is None:
            return False
        self.unblocked.append((connection, reply))
        return True

    def forget_replies(self, connection: int) -> None:
        """Nobody will take the replies to that connection."""
        self.unblocked = [(number, reply) for number, reply in self.unblocked if number != connection]

    def clear(self) -> None:
        """All are gone, and so are replies that nobody took."""
        self.by_connection.clear()
        self._keys.blocked.clear()
        self._keys.ready.clear()
        self.unblocked.clear()

    def next_deadline(self) -> int | None:
        """When the next wait ends."""
        deadlines = [r.deadline for r in self.by_connection.values() if r.deadline is not None]
        return min(deadlines, default=None)

    def end_overdue(self) -> list[tuple[int, Reply]]:
        """Ends the waits whose time is over, by deadline, then connection; returns the replies."""
        now = self._keys.now
        due = [
            (reader.deadline, reader.connection)
            for reader in self.by_connection.values()
            if reader.deadline is not None and reader.deadline <= now
        ]
        due.sort()
        return [(connection, self._timeout_reply(self.remove(connection))) for _, connection in due]

    def time_out(self, connection: int) -> bool:
        """Ends the wait as if its time was over; returns whether there was one."""
        waiting = self.remove(connection)
        if waiting is not None:
            self.unblocked.append((connection, self._timeout_reply(waiting)))
        return waiting is not None

    def _timeout_reply(self, waiting: Reader | Waiter | None) -> Reply:
        return self._replicas.acknowledged(waiting.offset) if isinstance(waiting, Waiter) else None

    def acknowledge(self) -> None:
        """Replicas may have acknowledged more: WAITs end, the newest first.

        Whoever follows one that waited for more, and wants no more replicas, gets its number, as servers give it.
        """
        offset = count = -1
        for waiter in reversed(self.by_connection.copy().values()):
            if not isinstance(waiter, Waiter):
                continue
            if not (0 < waiter.offset <= offset and waiter.wanted <= count):
                acknowledged = self._replicas.acknowledged(waiter.offset)
                if acknowledged < waiter.wanted:
                    continue
                offset, count = waiter.offset, acknowledged
            self.answer(waiter.connection, count)

    def serve(self) -> None:
        """Looks at the readers of all keys signalled by the command, or the EXEC, that just ended."""
        keys = self._keys
        serve_key = self._run_again if keys.version.reexecutes else self._serve_one_key
        while keys.ready:
            ready = list(keys.ready)
            keys.ready.clear()
            for key in ready:
                waiting = [r for r in self.by_connection.values() if isinstance(r, Reader)]
                serve_key(key, [reader for reader in waiting if key in reader.request.keys])

    def _run_again(self, key: bytes, readers: list[Reader]) -> None:
        """7.2 on: the whole command runs again; one that still finds nothing waits on, as the newest."""
        keys = self._keys
        for reader in readers:
            request = reader.request
            if request.group is None and not isinstance(keys.data.get(key), Stream):
                continue
            reply: Reply = self._refusal(reader)
            if reply is None:
                try:
                    check_again(keys, request)
                    reply = read(keys, request)
                except CommandError as error:
                    reply = error.reply
            if reply is None:
                self.by_connection[reader.connection] = self.by_connection.pop(reader.connection)
            else:
                self.answer(reader.connection, reply)

    def _serve_one_key(self, key: bytes, readers: list[Reader]) -> None:
        """7.0: each reader gets the stream that woke it; readers of a group learn that the stream is gone."""
        keys = self._keys
        if not isinstance(keys.data.get(key), Stream):
            for reader in readers:
                if reader.request.group is not None:
                    self.answer(reader.connection, ErrorReply("UNBLOCKED the stream key no longer exists"))
            return
        for reader in readers:
            try:
                reply = serve_one_stream(keys, reader.request, key)
            except CommandError as error:
                reply = error.reply
            if reply is not None:
                self.answer(reader.connection, reply)
