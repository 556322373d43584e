"""Cancellation: whoever gives up waiting loses no task, spoils no connection, and changes nothing for the others."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from streamfleet_drivers.asyncio import Client, Task, TaskHandle
from streamfleet_drivers.local_server import LocalServer
from tests.drivers.support import QUEUE, Queue, Runs, asynchronous, each_once, payloads, until, worker
from tests.support.proxy import Proxy


async def cancel(task: asyncio.Task[Any]) -> BaseException | None:
    """Cancel a task that waits; what it ended with."""
    task.cancel()
    result: Any = (await asyncio.gather(task, return_exceptions=True))[0]
    return result if isinstance(result, BaseException) else None


@asynchronous
async def test_a_canceled_enqueue_keeps_what_was_accepted(valkey: LocalServer) -> None:
    """A call that waits for room is canceled: what it had put in is sent, the rest never is; others move up."""
    queue = Queue(valkey)
    with Proxy(valkey.port) as proxy:
        proxy.refuse = True
        async with Client(proxy.url, queues=[QUEUE], max_local_queue=5) as client:
            accepted: list[int] = []

            async def enqueue_many() -> None:
                try:
                    await client.enqueue_many(QUEUE, payloads(8))
                except asyncio.CancelledError as error:
                    accepted.append(error.accepted)  # type: ignore[attr-defined]
                    raise

            many = asyncio.create_task(enqueue_many())
            single = asyncio.create_task(client.enqueue_and_track(QUEUE, b"never"))
            last = asyncio.create_task(client.enqueue_and_forget(QUEUE, b"last"))
            await asyncio.sleep(0)
            assert isinstance(await cancel(single), asyncio.CancelledError)
            assert isinstance(await cancel(many), asyncio.CancelledError)
            assert accepted == [5]
            assert not last.done()
            proxy.refuse = False
            await last
            await client.flush(20)
            assert queue.data() == [*payloads(5), b"last"]


@asynchronous
async def test_a_timeout_around_an_enqueue_works_like_a_cancellation(valkey: LocalServer) -> None:
    """asyncio.timeout around a call that waits for room."""
    queue = Queue(valkey)
    with Proxy(valkey.port) as proxy:
        proxy.refuse = True
        async with Client(proxy.url, queues=[QUEUE], max_local_queue=1) as client:
            await client.enqueue_and_forget(QUEUE, b"first")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.enqueue_and_forget(QUEUE, b"never")
            with pytest.raises(TimeoutError):
                await client.flush(0.05)
            proxy.refuse = False
            await client.flush(20)
            assert queue.data() == [b"first"]


@asynchronous
async def test_giving_up_a_wait_leaves_the_handle_open(server: LocalServer) -> None:
    """A canceled wait and one whose time is over change nothing: the next wait, and those of others, get the result."""
    go_on = asyncio.Event()

    async def handler(task: Task) -> bytes:
        await go_on.wait()
        return b"result"

    async with worker(server.url, handler), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x")
        others = [asyncio.create_task(handle.wait(timeout=20)) for _ in range(3)]
        canceled = asyncio.create_task(handle.wait())
        await asyncio.sleep(0)
        assert isinstance(await cancel(canceled), asyncio.CancelledError)
        with pytest.raises(TimeoutError):
            await handle.wait(timeout=0.02)
        with pytest.raises(TimeoutError):
            await handle.wait(timeout=0)
        assert not handle.done()
        assert not any(other.done() for other in others)
        go_on.set()
        assert await asyncio.gather(*others) == [b"result"] * 3
        assert await handle.wait(timeout=0) == b"result"


@asynchronous
async def test_canceling_run_closes_the_server_and_hands_back(server: LocalServer) -> None:
    """Canceling run() is close() with the server's grace: what is unfinished runs elsewhere, at once and once."""
    first, second, queue = Runs(), Runs(), Queue(server)
    data = payloads(5)

    async def hang(task: Task) -> None:
        first.record(task)
        await asyncio.Event().wait()

    async with Client(server.url, queues=[QUEUE]) as client:
        running = asyncio.create_task(worker(server.url, hang, concurrency=2, prefetch=3, grace=0).run())
        handles = await client.enqueue_many(QUEUE, data, track=True)
        await until(lambda: len(first) == 2 and len(queue.pending()) == len(data))
        assert isinstance(await cancel(running), asyncio.CancelledError)
        assert running.cancelled()
        assert queue.pending() == []
        assert queue.consumers() == []
        assert all(task.canceled and "closing" in task.cancel_reason for task in first.tasks)
        async with worker(server.url, second):
            for handle in handles:
                assert await handle.wait(timeout=20) is None
            await queue.rest()
    assert second.times == each_once(data)
    assert {task.attempt for task in second.tasks} == {1}


@asynchronous
async def test_canceling_a_close_lets_the_closing_go_on(valkey: LocalServer) -> None:
    """Whoever waits for a close may give up; the closing goes on, and another close waits for its end."""
    queue, go_on, runs = Queue(valkey), asyncio.Event(), Runs()

    async def handler(task: Task) -> None:
        runs.record(task)
        await go_on.wait()

    client, server = Client(valkey.url, queues=[QUEUE]), worker(valkey.url, handler)
    async with server:
        handle = await client.enqueue_and_track(QUEUE, b"x")
        await runs.reach(1)
        closing = asyncio.create_task(server.close(grace=20))
        await asyncio.sleep(0)
        await cancel(closing)
        go_on.set()
        await server.close()
    assert await handle.wait(timeout=20) is None
    closing_client = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    await cancel(closing_client)
    report = await client.close()
    assert report.confirmed == 1
    assert queue.consumers() == []


@asynchronous
async def test_random_cancellations_lose_no_task_and_spoil_no_connection(server: LocalServer) -> None:
    """Hundreds of calls canceled at random moments under load: what was accepted runs once, what was not never does,
    and the connections are the first ones still."""
    chance = random.Random(20240719)
    runs, queue = Runs(), Queue(server)
    accepted: list[bytes] = []
    handles: list[TaskHandle] = []

    async def handler(task: Task) -> bytes:
        runs.record(task)
        await asyncio.sleep(0)
        return task.data

    async def enqueue(client: Client, number: int) -> None:
        data = payloads(chance.randrange(1, 12), f"call {number}")
        track = chance.random() < 0.5
        try:
            if track:
                handles.extend(await client.enqueue_many(QUEUE, data, track=True))
            else:
                await client.enqueue_many(QUEUE, data)
        except asyncio.CancelledError as error:
            accepted.extend(data[: error.accepted])  # type: ignore[attr-defined]
            raise
        accepted.extend(data)

    async def wait_or_flush(client: Client) -> None:
        if handles and chance.random() < 0.7:
            await chance.choice(handles).wait()
        else:
            await client.flush()

    with Proxy(server.port) as proxy:
        async with (
            worker(proxy.url, handler, concurrency=4),
            Client(proxy.url, queues=[QUEUE], max_local_queue=20) as client,
        ):
            calls: list[asyncio.Task[None]] = []
            for number in range(300):
                calls.append(asyncio.create_task(enqueue(client, number)))
                calls.append(asyncio.create_task(wait_or_flush(client)))
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                for call in chance.sample(calls, min(len(calls), chance.randrange(4))):
                    call.cancel()
                calls = [call for call in calls if not call.done()]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert not [r for r in results if isinstance(r, Exception)]
            await client.flush(20)
            for handle in handles:
                await handle.wait(timeout=20)
            await until(lambda: len(runs) >= len(accepted))
            await queue.rest()
            # Two lanes each for client and worker.
            assert proxy.connections == 4
    assert runs.times == each_once(accepted)
    assert queue.added() == len(accepted)


@asynchronous
async def test_canceling_a_body_closes_both_sides_in_order(valkey: LocalServer) -> None:
    """`async with` around client and server, canceled from outside: both are closed, nothing is left."""
    queue, runs = Queue(valkey), Runs()

    async def body() -> None:
        async with worker(valkey.url, runs), Client(valkey.url, queues=[QUEUE]) as client:
            await client.enqueue_many(QUEUE, payloads(100))
            await asyncio.Event().wait()

    running = asyncio.create_task(body())
    await runs.reach(1)
    with contextlib.suppress(asyncio.CancelledError):
        running.cancel()
        await running
    assert running.cancelled()
    assert queue.consumers() == []
    assert queue.pending() == []
    assert len(runs) + len(queue.entries()) == 100
