"""What the drivers' tests share: async tests, records of what happened, a look into Redis, aims for faults."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar, Unpack

from streamfleet_drivers.asyncio import Server, Task, events
from streamfleet_drivers.options import Duration, ServerOptions
from streamfleet_protocol.keys import SERVER_GROUP, queue_keys, receiver_key
from streamfleet_protocol.members import unpack_member
from tests.support.proxy import Command
from tests.support.servers import HasUrl, connect, wait_until_async

P = ParamSpec("P")
AnyNote = TypeVar("AnyNote", bound=events.Note)

QUEUE = "tasks"
SHORT: ServerOptions = {"lease": 4, "renew_interval": 1}
"""Leases that run out soon enough for a test."""
PATIENCE = 20.0
"""Seconds until a condition that should come true at once counts as failed: more than any pause of a busy machine."""

Fields = dict[bytes, bytes]


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own.

    It also fails where it leaves a task behind, or where an exception reached nobody but the event loop.
    """

    async def supervised(*args: P.args, **kwargs: P.kwargs) -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        async with asyncio.timeout(50):
            await test(*args, **kwargs)
        this = asyncio.current_task()
        await wait_until_async(lambda: asyncio.all_tasks() == {this}, message="the test left tasks of its event loop")
        assert not unhandled

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(supervised(*args, **kwargs))

    return run


async def until(condition: Callable[[], Any], message: str = "the condition never held") -> None:
    """Wait for a condition that must come true."""
    await wait_until_async(condition, PATIENCE, message)


# --- What happened ----------------------------------------------------------------------------------------


class Runs:
    """Which tasks a handler was called with. It is a handler itself."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    async def __call__(self, task: Task) -> None:
        self.record(task)

    def record(self, task: Task) -> None:
        """A handler has begun."""
        self.tasks.append(task)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def times(self) -> Counter[bytes]:
        """How often each payload ran."""
        return Counter(task.data for task in self.tasks)

    def attempts(self, data: bytes) -> list[int]:
        """The attempt numbers with which a payload ran, in order."""
        return [task.attempt for task in self.tasks if task.data == data]

    async def reach(self, count: int) -> None:
        """Wait for so many runs."""
        await until(lambda: len(self.tasks) >= count, f"there never were {count} runs")


class Events:
    """What a client or a server has noted; to be given as `on_event`."""

    def __init__(self) -> None:
        self.notes: list[events.Note] = []

    def __call__(self, note: events.Note) -> None:
        self.notes.append(note)

    def of(self, kind: type[AnyNote]) -> list[AnyNote]:
        """The notes of one kind."""
        return [note for note in self.notes if isinstance(note, kind)]

    async def reach(self, kind: type[events.Note]) -> None:
        """Wait for a note of this kind."""
        await until(lambda: self.of(kind), f"{kind.__name__} was never noted")


def quick(**more: Unpack[ServerOptions]) -> ServerOptions:
    """Options of a server whose lease runs out in little more than a second."""
    return {"lease": 1.2, "renew_interval": 0.3, "block": 0.3, **more}


def payloads(count: int, prefix: str = "task") -> list[bytes]:
    """Different payloads, in order."""
    return [f"{prefix} {number}".encode() for number in range(count)]


def each_once(data: Iterable[bytes]) -> Counter[bytes]:
    """What `Runs.times` is where each payload ran exactly once."""
    return Counter(data)


def worker(
    url: str,
    handler: Callable[[Task], Any],
    *,
    queue: str = QUEUE,
    timeout: Duration | None = None,
    on_event: Callable[[events.Note], None] | None = None,
    grace: Duration = 30,
    **options: Unpack[ServerOptions],
) -> Server:
    """A server with one handler and short leases."""
    both: ServerOptions = {**SHORT, **options}
    server = Server(url, on_event=on_event, grace=grace, **both)
    server.handler(queue, timeout)(handler)
    return server


# --- What is in Redis -------------------------------------------------------------------------------------


class Queue:
    """A look at one queue's keys, past the library."""

    def __init__(self, server: HasUrl, name: str = QUEUE) -> None:
        self.keys = queue_keys(name)
        self._redis = connect(server)
        self._redis.response_callbacks.clear()

    def call(self, *command: Any) -> Any:
        """Carry out a command; the reply as it came."""
        return self._redis.execute_command(*command)  # type: ignore[no-untyped-call]

    def all_keys(self) -> set[bytes]:
        """The names of all keys of the server."""
        return set(self.call("KEYS", "*"))

    # The stream.

    def entries(self) -> list[Fields]:
        """The fields of the entries."""
        return self._range(self.keys.stream)

    def data(self) -> list[bytes]:
        """The payloads of the entries."""
        return [fields[b"data"] for fields in self.entries()]

    def added(self) -> int:
        """How many entries were ever added, whatever became of them."""
        number = _pairs(self.call("XINFO", "STREAM", self.keys.stream))[b"entries-added"]
        assert isinstance(number, int)
        return number

    def pending(self) -> list[Any]:
        """The pending entries of the group: id, consumer, idle ms, deliveries."""
        if not self.call("EXISTS", self.keys.stream) or not self.call("XINFO", "GROUPS", self.keys.stream):
            return []
        rows = self.call("XPENDING", self.keys.stream, SERVER_GROUP, "-", "+", 10_000)
        assert isinstance(rows, list)
        return rows

    def consumers(self) -> list[bytes]:
        """The names of the group's consumers."""
        consumers = self.call("XINFO", "CONSUMERS", self.keys.stream, SERVER_GROUP)
        return [_pairs(consumer)[b"name"] for consumer in consumers]

    def add(self, fields: Fields) -> bytes:
        """Add an entry; its id."""
        flat = [part for pair in fields.items() for part in pair]
        entry_id = self.call("XADD", self.keys.stream, "*", *flat)
        assert isinstance(entry_id, bytes)
        return entry_id

    def take_as(self, consumer: str, count: int = 1000) -> list[bytes]:
        """Read new entries as a worker would that then dies; their ids."""
        reply = self.call(
            *("XREADGROUP", "GROUP", SERVER_GROUP, consumer, "COUNT", count, "STREAMS", self.keys.stream, ">")
        )
        return [entry_id for _, entries in reply or () for entry_id, _ in entries]

    def make_group(self) -> None:
        """What the first server does."""
        self.call("XGROUP", "CREATE", self.keys.stream, SERVER_GROUP, "0", "MKSTREAM")

    def _range(self, key: bytes) -> list[Fields]:
        return [_pairs(fields) for _, fields in self.call("XRANGE", key, "-", "+")]

    # The other keys.

    def delayed(self) -> list[Fields]:
        """The entries in the delayed set, the earliest first."""
        members = self.call("ZRANGE", self.keys.delayed, 0, -1)
        return [_pairs(unpack_member(member)) for member in members]

    def dead(self) -> list[Fields]:
        """The dead letters."""
        return self._range(self.keys.dead)

    def dead_reasons(self) -> list[str]:
        """Why the dead letters are dead."""
        return [fields[b"dead_reason"].decode() for fields in self.dead()]

    def words(self, client_id: str) -> list[Fields]:
        """The notifications in a client's receiver stream."""
        return self._range(receiver_key(client_id))

    # Time.

    def redis_ms(self) -> int:
        """Redis's clock, in Unix ms."""
        seconds, micros = self.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def pass_by(self, redis_ms: int) -> None:
        """Wait until everybody's idea of Redis's clock is later than this; nobody's is wrong by a whole second."""
        await until(lambda: self.redis_ms() > redis_ms + 1000)

    # At rest.

    def left(self) -> dict[str, Any]:
        """Whatever is in the queue; empty at rest."""
        found = {
            "stream": self.call("XLEN", self.keys.stream),
            "pending": self.pending(),
            "delayed": self.call("ZCARD", self.keys.delayed),
        }
        return {name: value for name, value in found.items() if value}

    async def rest(self) -> None:
        """Wait until nothing is in the queue."""
        await until(lambda: not self.left(), "the queue never came to rest")


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def go_entry(task_id: str, data: bytes, **others: bytes | str | int) -> Fields:
    """A task as the Go library writes it: nine fields, here in an order that is not ours."""
    fields: dict[str, bytes | str | int] = {
        "send_notif": 0,
        "retries": 0,
        "data": data,
        "expires_ts": 0,
        "id": task_id,
        "enc_version": 1,
        "max_retries": 0,
        "client_id": "",
        "retry_delay": 0,
    }
    fields.update(others)
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}


# --- Aims for faults --------------------------------------------------------------------------------------

Match = Callable[[list[Command]], bool]


def _begins(command: Command, start: tuple[bytes, ...]) -> bool:
    return command[0].upper() == start[0] and tuple(command[1 : len(start)]) == start[1:]


def _parts(commands: list[Command]) -> tuple[list[list[Command]], list[Command]]:
    """The transactions of a write, and its commands outside of any."""
    transactions: list[list[Command]] = []
    plain: list[Command] = []
    inside = False
    for command in commands:
        name = command[0].upper()
        if name == b"MULTI":
            inside = True
            transactions.append([])
        elif name == b"EXEC":
            inside = False
        else:
            (transactions[-1] if inside else plain).append(command)
    return transactions, plain


def in_transaction(*starts: tuple[bytes, ...]) -> Match:
    """Writes with a transaction that has commands beginning with each of these words."""

    def match(commands: list[Command]) -> bool:
        return any(
            all(any(_begins(command, start) for command in transaction) for start in starts)
            for transaction in _parts(commands)[0]
        )

    return match


def outside(*starts: tuple[bytes, ...]) -> Match:
    """Writes with plain commands, outside of transactions, beginning with each of these words."""
    return lambda commands: all(any(_begins(command, start) for command in _parts(commands)[1]) for start in starts)
