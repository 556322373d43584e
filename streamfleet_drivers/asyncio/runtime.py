"""Runs a machine on the event loop: its connections, its timer, its inputs one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry

from streamfleet_protocol.effects import Batch, Connect, Disconnect, Effect, Lane, Noted
from streamfleet_protocol.inputs import Connected, Disconnected, Reply, Several, Timeout
from streamfleet_protocol.machine import Machine
from streamfleet_protocol.replies import ErrorReply

from .. import identity
from ..connection import (
    NO_RETRY,
    ReplyReader,
    check_url,
    connection_arguments,
    connection_error,
    pack,
    unusable_url,
)
from ..facade import OnEvent, tell

Input = TypeVar("Input")

Feed = Callable[[Any], None]

_OURS = frozenset({Batch, Noted, Connect, Disconnect})
"""Effects that are the same for clients and servers."""


class Connector:
    """Makes redis-py connections to one URL."""

    def __init__(self, url: str, connect_timeout_ms: int) -> None:
        check_url(url)
        # A wrong argument in the URL shows here, where the user's call is on the stack.
        try:
            parsed: dict[str, Any] = dict(parse_url(url))
            self._kind: type[AbstractConnection] = parsed.pop("connection_class", redis.asyncio.Connection)
            self._arguments = connection_arguments(parsed, connect_timeout_ms)
            self.make()
        except (ValueError, TypeError, redis.RedisError) as error:
            raise unusable_url(error) from error

    def make(self) -> AbstractConnection:
        """A connection that is not open yet."""
        return self._kind(**self._arguments, retry=Retry(**NO_RETRY))


class Connection(asyncio.Protocol):
    """One connection of a lane: opened by redis-py, then read and written here."""

    def __init__(self, connector: Connector, lane: Lane, generation: int, feed: Feed) -> None:
        self._lane = lane
        self._generation = generation
        self._feed = feed
        self._redis = connector.make()
        self._transport: asyncio.Transport | None = None
        self._reader = ReplyReader()
        self._token = 0
        self._expected = 0
        self._closed = False
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        try:
            await self._redis.connect()  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._abandon()
            raise
        except Exception as error:
            self._lost(connection_error(error))
            return
        # StreamWriter holds the transport; its protocol is ours from here on.
        writer = self._redis._writer
        assert writer is not None
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_protocol(self)
        if transport.is_closing():
            self._lost(ErrorReply("CONNECTION closed by the server"))
        else:
            self._feed(Connected(self._lane, self._generation))

    def write(self, batch: Batch) -> None:
        """Send a batch."""
        self._token = batch.token
        self._expected = len(batch.commands)
        if self._transport is not None:
            self._transport.write(pack(batch.commands))

    def close(self) -> None:
        """Close, or give up opening. What still arrives is dropped."""
        self._closed = True
        self._opening.cancel()
        self._abandon()

    def _abandon(self) -> None:
        """Close the socket at once, and take it from redis-py, which would warn about an open connection."""
        writer = self._redis._writer
        if writer is not None:
            writer.transport.abort()
            self._redis._reader = self._redis._writer = None

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            self._reader.feed(data)
            # With no batch in flight, what arrives is no reply; it must not be taken for the next one's.
            replies = self._reader.take(self._expected if self._token else 0)
        except Exception as error:
            self._lost(ErrorReply(f"CONNECTION unreadable reply: {error}"))
            return
        if replies:
            token, self._token = self._token, 0
            self._feed(Reply(token, replies))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(ErrorReply("CONNECTION closed by the server") if exc is None else connection_error(exc))

    def _lost(self, error: ErrorReply) -> None:
        if not self._closed:
            self.close()
            self._feed(Disconnected(self._lane, self._generation, error))


class Runtime(Generic[Input]):
    """Feeds a machine and does what it wants done."""

    def __init__(
        self,
        machine: Machine[Input],
        connector: Connector,
        perform: Callable[[Effect], None],
        fail: Callable[[Exception], None],
        on_event: OnEvent | None,
    ) -> None:
        self._machine = machine
        self._connector = connector
        self._perform = perform
        self._fail = fail
        self._on_event = on_event
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[Lane, Connection] = {}
        self._inputs: deque[Any] = deque()
        self._together: list[Any] = []
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0

    def feed(self, event: Any) -> None:
        """Let the machine take an input, and do what follows. An input that comes up meanwhile waits its turn."""
        self._inputs.append(event)
        if self._feeding:
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._feeding = True
        try:
            while self._inputs:
                for effect in self._machine.step(identity.now_ms(), self._inputs.popleft()):
                    (self._do if type(effect) in _OURS else self._perform)(effect)
        except Exception as error:
            # A bug, in the machine or here. Whoever waits must hear of it, since nothing will move any more.
            self.stop()
            self._fail(error)
            raise
        finally:
            self._feeding = False
        self._set_timer()

    def feed_together(self, event: Any) -> None:
        """Let the machine take an input with all others that come up in this round of the event loop."""
        if not self._together:
            assert self._loop is not None
            self._loop.call_soon(self._feed_all)
        self._together.append(event)

    def _feed_all(self) -> None:
        events, self._together = self._together, []
        self.feed(events[0] if len(events) == 1 else Several(tuple(events)))

    def check_loop(self) -> None:
        """Raise RuntimeError where the object belongs to another event loop."""
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise RuntimeError("this object belongs to another event loop; make one in each loop")

    def stop(self) -> None:
        """Leave no timer and no connection behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, Batch):
            self._connections[effect.lane].write(effect)
        elif isinstance(effect, Noted):
            tell(effect.note, self._on_event)
        elif isinstance(effect, Connect):
            self._connections[effect.lane] = Connection(self._connector, effect.lane, effect.generation, self.feed)
        elif isinstance(effect, Disconnect):
            connection = self._connections.pop(effect.lane, None)
            if connection is not None:
                connection.close()

    def _set_timer(self) -> None:
        due = self._machine.next_timeout()
        if due is None or self._loop is None:
            return
        if self._timer is not None:
            # A timer that comes too early costs one needless input, less than a timer for each step.
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0, due - identity.now_ms()) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.feed(Timeout())
