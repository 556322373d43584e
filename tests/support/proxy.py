"""A TCP proxy before a Redis server whose faults are aimed at single writes of a client.

The proxy reads both directions as RESP: it knows which commands a write carries, and which bytes that come
back are the replies to them. So a test can say "lose the reply of the EXEC that carries an XADD", and it
happens after the server has executed it, and to nothing else.

*One write* is all commands that have arrived when the proxy looks, together with what obviously belongs to
them: TCP may cut a write into any segments, so as long as a fault is armed a command that has begun is waited
for, and so is the EXEC of a MULTI. (A client which waits for the reply to its MULTI before it sends more
would then wait for ever: faults are for pipelined transactions.)

Replies are counted, one for each command, so pub/sub, MONITOR and CLIENT REPLY OFF don't go well with faults.
Anything that isn't RESP is passed through, without faults aimed at it.

An own event loop in an own thread does the work. One thread touches all state, so a fault takes effect
between two events and never halfway; the methods may be called from any thread, and block until it is done.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, Self, TypeVar

Command = list[bytes]
Match = Callable[[list[Command]], bool] | Iterable[bytes]

T = TypeVar("T")
_F = TypeVar("_F", bound="Fault")

HOST = "127.0.0.1"
TIMEOUT = 10.0  # seconds that any method blocks at most

_Action = Literal["cut_reply", "cut_request", "hold"]


class Fault:
    """A fault that waits for matching writes, and what became of it.

    `hits` counts how often it happened, `happened` is set from the first time on, `writes` has the commands
    of each write it happened to. From asyncio, poll `hits`; `wait` blocks the thread.
    """

    def __init__(self, proxy: Proxy, action: _Action, match: Match, times: int | None) -> None:
        self._proxy = proxy
        self._action = action
        self._match = match if callable(match) else _names(match)
        self._remaining = times
        self._disarmed = False
        self._changed = threading.Condition()
        self.happened = threading.Event()
        self.hits = 0
        self.writes: list[list[Command]] = []

    def wait(self, hits: int = 1, timeout: float = TIMEOUT) -> None:
        """Blocks until the fault has happened `hits` times; `AssertionError` after `timeout` seconds."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self.hits >= hits, timeout)
        if not reached:
            message = f"{self._action} happened {self.hits} times in {timeout:g} s, not {hits} times"
            raise AssertionError(message) from self._proxy.error

    def disarm(self) -> None:
        """Lets all further writes pass; a write already taken is dealt with to the end."""
        self._proxy._call(self._disarm)

    def _disarm(self) -> None:
        self._disarmed = True

    @property
    def _armed(self) -> bool:
        return not self._disarmed and (self._remaining is None or self._remaining > 0)

    def _takes(self, commands: list[Command]) -> bool:
        """Whether the fault is for this write; it then counts as used until `_give_back`."""
        if not self._armed or not self._match(commands):
            return False
        if self._remaining is not None:
            self._remaining -= 1
        return True

    def _give_back(self) -> None:
        if self._remaining is not None:
            self._remaining += 1

    def _hit(self, commands: list[Command]) -> None:
        with self._changed:
            self.writes.append(commands)
            self.hits += 1
            self.happened.set()
            self._changed.notify_all()


class Hold(Fault):
    """A fault that keeps writes back; see `Proxy.hold`."""

    def __init__(self, proxy: Proxy, match: Match, times: int | None) -> None:
        super().__init__(proxy, "hold", match, times)
        self._held: list[_Taken] = []

    def release(self, timeout: float = TIMEOUT) -> list[bytes]:
        """Sends what is held to the server, each write on the connection it was meant for.

        Blocks until the server has answered all of it, and returns the raw replies, one string for each
        write, in the order of the hits. Raises `ConnectionError` if the server has closed such a connection,
        and `TimeoutError` after `timeout` seconds.
        """
        held = self._proxy._call(self._send)
        return [self._proxy._result(one.reply, timeout) for one in held]

    def _send(self) -> list[_Taken]:
        held, self._held = self._held, []
        for one in held:
            one.send()
        return held


class Proxy:
    """A TCP proxy on 127.0.0.1 to a server on `target_port`; a context manager.

    `refuse`, `stall`, `flow`, `cut_all` concern all connections; `cut_reply`, `cut_request`, `hold` arm a
    fault for the writes that match. A match is a function of the commands of one write (each a list of
    arguments), or a set of command names in capitals which must all appear in it. `times` is how many writes
    are met, None meaning all. Of several armed faults, the first armed meets a write.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.connections = 0
        """Connections accepted so far, without those refused."""
        self.refused = 0
        """Connections refused so far."""
        self.commands: Counter[bytes] = Counter()
        """How often each command arrived from clients, by its name in capitals, whatever became of it."""
        self.error: BaseException | None = None
        """What a match function raised; `close` raises it again."""
        self._refuse = False
        self._stalled = False
        self._faults: list[Fault] = []
        self._links: set[_Link] = set()
        self._sides: set[_Side] = set()  # also those of links that are given up and not closed yet
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port of the proxy, from its start on."""
        return self._port

    @property
    def url(self) -> str:
        """The URL of database 0 through the proxy."""
        return f"redis://{HOST}:{self._port}/0"

    def start(self) -> None:
        """Listens. Once for each proxy."""
        self._thread.start()
        listening = self._loop.create_server(lambda: _Link(self).client, HOST, 0, backlog=1024)
        self._listener = asyncio.run_coroutine_threadsafe(listening, self._loop).result(TIMEOUT)
        self._port = self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Closes all connections and ends the thread; raises again what a match function raised."""
        if self._loop.is_closed():
            return
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(TIMEOUT)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(TIMEOUT)
        self._loop.close()
        if self.error is not None:
            raise self.error

    def cut_reply(self, match: Match, times: int | None = 1) -> Fault:
        """Loses the reply to a write: the server has executed all of it, the client sees a closed connection.

        The write is forwarded; when the reply to its last command begins to arrive, both sides are closed.
        Replies to earlier writes are still passed on; later writes on this connection are lost.
        """
        return self._arm(Fault(self, "cut_reply", match, times))

    def cut_request(self, match: Match, times: int | None = 1) -> Fault:
        """Loses a write: both sides are closed, and the server never sees any of it."""
        return self._arm(Fault(self, "cut_request", match, times))

    def hold(self, match: Match, times: int | None = 1) -> Hold:
        """Delays a write beyond its connection: the client side is closed at once, the server side stays.

        `Hold.release` sends what was held on that old connection: bytes still in the pipes of a connection
        which the client has given up long ago.
        """
        return self._arm(Hold(self, match, times))

    def cut_all(self) -> int:
        """Closes both sides of all current connections, and returns how many. What is held stays held."""

        def cut() -> int:
            links = list(self._links)
            for link in links:
                link.abort()
            return len(links)

        return self._call(cut)

    @property
    def refuse(self) -> bool:
        """Whether new connections are closed as soon as they are accepted; those that exist stay open."""
        return self._refuse

    @refuse.setter
    def refuse(self, value: bool) -> None:
        self._call(lambda: setattr(self, "_refuse", value))

    def stall(self) -> None:
        """Forwards nothing from now on, in neither direction, not even a close; all connections stay open."""
        self._set_stalled(True)

    def flow(self) -> None:
        """Ends `stall`: everything that came meanwhile is forwarded."""
        self._set_stalled(False)

    @property
    def open_connections(self) -> int:
        """How many connections are open at this moment."""
        return len(self._links)

    def _set_stalled(self, value: bool) -> None:
        def apply() -> None:
            self._stalled = value
            for link in self._links:
                link.update_reading()

        self._call(apply)

    def _arm(self, fault: _F) -> _F:
        self._call(lambda: self._faults.append(fault))
        return fault

    def _call(self, function: Callable[[], T]) -> T:
        """Runs a function in the proxy's thread and returns its result."""
        if threading.get_ident() == self._thread.ident:
            return function()

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(TIMEOUT)

    def _result(self, future: asyncio.Future[bytes], timeout: float) -> bytes:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(future, timeout), self._loop).result()

    async def _shut_down(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self._links.clear()
        for side in list(self._sides):
            side.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close their sockets in the next round of the loop

    def _any_armed(self) -> bool:
        return any(fault._armed for fault in self._faults)

    def _fault_for(self, commands: list[Command]) -> Fault | None:
        for fault in self._faults:
            try:
                if fault._takes(commands):
                    return fault
            except Exception as error:
                fault._disarm()
                self.error = self.error or error
        return None


class _Link:
    """One connection of a client, with its connection to the server."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client = _ClientSide(self)
        self.server = _ServerSide(self)
        self.opening: asyncio.Task[None] | None = None
        self.requests = RequestParser()
        self.replies = ReplyScanner()
        self.sent = 0  # commands taken to be sent to the server
        self.answered = 0  # complete replies from the server
        self.in_multi = False
        self.opaque = False  # not RESP: forward blindly
        self.waiting = bytearray()  # from the client, not yet taken
        self.waiting_commands: list[Command] = []  # those complete in `waiting`
        self.taken: _Taken | None = None  # the write that a fault has met; nothing after it is forwarded

    def accepted(self) -> None:
        proxy = self.proxy
        if proxy._refuse:
            proxy.refused += 1
            self.client.abort()
            return
        proxy.connections += 1
        proxy._links.add(self)
        self.update_reading()
        self.opening = proxy._loop.create_task(self.open())

    async def open(self) -> None:
        try:
            await self.proxy._loop.create_connection(lambda: self.server, HOST, self.proxy.target_port)
        except OSError:
            self.abort()
            return
        if self not in self.proxy._links:  # cut meanwhile
            self.server.abort()
        self.update_reading()

    def update_reading(self) -> None:
        """Reads from a side unless stalled, or the other side takes no more: no buffer of ours may grow."""
        flowing = not self.proxy._stalled
        held = self.taken is not None and self.taken.is_held
        self.client.read(flowing and self.server.is_open and not self.server.is_full)
        self.server.read(held or (flowing and not self.client.is_full))

    def abort(self) -> None:
        """Closes both sides at once."""
        self.proxy._links.discard(self)
        self.give_back()
        self.client.abort()
        self.server.abort()

    def give_back(self) -> None:
        """Arms the fault again that has met a write in vain."""
        taken = self.taken
        if taken is not None and not taken.is_held:
            # One side went before the server had answered: nobody knows whether a reply was lost.
            self.taken = None
            taken.fault._give_back()

    def client_lost(self) -> None:
        self.proxy._links.discard(self)
        self.give_back()
        if self.taken is None:
            # The part of a write that had arrived would have reached the server, too.
            self.server.write(bytes(self.waiting))
            self.waiting.clear()
            self.server.close()

    def server_lost(self) -> None:
        self.proxy._links.discard(self)
        self.give_back()
        if self.taken is not None:
            self.taken.lost()
        self.client.close()

    def from_client(self, data: bytes) -> None:
        if self.taken is not None:
            return
        self.waiting += data
        if not self.opaque:
            try:
                for command in self.requests.feed(data):
                    self.saw(command)
            except ValueError:
                self.opaque = True
        if not self.opaque and self.proxy._any_armed():
            if self.in_multi or self.requests.is_inside:
                return
            fault = self.proxy._fault_for(self.waiting_commands) if self.waiting_commands else None
            if fault is not None:
                self.meet(fault)
                return
        self.take()
        self.server.write(bytes(self.waiting))
        self.waiting.clear()

    def saw(self, command: Command) -> None:
        name = command[0].upper()
        self.proxy.commands[name] += 1
        self.waiting_commands.append(command)
        if name == b"MULTI":
            self.in_multi = True
        elif name in (b"EXEC", b"DISCARD"):
            self.in_multi = False

    def take(self) -> list[Command]:
        commands, self.waiting_commands = self.waiting_commands, []
        self.sent += len(commands)
        return commands

    def meet(self, fault: Fault) -> None:
        """Does what the fault says to the waiting write."""
        first = self.sent
        commands = self.take()
        data = bytes(self.waiting)
        self.waiting.clear()
        if fault._action == "cut_request":
            self.abort()
            fault._hit(commands)
            return
        self.taken = _Taken(self, fault, commands, data, first)
        if fault._action == "cut_reply":
            self.server.write(data)
            return
        assert isinstance(fault, Hold)
        self.proxy._links.discard(self)
        self.client.abort()
        self.update_reading()
        fault._held.append(self.taken)
        fault._hit(commands)

    def from_server(self, data: bytes) -> None:
        ends = [] if self.opaque else self.replies.feed(data)
        before = self.answered
        self.answered += len(ends)
        taken = self.taken
        if taken is None:
            self.client.write(data)
            return
        own = _end_of(ends, taken.first - before, len(data))
        if taken.is_held:
            taken.collect(data[own:], complete=self.answered >= taken.last)
            return
        self.client.write(data[:own])
        if _end_of(ends, taken.last - 1 - before, len(data)) < len(data):
            self.taken = None
            self.proxy._links.discard(self)
            self.client.close()  # in order, so that the replies to earlier writes still arrive
            self.server.abort()
            taken.fault._hit(taken.commands)


class _Taken:
    """A write that a fault has met; replies `first` to `last` (exclusive) of its connection are its own."""

    def __init__(self, link: _Link, fault: Fault, commands: list[Command], data: bytes, first: int) -> None:
        self.fault = fault
        self.is_held = isinstance(fault, Hold)
        self.commands = commands
        self.first = first
        self.last = first + len(commands)
        self.reply: asyncio.Future[bytes] = link.proxy._loop.create_future()
        self._link = link
        self._data = data
        self._collected = bytearray()

    def send(self) -> None:
        """Sends what was held."""
        self._link.server.write(self._data)

    def collect(self, data: bytes, complete: bool) -> None:
        """Takes bytes of the reply to what was held."""
        self._collected += data
        if complete and not self.reply.done():
            self.reply.set_result(bytes(self._collected))
            self._link.server.abort()

    def lost(self) -> None:
        """The connection to the server is gone."""
        if not self.reply.done():
            self.reply.set_exception(ConnectionError("the server side of a held write was closed"))
            self.reply.exception()  # it is no fault if nobody asks


class _Side(asyncio.Protocol):
    """One of the two TCP connections of a link."""

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.is_full = False
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.link.proxy._sides.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.proxy._sides.discard(self)

    def pause_writing(self) -> None:
        self.is_full = True
        self.link.update_reading()

    def resume_writing(self) -> None:
        self.is_full = False
        self.link.update_reading()

    def read(self, wanted: bool) -> None:
        if self._transport is not None:
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Closes once everything written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()


class _ClientSide(_Side):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.link.accepted()

    def data_received(self, data: bytes) -> None:
        self.link.from_client(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.link.client_lost()


class _ServerSide(_Side):
    def data_received(self, data: bytes) -> None:
        self.link.from_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.link.server_lost()


class RequestParser:
    """Cuts a client's byte stream into commands, however it was segmented."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_inside(self) -> bool:
        """Whether a command has begun and isn't complete."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Command]:
        """Returns the commands that `data` completes; raises `ValueError` where it isn't RESP."""
        self._buffer += data
        commands = []
        start = 0
        while (parsed := self._parse(start)) is not None:
            command, start = parsed
            if command:  # the server doesn't answer an empty one
                commands.append(command)
        del self._buffer[:start]
        return commands

    def _line(self, start: int) -> tuple[bytes, int] | None:
        end = self._buffer.find(b"\n", start)
        return None if end < 0 else (bytes(self._buffer[start:end]).rstrip(b"\r"), end + 1)

    def _parse(self, start: int) -> tuple[Command, int] | None:
        first = bytes(self._buffer[start : start + 1])
        if not (first in (b"", b"*", b"\r", b"\n") or first.isalpha()):
            raise ValueError(f"neither a RESP array nor an inline command: {first!r}")
        if (line := self._line(start)) is None:
            return None
        header, position = line
        if not header.startswith(b"*"):
            return header.split(), position
        command = []
        for _ in range(int(header[1:])):
            if (line := self._line(position)) is None:
                return None
            header, position = line
            if not header.startswith(b"$"):
                raise ValueError(f"not a bulk string: {header!r}")
            end = position + int(header[1:])
            if len(self._buffer) < end + 2:
                return None
            command.append(bytes(self._buffer[position:end]))
            position = end + 2
        return command, position


class ReplyScanner:
    """Finds the ends of the replies in a server's byte stream (RESP2 or 3), however it was segmented."""

    def __init__(self) -> None:
        self._line = bytearray()  # a header that isn't complete
        self._skip = 0  # bytes of a string still to come, with its CRLF
        self._open: list[int] = []  # elements still to come of each aggregate we are in
        self._is_push = False

    def feed(self, data: bytes) -> list[int]:
        """Returns the offset behind each reply that `data` completes; RESP3 pushes are no replies."""
        ends: list[int] = []
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                position += step
                self._skip -= step
                if self._skip:
                    break
            else:
                end = data.find(b"\n", position) + 1
                if not end:
                    self._line += data[position:]
                    break
                self._line += data[position:end]
                position = end
                header = bytes(self._line[:-2])
                self._line.clear()
                if not self._is_complete(header):
                    continue
            if self._closes_reply():
                if not self._is_push:
                    ends.append(position)
                self._is_push = False
        return ends

    def _is_complete(self, header: bytes) -> bool:
        """Whether the value is over with its header; notes what is to come otherwise."""
        kind = header[:1]
        if kind in (b"$", b"=", b"!"):
            length = int(header[1:])
            self._skip = 0 if length < 0 else length + 2
            return length < 0
        if kind in (b"*", b"~", b">", b"%"):
            count = int(header[1:]) * (2 if kind == b"%" else 1)
            self._is_push = self._is_push or (kind == b">" and not self._open)
            if count > 0:
                self._open.append(count)
                return False
        return True

    def _closes_reply(self) -> bool:
        """Counts one value as over, and whatever ends with it; true where that is a whole reply."""
        while self._open:
            self._open[-1] -= 1
            if self._open[-1]:
                return False
            self._open.pop()
        return True


def _end_of(ends: list[int], count: int, size: int) -> int:
    """Returns the offset behind the first `count` replies of a piece of `size` bytes, at most `size`."""
    if count <= 0:
        return 0
    return ends[count - 1] if count <= len(ends) else size


def _names(names: Iterable[bytes]) -> Callable[[list[Command]], bool]:
    wanted = {name.upper() for name in names}
    return lambda commands: wanted <= {command[0].upper() for command in commands}
