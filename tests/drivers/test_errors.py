"""Errors: those that waiting does not cure are raised at once and say what to do, all others are waited out."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from streamfleet_drivers.asyncio import (
    Client,
    Closed,
    InvalidOption,
    InvalidQueueName,
    NoQueues,
    Server,
    ServerRefused,
    StreamfleetError,
    Task,
    UnknownQueue,
    events,
)
from streamfleet_drivers.local_server import LocalServer
from tests.conftest import StartServer
from tests.drivers.support import QUEUE, Events, Queue, Runs, asynchronous, each_once, payloads, quick, until, worker
from tests.support.proxy import Proxy
from tests.support.servers import Kind

# --- What waiting does not cure ---------------------------------------------------------------------------


@pytest.mark.parametrize(("login", "code"), [("", "NOAUTH"), (":wrong-secret@", "WRONGPASS")])
@asynchronous
async def test_a_wrong_password_is_raised_at_once(kind: Kind, start: StartServer, login: str, code: str) -> None:
    """No password, or a wrong one: run(), flush(), enqueueing and waiting raise, and show no password."""
    server = start(kind, arguments=("--requirepass", "secret"))
    url = server.url.replace("redis://", f"redis://{login}")
    server_at_default = Server(url)
    server_at_default.handler(QUEUE)(Runs())
    with pytest.raises(ServerRefused) as refused:
        # Less than any deadline of the default settings: there is nothing to wait for.
        async with asyncio.timeout(2.5):
            await server_at_default.run()
    assert refused.value.code == code
    assert "assword" in str(refused.value)
    assert "secret" not in str(refused.value)
    client = Client(url, queues=[QUEUE])
    handle = await client.enqueue_and_track(QUEUE, b"x")
    with pytest.raises(ServerRefused) as refused:
        await client.flush(20)
    assert refused.value.code == code
    with pytest.raises(ServerRefused):
        await client.enqueue_and_forget(QUEUE, b"y")
    with pytest.raises(ServerRefused):
        await handle.wait(timeout=20)
    assert not handle.done()
    report = await client.close(timeout=0)
    assert report.unsent == (handle.task_id,)


@asynchronous
async def test_a_right_password_is_used(kind: Kind, start: StartServer) -> None:
    """User and password in the URL, on both lanes of both sides."""
    server = start(kind, arguments=("--requirepass", "s/e:c%ret"))
    url = server.url.replace("redis://", "redis://default:s%2Fe%3Ac%25ret@")
    async with worker(url, Runs()), Client(url, queues=[QUEUE]) as client:
        assert await (await client.enqueue_and_track(QUEUE, b"x")).wait(timeout=20) is None


@asynchronous
async def test_a_stream_of_a_wrong_type_is_raised_and_recovers(server: LocalServer) -> None:
    """Another program has the key: run() and flush() raise; once it is gone the client goes on with what it has."""
    queue = Queue(server)
    queue.call("SET", queue.keys.stream, "something else")
    with pytest.raises(ServerRefused) as refused:
        await worker(server.url, Runs()).run()
    assert refused.value.code == "WRONGTYPE"
    async with Client(server.url, queues=[QUEUE]) as client:
        await client.enqueue_and_forget(QUEUE, b"kept")
        with pytest.raises(ServerRefused) as refused:
            await client.flush(20)
        assert refused.value.code == "WRONGTYPE"
        queue.call("DEL", queue.keys.stream)
        await until(queue.entries)
        await flushed(client)
        assert queue.data() == [b"kept"]


async def flushed(client: Client) -> None:
    """Flush, as soon as the client does not raise an old refusal any more."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await client.flush()
            except ServerRefused:
                await asyncio.sleep(0.01)


@asynchronous
async def test_a_missing_permission_is_raised_at_once(server: LocalServer) -> None:
    """A user who may not use the keys: run() and flush() raise NOPERM."""
    Queue(server).call("ACL", "SETUSER", "guest", "on", ">pass", "~other:*", "+@all")
    url = server.url.replace("redis://", "redis://guest:pass@")
    with pytest.raises(ServerRefused) as refused:
        await worker(url, Runs()).run()
    assert refused.value.code == "NOPERM"
    client = Client(url, queues=[QUEUE])
    await client.enqueue_and_forget(QUEUE, b"x")
    with pytest.raises(ServerRefused) as refused:
        await client.flush(20)
    assert refused.value.code == "NOPERM"
    await client.close(timeout=0)


@asynchronous
async def test_a_flush_that_waits_is_told_of_a_refusal(valkey: LocalServer) -> None:
    """An error that comes while calls wait is raised to all of them, and nothing of what was accepted is dropped."""
    queue = Queue(valkey)
    with Proxy(valkey.port) as proxy:
        proxy.refuse = True
        async with Client(proxy.url, queues=[QUEUE], max_local_queue=2) as client:
            handle = await client.enqueue_and_track(QUEUE, b"kept")
            calls = [
                asyncio.create_task(client.flush()),
                asyncio.create_task(handle.wait()),
                asyncio.create_task(handle.confirmed()),
                asyncio.create_task(client.enqueue_many(QUEUE, payloads(2))),
            ]
            await asyncio.sleep(0)
            queue.call("SET", queue.keys.stream, "something else")
            proxy.refuse = False
            for call in calls:
                with pytest.raises(ServerRefused) as refused:
                    await call
                assert refused.value.code == "WRONGTYPE"
            assert refused.value.accepted == 1
            queue.call("DEL", queue.keys.stream)
            await flushed(client)
            assert queue.data() == [b"kept", b"task 0"]


# --- What is waited out -----------------------------------------------------------------------------------


@asynchronous
async def test_a_full_redis_still_drains(server: LocalServer) -> None:
    """At maxmemory nothing can be added, but what is there is run and settled; what was refused goes in later."""
    runs, queue, noted = Runs(), Queue(server), Events()
    async with Client(server.url, queues=[QUEUE], on_event=noted) as client:
        # The group and the fence are there, as they are wherever work was going on before.
        async with worker(server.url, Runs()):
            await (await client.enqueue_and_track(QUEUE, b"first")).wait(timeout=20)
        await client.enqueue_many(QUEUE, payloads(20, "early"))
        await client.flush(20)
        queue.call("CONFIG", "SET", "maxmemory", 1)
        await client.enqueue_many(QUEUE, payloads(20, "late"))
        with pytest.raises(TimeoutError):
            await client.flush(0.2)
        async with worker(server.url, runs):
            await runs.reach(20)
            await queue.rest()
            queue.call("CONFIG", "SET", "maxmemory", 0)
            await client.flush(20)
            await runs.reach(40)
            await queue.rest()
    assert any("OOM" in note.reason for note in noted.of(events.OperationRefused))
    assert runs.times == each_once(payloads(20, "early") + payloads(20, "late"))


@asynchronous
async def test_a_redis_that_is_demoted_for_a_while_is_waited_for(server: LocalServer) -> None:
    """READONLY and UNBLOCKED: client and worker connect again until the server takes writes, and lose nothing."""
    runs, queue, noted = Runs(), Queue(server), Events()
    async with worker(server.url, runs, on_event=noted), Client(server.url, queues=[QUEUE]) as client:
        await (await client.enqueue_and_track(QUEUE, b"before")).wait(timeout=20)
        queue.call("REPLICAOF", "127.0.0.1", "1")
        handles = await client.enqueue_many(QUEUE, payloads(20), track=True)
        await noted.reach(events.ConnectionDown)
        queue.call("REPLICAOF", "NO", "ONE")
        for handle in handles:
            await handle.wait(timeout=20)
        await queue.rest()
    assert runs.times == each_once([b"before", *payloads(20)])
    assert queue.added() == 21


@pytest.mark.parametrize("side", ["client", "server"])
@asynchronous
async def test_a_handshake_that_nobody_answers_leaves_no_connection_open(side: str) -> None:
    """Something accepts connections and says nothing: each attempt ends after connect_timeout, and is closed."""
    attempts, is_open = 0, 0

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts, is_open
        attempts += 1
        is_open += 1
        while await reader.read(1000):
            pass
        is_open -= 1
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as mute:
        url = f"redis://127.0.0.1:{mute.sockets[0].getsockname()[1]}"
        if side == "server":
            async with worker(url, Runs(), grace=0, **quick(connect_timeout=0.05)):
                await until(lambda: attempts >= 4)
                assert is_open <= 1
        else:
            client = Client(url, queues=[QUEUE], connect_timeout=0.05)
            await client.enqueue_and_forget(QUEUE, b"x")
            await until(lambda: attempts >= 4)
            assert is_open <= 1
            await client.close(timeout=0)
        await until(lambda: not is_open)


# --- Addresses --------------------------------------------------------------------------------------------


@asynchronous
async def test_a_unix_socket_is_an_address(kind: Kind, start: StartServer) -> None:
    """unix:// works on both sides."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "redis.sock"
        start(kind, arguments=("--unixsocket", str(path)))
        async with worker(f"unix://{path}", Runs()), Client(f"unix://{path}?db=0", queues=[QUEUE]) as client:
            assert await (await client.enqueue_and_track(QUEUE, b"x")).wait(timeout=20) is None


@asynchronous
async def test_the_database_of_the_url_is_used(valkey: LocalServer) -> None:
    """redis://host:port/3 works in database 3 alone."""
    url = valkey.url.removesuffix("/0") + "/3"
    async with worker(url, Runs()), Client(url, queues=[QUEUE]) as client:
        assert await (await client.enqueue_and_track(QUEUE, b"x")).wait(timeout=20) is None
        assert Queue(valkey).all_keys() == set()


BAD_URLS = [
    ("http://127.0.0.1:6379", "redis://"),
    ("127.0.0.1:6379", "redis://"),
    ("", "redis://"),
    ("redis://127.0.0.1:port", "port"),
    ("redis://127.0.0.1:6379/?nonsense=1", "nonsense"),
    ("redis://127.0.0.1:6379/?socket_timeout=soon", "socket_timeout"),
]


@pytest.mark.parametrize(("url", "hint"), BAD_URLS)
@pytest.mark.parametrize("make", [lambda url: Client(url, queues=[QUEUE]), Server], ids=["client", "server"])
def test_a_url_that_cannot_work_is_refused_by_the_constructor(make: Callable[[str], Any], url: str, hint: str) -> None:
    """A wrong scheme or argument shows where the object is made, with a message that names it."""
    with pytest.raises(InvalidOption, match=hint):
        make(url)


# --- Wrong use --------------------------------------------------------------------------------------------


def test_wrong_queues_are_refused() -> None:
    """No queues, a wrong name, a text instead of a list, a name twice."""
    for queues, error in [
        ([], NoQueues),
        ([""], InvalidQueueName),
        (["receiver:x"], InvalidQueueName),
        (["x:receivers"], InvalidQueueName),
        (["open}"], InvalidQueueName),
        ("tasks", InvalidOption),
        (["tasks", "tasks"], InvalidOption),
    ]:
        with pytest.raises(error):
            Client(queues=queues)


@asynchronous
async def test_a_server_without_handlers_does_not_start() -> None:
    """NoQueues says what is missing."""
    with pytest.raises(NoQueues, match="handler"):
        await Server().run()


@pytest.mark.parametrize(
    "option",
    [
        {"concurrency": 0},
        {"lease": 10, "renew_interval": 5},
        {"renew_interval": 3, "command_timeout": 2},
        {"prefetch": -1},
        {"max_deliveries": 0},
        {"grace": -1},
        {"lease": float("nan")},
    ],
    ids=str,
)
def test_wrong_options_of_a_server_are_refused_by_the_constructor(option: dict[str, Any]) -> None:
    """Settings that would endanger tasks never start."""
    with pytest.raises(InvalidOption, match=next(iter(option)).split("_")[0]):
        Server(**option)


@asynchronous
async def test_wrong_use_of_a_client_is_told(valkey: LocalServer) -> None:
    """An unknown queue, wrong data, wrong options: the call raises, nothing is sent."""
    queue = Queue(valkey)
    async with Client(valkey.url, queues=[QUEUE, "other"]) as client:
        with pytest.raises(UnknownQueue, match="'nowhere' is not a queue of this client, which has 'tasks' or 'other'"):
            await client.enqueue_and_forget("nowhere", b"x")
        with pytest.raises(UnknownQueue):
            await client.enqueue_and_track("nowhere", b"x")
        with pytest.raises(UnknownQueue):
            await client.enqueue_many("nowhere", [b"x"], track=True)
        with pytest.raises(InvalidOption, match="bytes or str, not dict"):
            await client.enqueue_and_forget(QUEUE, {"a": 1})  # type: ignore[arg-type]
        wrong: list[dict[str, Any]] = [
            {"max_retries": -1},
            {"max_retries": 1.5},
            {"retry_delay": -1},
            {"retry_backoff": 0.5},
            {"expires_in": 0},
            {"expires_in": 1, "expires_at": 2},
            {"delay": 1, "at": 2},
            {"at": datetime(2030, 1, 1)},
        ]
        for options in wrong:
            with pytest.raises(InvalidOption, match=next(iter(options))):
                await client.enqueue_and_forget(QUEUE, b"x", **options)
        with pytest.raises(TypeError, match="retires"):
            await client.enqueue_and_forget(QUEUE, b"x", retires=3)  # type: ignore[call-arg]
        await client.enqueue_and_forget(QUEUE, b"good")
        await client.flush(20)
        assert queue.data() == [b"good"]


@asynchronous
async def test_a_closed_client_raises_closed(valkey: LocalServer) -> None:
    """Every call on a closed client, and none of them hangs; closing again gives the same report."""
    client = Client(valkey.url, queues=[QUEUE])
    await client.enqueue_and_forget(QUEUE, b"x")
    report = await client.close()
    for _ in range(2):
        with pytest.raises(Closed):
            await client.enqueue_and_forget(QUEUE, b"x")
        with pytest.raises(Closed):
            await client.enqueue_and_track(QUEUE, b"x")
        with pytest.raises(Closed):
            await client.enqueue_many(QUEUE, [b"x"])
        with pytest.raises(Closed):
            await client.flush(5)
        assert await client.close() is report


@asynchronous
async def test_a_client_that_never_connected_closes_at_once() -> None:
    """Closing needs no Redis where there is nothing to confirm."""
    async with asyncio.timeout(2):
        report = await Client("redis://127.0.0.1:1", queues=[QUEUE]).close()
    assert (report.confirmed, report.unsent, report.unknown) == (0, (), ())


@asynchronous
async def test_a_server_runs_once(valkey: LocalServer) -> None:
    """A second run, a second handler for a queue, a handler after the start: each is told."""
    server = worker(valkey.url, Runs())
    with pytest.raises(InvalidOption, match="has a handler already"):
        server.handler(QUEUE)
    async with server:
        with pytest.raises(StreamfleetError, match="running already"):
            await server.run()
        with pytest.raises(InvalidOption, match="has started"):
            server.handler("late")
    with pytest.raises(Closed):
        await server.run()
    with pytest.raises(Closed):
        async with server:
            pass


@asynchronous
async def test_an_object_of_another_event_loop_refuses_to_be_used(valkey: LocalServer) -> None:
    """A client or a server belongs to one event loop, and says so."""
    async with Client(valkey.url, queues=[QUEUE]) as client, worker(valkey.url, Runs()) as server:
        handle = await client.enqueue_and_track(QUEUE, b"x")
        for use in (
            lambda: client.enqueue_and_forget(QUEUE, b"y"),
            lambda: client.flush(1),
            client.close,
            server.close,
        ):
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, use())
        await handle.wait(timeout=20)


@asynchronous
async def test_a_failing_on_event_callback_changes_nothing(
    valkey: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The user's callback may raise: that is logged, and work goes on. Notes also go to the log `streamfleet`."""

    def on_event(note: events.Note) -> None:
        raise RuntimeError("a bug of the user")

    async def handler(task: Task) -> None:
        if task.attempt == 1:
            raise ValueError("not yet")

    with caplog.at_level("INFO", logger="streamfleet"):
        async with worker(valkey.url, handler, on_event=on_event), Client(valkey.url, queues=[QUEUE]) as client:
            await (await client.enqueue_and_track(QUEUE, b"x", retry_delay=0)).wait(timeout=20)
    assert "failed in attempt 1" in caplog.text
    assert "a bug of the user" in caplog.text
