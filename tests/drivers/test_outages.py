"""Redis away, slow, restarted or emptied: what was accepted goes on where it was, or is sent again."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from streamfleet_drivers.asyncio import (
    Client,
    Closed,
    OutcomeUnknown,
    QueueFull,
    Task,
    TaskCanceled,
    TaskHandle,
    events,
)
from streamfleet_drivers.local_server import LocalServer
from tests.conftest import StartServer
from tests.drivers.support import (
    QUEUE,
    Events,
    Queue,
    Runs,
    asynchronous,
    each_once,
    in_transaction,
    payloads,
    until,
    worker,
)
from tests.support.proxy import Proxy
from tests.support.servers import Kind

# --- The local queue --------------------------------------------------------------------------------------


@asynchronous
async def test_a_full_local_queue_refuses_those_who_do_not_wait(valkey: LocalServer) -> None:
    """wait=False raises QueueFull and accepts none, also of many; what was accepted before is kept."""
    queue = Queue(valkey)
    with Proxy(valkey.port) as proxy:
        proxy.refuse = True
        async with Client(proxy.url, queues=[QUEUE], max_local_queue=10) as client:
            await client.enqueue_many(QUEUE, payloads(8), wait=False)
            with pytest.raises(QueueFull, match="8 of 10 tasks") as full:
                await client.enqueue_many(QUEUE, payloads(3, "too many"), wait=False)
            assert full.value.accepted == 0
            await client.enqueue_many(QUEUE, payloads(2, "last"), wait=False)
            with pytest.raises(QueueFull):
                await client.enqueue_and_forget(QUEUE, b"too much", wait=False)
            with pytest.raises(QueueFull):
                await client.enqueue_and_track(QUEUE, b"too much", wait=False)
            proxy.refuse = False
            await client.flush(20)
            assert queue.data() == payloads(8) + payloads(2, "last")


@asynchronous
async def test_a_full_local_queue_is_waited_for_in_order(valkey: LocalServer) -> None:
    """wait=True waits for room, goes on when Redis comes up, and keeps the order of the calls."""
    queue = Queue(valkey)
    with Proxy(valkey.port) as proxy:
        proxy.refuse = True
        async with Client(proxy.url, queues=[QUEUE], max_local_queue=10) as client:
            await client.enqueue_many(QUEUE, payloads(10))
            waiting = [
                asyncio.create_task(client.enqueue_many(QUEUE, payloads(25, "many"))),
                asyncio.create_task(client.enqueue_many(QUEUE, [b"one"])),
            ]
            refused = proxy.refused
            await until(lambda: proxy.refused >= refused + 2)
            assert not any(call.done() for call in waiting)
            proxy.refuse = False
            await asyncio.gather(*waiting)
            await client.flush(20)
            assert queue.data() == [*payloads(10), *payloads(25, "many"), b"one"]


@asynchronous
async def test_the_local_queue_is_bounded_in_bytes_too(valkey: LocalServer) -> None:
    """max_local_bytes holds for what is not yet confirmed."""
    queue = Queue(valkey)
    with Proxy(valkey.port) as proxy:
        proxy.refuse = True
        async with Client(proxy.url, queues=[QUEUE], max_local_bytes=1000) as client:
            await client.enqueue_and_forget(QUEUE, bytes(600), wait=False)
            with pytest.raises(QueueFull, match="600 of 1000 bytes"):
                await client.enqueue_and_forget(QUEUE, bytes(500), wait=False)
            waiting = asyncio.create_task(client.enqueue_and_forget(QUEUE, bytes(500)))
            proxy.refuse = False
            await waiting
            await client.flush(20)
            assert [len(data) for data in queue.data()] == [600, 500]


# --- Closing a client -------------------------------------------------------------------------------------


@asynchronous
async def test_closing_tells_what_was_never_sent(valkey: LocalServer) -> None:
    """Tasks that Redis never saw are reported as unsent, and their handles settle as canceled."""
    queue, noted = Queue(valkey), Events()
    with Proxy(valkey.port) as proxy:
        client = Client(proxy.url, queues=[QUEUE], max_local_queue=4, on_event=noted)
        await client.enqueue_and_forget(QUEUE, b"confirmed")
        await client.flush(20)
        proxy.refuse = True
        proxy.cut_all()
        await noted.reach(events.ConnectionDown)
        forgotten = await client.enqueue_many(QUEUE, payloads(2))
        tracked = await client.enqueue_many(QUEUE, payloads(2), track=True)
        waiting = asyncio.create_task(client.enqueue_and_forget(QUEUE, b"without room"))
        flushing = asyncio.create_task(client.flush())
        await asyncio.sleep(0)
        report = await client.close(timeout=0.1)
        assert report.confirmed == 1
        assert set(report.unsent) == {*forgotten, *(handle.task_id for handle in tracked)}
        assert report.unknown == ()
        for handle in tracked:
            with pytest.raises(TaskCanceled, match="closed before it was sent"):
                await handle.wait()
        with pytest.raises(Closed):
            await waiting
        with pytest.raises(Closed):
            await flushing
        proxy.refuse = False
    assert queue.data() == [b"confirmed"]


@asynchronous
async def test_closing_tells_what_was_sent_and_never_confirmed(valkey: LocalServer) -> None:
    """A batch whose answer is missing is reported as unknown, and its handles settle as OutcomeUnknown."""
    queue = Queue(valkey)
    with Proxy(valkey.port) as proxy:
        client = Client(proxy.url, queues=[QUEUE])
        await client.enqueue_and_forget(QUEUE, b"first")
        await client.flush(20)
        cut = proxy.cut_reply(in_transaction((b"XADD",)))
        handle = await client.enqueue_and_track(QUEUE, b"in doubt")
        proxy.refuse = True
        await until(lambda: cut.hits)
        report = await client.close(timeout=0.1)
        assert report.unsent == ()
        assert report.unknown == (handle.task_id,)
        with pytest.raises(OutcomeUnknown):
            await handle.wait()
    assert queue.data() == [b"first", b"in doubt"]


@asynchronous
async def test_closing_a_client_with_open_handles_settles_them(server: LocalServer) -> None:
    """G2: a confirmed task whose end is not known yet is OutcomeUnknown for its handle; the task itself stays."""
    queue = Queue(server)
    client = Client(server.url, queues=[QUEUE])
    handle = await client.enqueue_and_track(QUEUE, b"goes on")
    waiting = asyncio.create_task(handle.wait())
    await handle.confirmed(timeout=20)
    report = await client.close()
    assert (report.confirmed, report.unsent, report.unknown) == (1, (), ())
    with pytest.raises(OutcomeUnknown):
        await waiting
    assert queue.data() == [b"goes on"]


@asynchronous
async def test_closing_flushes_first(server: LocalServer) -> None:
    """What was accepted is confirmed before the client ends."""
    queue = Queue(server)
    client = Client(server.url, queues=[QUEUE])
    await client.enqueue_many(QUEUE, payloads(1000))
    report = await client.close(timeout=20)
    assert (report.confirmed, report.unsent, report.unknown) == (1000, (), ())
    assert queue.data() == payloads(1000)


@asynchronous
async def test_a_word_that_waits_unread_is_still_heard_at_close(valkey: LocalServer) -> None:
    """The last look at the receiver stream: a handle whose word is there does not end as unknown."""
    runs, queue = Runs(), Queue(valkey)
    with Proxy(valkey.port) as proxy:
        client = Client(proxy.url, queues=[QUEUE])
        handle = await client.enqueue_and_track(QUEUE, b"heard")
        await handle.confirmed(timeout=20)
        proxy.stall()
        async with worker(valkey.url, runs):
            await until(lambda: queue.words(client.client_id))
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        assert not closing.done()
        proxy.flow()
        await closing
        assert await handle.wait() is None


# --- Restarts ---------------------------------------------------------------------------------------------


async def keep_enqueueing(client: Client, count: int, handles: list[TaskHandle]) -> None:
    """Tracked tasks, one after the other, as long as there is room."""
    for data in payloads(count):
        handles.append(await client.enqueue_and_track(QUEUE, data))
        await asyncio.sleep(0.001)


@asynchronous
async def test_a_restart_in_mid_run_loses_and_repeats_nothing(kind: Kind, start: StartServer) -> None:
    """G1-G4 over an orderly and a hard restart with an append-only file, with a client and two workers at work."""
    server = start(kind, persistence="aof")
    runs, queue = Runs(), Queue(server)
    handles: list[TaskHandle] = []

    async def handler(task: Task) -> bytes:
        runs.record(task)
        await asyncio.sleep(0.002)
        return task.data

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(worker(server.url, handler, concurrency=4))
        client = await stack.enter_async_context(Client(server.url, queues=[QUEUE]))
        producing = asyncio.create_task(keep_enqueueing(client, 400, handles))
        await runs.reach(50)
        await asyncio.to_thread(server.restart)
        await runs.reach(200)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        await producing
        assert [await handle.wait(timeout=20) for handle in handles] == payloads(400)
        await queue.rest()
    assert runs.times == each_once(payloads(400))


@asynchronous
async def test_a_restart_that_loses_everything_is_repaired_by_the_client(server: LocalServer) -> None:
    """A restart without persistence: tracked tasks and recently confirmed ones are sent again, and told about."""
    runs, queue, noted = Runs(), Queue(server), Events()
    data = payloads(300)
    async with Client(server.url, queues=[QUEUE], on_event=noted) as client:
        handles = await client.enqueue_many(QUEUE, data[:100], track=True)
        await client.enqueue_many(QUEUE, data[100:200])
        await client.enqueue_many(QUEUE, data[200:], delay=0.01)
        await client.flush(20)
        await asyncio.to_thread(server.restart)
        async with worker(server.url, runs, concurrency=8):
            for handle in handles:
                await handle.wait(timeout=30)
            await until(lambda: len(runs.times) == len(data))
            await queue.rest()
    assert runs.times == each_once(data)
    losses = [note for note in noted.of(events.DataLossSeen) if note.queue == QUEUE and note.repaired]
    assert sum(note.repaired for note in losses) == len(data)


@asynchronous
async def test_everything_runs_though_redis_is_emptied_under_client_and_workers(server: LocalServer) -> None:
    """FLUSHALL in mid-run: all that had not settled is sent again, over the connections that stand."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        await asyncio.sleep(0.002)

    async with (
        worker(server.url, handler, concurrency=2),
        Client(server.url, queues=[QUEUE], retention=3, heartbeat=1) as client,
    ):
        handles = await client.enqueue_many(QUEUE, payloads(300), track=True)
        await runs.reach(50)
        queue.call("FLUSHALL")
        for handle in handles:
            await handle.wait(timeout=30)
        after = await client.enqueue_and_track(QUEUE, b"after")
        await after.wait(timeout=20)
        await queue.rest()
    assert set(runs.times) == {*payloads(300), b"after"}


@asynchronous
async def test_a_lost_watch_key_is_set_again(server: LocalServer) -> None:
    """The key that guards a client's batches is gone, though its connection stands: nothing is lost or doubled."""
    queue = Queue(server)
    async with Client(server.url, queues=[QUEUE]) as client:
        await client.enqueue_many(QUEUE, payloads(3, "before"))
        await client.flush(20)
        for number in range(3):
            assert queue.call("DEL", queue.keys.connection(client.client_id)) == 1
            await client.enqueue_and_forget(QUEUE, f"after {number}".encode())
            await client.flush(20)
        assert queue.data() == payloads(3, "before") + payloads(3, "after")


@asynchronous
async def test_a_worker_makes_a_lost_group_again(server: LocalServer) -> None:
    """XGROUP DESTROY under a waiting worker: the group is made again from the first entry on."""
    runs, queue, noted = Runs(), Queue(server), Events()
    async with worker(server.url, runs, on_event=noted), Client(server.url, queues=[QUEUE]) as client:
        await client.enqueue_and_forget(QUEUE, b"before")
        await runs.reach(1)
        await queue.rest()
        queue.call("XGROUP", "DESTROY", queue.keys.stream, "streamfleet-server")
        await client.enqueue_and_forget(QUEUE, b"after")
        await runs.reach(2)
        await queue.rest()
    assert [task.data for task in runs.tasks] == [b"before", b"after"]


@asynchronous
async def test_a_frozen_redis_is_waited_out(server: LocalServer) -> None:
    """Redis that answers nothing for a while (SIGSTOP): the deadlines are our own, and nothing runs twice."""
    runs, queue, noted = Runs(), Queue(server), Events()
    data = payloads(100)
    async with (
        worker(server.url, runs, on_event=noted),
        Client(server.url, queues=[QUEUE], command_timeout=0.3, on_event=noted) as client,
    ):
        first = await client.enqueue_and_track(QUEUE, b"first")
        await first.wait(timeout=20)
        server.pause()
        handles = await client.enqueue_many(QUEUE, data, track=True)
        await until(lambda: {note.lane for note in noted.of(events.ConnectionDown)} >= {"command"})
        server.resume()
        for handle in handles:
            await handle.wait(timeout=30)
        await queue.rest()
    assert runs.times == each_once([b"first", *data])
    assert queue.added() == len(data) + 1
