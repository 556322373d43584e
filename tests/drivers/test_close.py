"""Closing: bounded in time, nothing unfinished is lost, nothing is left behind; and what ends a server by itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from streamfleet_drivers.asyncio import Client, Server, ServerRefused, Task, events
from streamfleet_drivers.local_server import LocalServer
from tests.conftest import StartServer
from tests.drivers.support import QUEUE, Events, Queue, Runs, asynchronous, each_once, payloads, quick, until, worker
from tests.support.proxy import Proxy
from tests.support.servers import KINDS

# --- The grace --------------------------------------------------------------------------------------------


@asynchronous
async def test_a_running_handler_may_finish_within_the_grace(server: LocalServer) -> None:
    """close(grace): what runs may finish and is settled; what is only held goes back at once."""
    runs, queue, go_on = Runs(), Queue(server), asyncio.Event()

    async def handler(task: Task) -> bytes:
        runs.record(task)
        await go_on.wait()
        return b"finished"

    async with Client(server.url, queues=[QUEUE]) as client:
        closing = worker(server.url, handler, prefetch=2)
        async with closing:
            handles = await client.enqueue_many(QUEUE, payloads(3), track=True)
            await until(lambda: len(runs) == 1 and len(queue.pending()) == 3)
            waiting = asyncio.create_task(closing.close(grace=20))
            # The two that did not run are back before the first one is done.
            await until(lambda: len(queue.pending()) == 1)
            assert sorted(queue.data()) == payloads(3)
            assert not runs.tasks[0].canceled
            go_on.set()
            await waiting
        assert await handles[0].wait(timeout=20) == b"finished"
        assert queue.data() == payloads(3)[1:]
        assert queue.pending() == []
        assert not handles[1].done()
    assert len(runs) == 1


@asynchronous
async def test_after_the_grace_a_handler_is_canceled_and_its_task_runs_elsewhere(server: LocalServer) -> None:
    """A handed-back task was not canceled: its handle stays open, its attempts do not count, another runs it."""
    first, second, queue, noted = Runs(), Runs(), Queue(server), Events()
    cleaned_up = False

    async def hang(task: Task) -> None:
        nonlocal cleaned_up
        first.record(task)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned_up = True

    async with Client(server.url, queues=[QUEUE]) as client:
        async with worker(server.url, hang, on_event=noted) as closing:
            handle = await client.enqueue_and_track(QUEUE, b"x", max_retries=0)
            await first.reach(1)
            await closing.close(grace=0.05)
        assert cleaned_up
        assert first.tasks[0].canceled
        assert not handle.done()
        async with worker(server.url, second):
            assert await handle.wait(timeout=20) is None
            await queue.rest()
    assert [note.task_id for note in noted.of(events.TaskHandedBack)] == [handle.task_id]
    assert [task.attempt for task in second.tasks] == [1]
    assert not queue.dead()
    assert queue.added() == 2


@asynchronous
async def test_a_handler_that_finishes_though_it_was_canceled_has_finished(valkey: LocalServer) -> None:
    """A handler that turns its cancellation into a success at close is settled, not run again."""
    runs, queue = Runs(), Queue(valkey)

    async def stubborn(task: Task) -> bytes:
        runs.record(task)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return b"done after all"

    async with Client(valkey.url, queues=[QUEUE]) as client:
        async with worker(valkey.url, stubborn, grace=0):
            handle = await client.enqueue_and_track(QUEUE, b"x")
            await runs.reach(1)
        assert await handle.wait(timeout=20) == b"done after all"
        assert not queue.left()


@asynchronous
async def test_a_thread_that_does_not_stop_holds_up_no_close(valkey: LocalServer) -> None:
    """A plain function cannot be killed: after the grace and a while for it to stop, its task is handed back."""
    runs, queue, release = Runs(), Queue(valkey), threading.Event()

    def deaf(task: Task) -> None:
        runs.record(task)
        release.wait(50)

    async with Client(valkey.url, queues=[QUEUE]) as client:
        try:
            closing = worker(valkey.url, deaf)
            async with closing:
                await client.enqueue_and_forget(QUEUE, b"x")
                await runs.reach(1)
                begun_at = time.monotonic()
                await closing.close(grace=0)
                elapsed = time.monotonic() - begun_at
            assert runs.tasks[0].canceled
            assert queue.data() == [b"x"]
            assert queue.pending() == []
            assert elapsed < 15
        finally:
            release.set()


@asynchronous
async def test_closing_twice_and_with_less_patience(valkey: LocalServer) -> None:
    """A second close with a shorter grace ends the first one's; further ones change nothing."""
    runs, queue = Runs(), Queue(valkey)

    async def hang(task: Task) -> None:
        runs.record(task)
        await asyncio.Event().wait()

    async with Client(valkey.url, queues=[QUEUE]) as client:
        closing = worker(valkey.url, hang)
        async with closing:
            await client.enqueue_and_forget(QUEUE, b"x")
            await runs.reach(1)
            patient = asyncio.create_task(closing.close(grace=1000))
            await asyncio.sleep(0)
            await closing.close(grace=0)
            await patient
            await closing.close()
        await closing.close()
    assert queue.data() == [b"x"]
    assert queue.consumers() == []


@asynchronous
async def test_a_server_that_never_started_closes_at_once() -> None:
    """close() before run(), and a run() that never reached Redis."""
    server = Server("redis://127.0.0.1:1")
    await server.close()
    async with asyncio.timeout(5):
        async with worker("redis://127.0.0.1:1", Runs()):
            await asyncio.sleep(0)


# --- Outages ----------------------------------------------------------------------------------------------


@asynchronous
async def test_a_close_during_an_outage_ends_within_its_bounds(valkey: LocalServer) -> None:
    """Redis is away: client and server end all the same; the task's lease runs out, then another takes it."""
    first, second, queue = Runs(), Runs(), Queue(valkey)

    async def hang(task: Task) -> None:
        first.record(task)
        await asyncio.Event().wait()

    with Proxy(valkey.port) as proxy:
        client, server = (
            Client(proxy.url, queues=[QUEUE], command_timeout=0.5),
            worker(proxy.url, hang, grace=0.1, **quick()),
        )
        async with server:
            await client.enqueue_and_forget(QUEUE, b"x")
            await first.reach(1)
            proxy.stall()
            begun_at = time.monotonic()
            await client.enqueue_and_forget(QUEUE, b"y")
            report = await client.close(timeout=0.1)
            assert len(report.unknown) == 1
            # The batch in flight is waited for, then the removal of the client's keys.
            assert time.monotonic() - begun_at < 0.1 + 2 * 0.5 + 2
            begun_at = time.monotonic()
            await server.close()
            assert time.monotonic() - begun_at < 0.1 + 5 + 2
        async with worker(valkey.url, second, **quick()):
            await second.reach(1)
            await queue.rest()
    assert second.times == each_once([b"x"])
    assert [task.deliveries for task in second.tasks] == [2]


# --- Nothing is left behind -------------------------------------------------------------------------------


@asynchronous
async def test_nothing_is_left_of_a_closed_client_and_a_closed_server(server: LocalServer) -> None:
    """G4: no consumer, no receiver stream, no producer's entry; only the queue's own keys stay."""
    queue = Queue(server)
    client = Client(server.url, queues=[QUEUE])

    async def handler(task: Task) -> None:
        if task.attempt == 1 and task.data == b"task 7":
            raise RuntimeError("once more, by way of the delayed set")

    async with worker(server.url, handler, concurrency=3):
        handles = await client.enqueue_many(QUEUE, payloads(20), track=True, retry_delay=0.02)
        for handle in handles:
            await handle.wait(timeout=20)
        assert len(queue.consumers()) == 1
        assert queue.call("ZRANGE", queue.keys.receivers, 0, -1) == [client.client_id.encode()]
        await queue.rest()
    assert queue.consumers() == []
    await client.close()
    assert queue.all_keys() == {queue.keys.stream, queue.keys.fence, queue.keys.promotions}
    assert queue.call("XLEN", queue.keys.stream) == 0


@asynchronous
async def test_a_client_that_closes_leaves_the_others_alone(valkey: LocalServer) -> None:
    """Only one's own entries are removed."""
    queue = Queue(valkey)
    async with Client(valkey.url, queues=[QUEUE]) as stays, worker(valkey.url, Runs()):
        await (await stays.enqueue_and_track(QUEUE, b"x")).wait(timeout=20)
        async with Client(valkey.url, queues=[QUEUE]) as leaves:
            await (await leaves.enqueue_and_track(QUEUE, b"y")).wait(timeout=20)
        assert queue.call("ZRANGE", queue.keys.receivers, 0, -1) == [stays.client_id.encode()]
        fields = queue.call("HKEYS", queue.keys.producers)
        assert set(fields) == {stays.client_id.encode(), f"{stays.client_id}:t".encode()}
        assert queue.call("EXISTS", queue.keys.connection(stays.client_id)) == 1
        assert await (await stays.enqueue_and_track(QUEUE, b"z")).wait(timeout=20) is None


@asynchronous
async def test_a_rolling_restart_of_workers_runs_each_task_once(server: LocalServer) -> None:
    """Workers that come and go while tasks flow: closing loses no task, runs none twice, and leaves no consumer."""
    runs, queue = Runs(), Queue(server)
    data = payloads(600)

    async def handler(task: Task) -> bytes:
        runs.record(task)
        await asyncio.sleep(0.001)
        return task.data

    async with Client(server.url, queues=[QUEUE]) as client:

        async def produce() -> list[bytes | None]:
            handles = []
            for each in data:
                handles.append(await client.enqueue_and_track(QUEUE, each))
                if len(handles) % 10 == 0:
                    await asyncio.sleep(0.005)
            return [await handle.wait(timeout=30) for handle in handles]

        producing = asyncio.create_task(produce())
        generations = 0
        while not producing.done():
            generations += 1
            async with worker(server.url, handler, concurrency=4, prefetch=8):
                seen = len(runs)
                await until(lambda: len(runs) >= min(seen + 40, len(data)) or producing.done())  # noqa: B023
        assert await producing == data
        await queue.rest()
    assert generations > 3
    assert runs.times == each_once(data)
    assert queue.consumers() == []


# --- Fatal errors -----------------------------------------------------------------------------------------


async def broken_in_mid_run(server: LocalServer) -> None:
    """Wait in the body of a server whose stream becomes something else."""
    queue = Queue(server)
    async with worker(server.url, Runs(), **quick()):
        await until(queue.all_keys)
        queue.call("SET", queue.keys.stream, "something else")
        await asyncio.Event().wait()


@asynchronous
async def test_a_fatal_error_cancels_the_body_and_is_raised_on_exit(start: StartServer) -> None:
    """`async with server`: its body ends, and the reason comes out; the task around it is not left canceled."""

    async def check(server: LocalServer) -> None:
        with pytest.raises(ServerRefused) as refused:
            await broken_in_mid_run(server)
        assert refused.value.code == "WRONGTYPE"
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        await asyncio.sleep(0)

    await asyncio.gather(*[check(start(kind)) for kind in KINDS])


@asynchronous
async def test_an_error_of_the_body_is_not_hidden_by_a_fatal_one(valkey: LocalServer) -> None:
    """What the body itself raises comes out."""
    queue = Queue(valkey)
    queue.call("SET", queue.keys.stream, "something else")

    async def fail_when_canceled() -> None:
        async with worker(valkey.url, Runs()):
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_when_canceled()


@asynchronous
async def test_a_body_that_ends_in_peace_hears_of_the_fatal_error_too(valkey: LocalServer) -> None:
    """The body catches its cancellation: leaving the server raises all the same."""
    queue = Queue(valkey)
    queue.call("SET", queue.keys.stream, "something else")

    async def go_on_when_canceled() -> None:
        async with worker(valkey.url, Runs()):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    with pytest.raises(ServerRefused):
        await go_on_when_canceled()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@asynchronous
async def test_a_fatal_error_in_one_queue_hands_back_the_tasks_of_the_others(valkey: LocalServer) -> None:
    """run() raises; what the server held of sound queues is in them again."""
    sound, broken = Queue(valkey, "sound"), Queue(valkey, "broken")
    runs = Runs()

    async def hang(task: Task) -> None:
        runs.record(task)
        await asyncio.Event().wait()

    server = Server(valkey.url, **quick(prefetch=2))
    server.handler("sound")(hang)
    server.handler("broken")(hang)
    async with Client(valkey.url, queues=["sound"]) as client:
        running = asyncio.create_task(server.run())
        await client.enqueue_many("sound", payloads(3))
        await until(lambda: len(runs) == 1 and len(sound.pending()) == 3)
        broken.call("SET", broken.keys.stream, "something else")
        with pytest.raises(ServerRefused) as refused:
            await running
        assert refused.value.code == "WRONGTYPE"
        assert sorted(sound.data()) == payloads(3)
        assert sound.pending() == []
