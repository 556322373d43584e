"""The plain life of tasks: forgotten and tracked, succeeding and failing, expiring, delayed, in many at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from streamfleet_drivers.asyncio import Client, Server, Task, TaskExpired, TaskFailed, events
from streamfleet_drivers.local_server import LocalServer
from tests.drivers.support import QUEUE, SHORT, Events, Queue, Runs, asynchronous, each_once, payloads, until, worker
from tests.support.proxy import Proxy


@asynchronous
async def test_a_forgotten_task_runs_once(server: LocalServer) -> None:
    """G1, G4: an accepted task runs, and nothing is left of it."""
    runs, queue = Runs(), Queue(server)
    async with worker(server.url, runs), Client(server.url, queues=[QUEUE]) as client:
        task_id = await client.enqueue_and_forget(QUEUE, b"hello")
        await runs.reach(1)
        await queue.rest()
    assert [(task.id, task.data, task.attempt) for task in runs.tasks] == [(task_id, b"hello", 1)]
    assert queue.added() == 1


@asynchronous
async def test_a_tracked_task_answers_with_its_result(server: LocalServer) -> None:
    """G2: the handle settles with what the handler returned."""

    async def handler(task: Task) -> bytes:
        return task.data.upper()

    queue = Queue(server)
    async with worker(server.url, handler), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"hello")
        await handle.confirmed(timeout=20)
        assert await handle.wait(timeout=20) == b"HELLO"
        assert handle.done()
        assert await handle.wait() == b"HELLO"
        await queue.rest()
        await until(lambda: not queue.words(client.client_id), "words that were read stayed in the receiver stream")


@asynchronous
async def test_many_tracked_tasks_each_get_their_own_result(server: LocalServer) -> None:
    """G2, G3: no result is mixed up, no task runs twice."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> bytes:
        runs.record(task)
        return task.data

    data = payloads(2000)
    async with worker(server.url, handler, concurrency=16), Client(server.url, queues=[QUEUE]) as client:
        handles = await client.enqueue_many(QUEUE, data, track=True)
        assert [await handle.wait(timeout=30) for handle in handles] == data
        await queue.rest()
    assert runs.times == each_once(data)
    assert queue.added() == len(data)


@asynchronous
async def test_tasks_are_run_in_the_order_of_their_enqueueing(valkey: LocalServer) -> None:
    """One worker with one handler at a time keeps the order of one client."""
    runs = Runs()
    data = payloads(300)
    async with worker(valkey.url, runs), Client(valkey.url, queues=[QUEUE]) as client:
        for each in data:
            await client.enqueue_and_forget(QUEUE, each)
        await runs.reach(len(data))
    assert [task.data for task in runs.tasks] == data


@asynchronous
async def test_a_failing_tracked_task_is_retried_and_then_fails(server: LocalServer) -> None:
    """max_retries counts retries exactly; TaskFailed carries the handler's own text; the task is a dead letter."""
    runs, queue, noted = Runs(), Queue(server), Events()

    async def handler(task: Task) -> None:
        runs.record(task)
        raise ValueError(f"attempt {task.attempt} went wrong")

    async with (
        worker(server.url, handler, on_event=noted),
        Client(server.url, queues=[QUEUE]) as client,
    ):
        handle = await client.enqueue_and_track(QUEUE, b"bad", max_retries=3, retry_delay=0)
        with pytest.raises(TaskFailed) as failure:
            await handle.wait(timeout=20)
        assert failure.value.reason == "ValueError: attempt 4 went wrong"
        assert failure.value.task_id == handle.task_id
        await queue.rest()
    assert runs.attempts(b"bad") == [1, 2, 3, 4]
    assert {task.id for task in runs.tasks} == {handle.task_id}
    assert [note.attempt for note in noted.of(events.TaskRetried)] == [1, 2, 3]
    assert queue.dead_reasons() == ["ValueError: attempt 4 went wrong"]
    assert queue.added() == 4


@asynchronous
async def test_a_failing_forgotten_task_is_retried_and_then_dead(server: LocalServer) -> None:
    """A task that nobody tracks has the same retries, and ends among the dead letters."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        raise RuntimeError("never")

    async with worker(server.url, handler), Client(server.url, queues=[QUEUE]) as client:
        await client.enqueue_and_forget(QUEUE, b"bad", max_retries=2, retry_delay=0)
        await until(queue.dead)
        await queue.rest()
    assert runs.attempts(b"bad") == [1, 2, 3]
    assert [(letter[b"data"], letter[b"retries"]) for letter in queue.dead()] == [(b"bad", b"2")]


@asynchronous
async def test_no_retries_means_a_single_run(valkey: LocalServer) -> None:
    """max_retries=0 is never, though the Go library's 0 on the wire is for ever."""
    runs = Runs()

    async def handler(task: Task) -> None:
        runs.record(task)
        raise RuntimeError("no")

    async with worker(valkey.url, handler), Client(valkey.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"once", max_retries=0, retry_delay=0)
        with pytest.raises(TaskFailed, match="RuntimeError: no"):
            await handle.wait(timeout=20)
    assert runs.attempts(b"once") == [1]
    assert runs.tasks[0].max_retries == 0


@asynchronous
async def test_a_task_that_fails_twice_succeeds_in_the_third_attempt(server: LocalServer) -> None:
    """Without max_retries a task is tried until it succeeds."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> str:
        runs.record(task)
        if task.attempt < 3:
            raise RuntimeError("not yet")
        return "done"

    async with worker(server.url, handler), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"shy", retry_delay=0)
        assert await handle.wait(timeout=20) == b"done"
        await queue.rest()
    assert runs.attempts(b"shy") == [1, 2, 3]
    assert not queue.dead()


@pytest.mark.parametrize("prefetch", [None, 0, 5])
@asynchronous
async def test_as_many_handlers_run_at_once_as_were_asked_for_and_never_more(
    valkey: LocalServer, prefetch: int | None
) -> None:
    """`concurrency` is reached, and never passed, whatever is prefetched."""
    running, most, go_on = 0, 0, asyncio.Event()

    async def handler(task: Task) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await (go_on.wait() if task.data == b"slow" else asyncio.sleep(0.001))
        running -= 1

    async with (
        worker(valkey.url, handler, concurrency=7, prefetch=prefetch),
        Client(valkey.url, queues=[QUEUE]) as client,
    ):
        handles = await client.enqueue_many(QUEUE, [b"slow"] * 7 + [b"quick"] * 100, track=True)
        await until(lambda: running == 7)
        go_on.set()
        for handle in handles:
            await handle.wait(timeout=20)
    assert most == 7


@asynchronous
async def test_a_task_that_expires_in_the_queue_is_never_run(valkey: LocalServer) -> None:
    """Without a word of a worker a handle ends at its deadline, unconfirmed; the worker then runs nothing."""
    runs, queue, noted = Runs(), Queue(valkey), Events()
    async with Client(valkey.url, queues=[QUEUE]) as client:
        in_time = await client.enqueue_and_track(QUEUE, b"in time", expires_in=60)
        await in_time.confirmed(timeout=20)
        # From here on a task leaves at once, long before it expires.
        late = await client.enqueue_and_track(QUEUE, b"late", expires_at=time.time() + 0.5)
        forgotten = await client.enqueue_and_forget(QUEUE, b"forgotten", expires_in=0.5)
        await client.flush(20)
        with pytest.raises(TaskExpired) as expired:
            await late.wait(timeout=20)
        assert not expired.value.confirmed
        await queue.pass_by(max(int(fields[b"expires_ts"]) for fields in queue.entries()[1:]))
        async with worker(valkey.url, runs, on_event=noted):
            await in_time.wait(timeout=20)
            await queue.rest()
    assert [task.data for task in runs.tasks] == [b"in time"]
    assert {note.task_id for note in noted.of(events.TaskHasExpired)} == {late.task_id, forgotten}
    deadline = runs.tasks[0].deadline
    assert deadline is not None
    assert timedelta(seconds=30) < deadline - datetime.now(UTC) < timedelta(seconds=90)


@asynchronous
async def test_a_worker_confirms_that_a_task_has_expired(valkey: LocalServer) -> None:
    """A worker's word that a task is expired reaches its handle: it is certain that no handler ran."""
    runs, queue, go_on = Runs(), Queue(valkey), asyncio.Event()

    async def handler(task: Task) -> None:
        runs.record(task)
        await go_on.wait()

    with Proxy(valkey.port) as proxy:
        async with worker(valkey.url, handler, prefetch=5), Client(proxy.url, queues=[QUEUE]) as client:
            await client.enqueue_and_forget(QUEUE, b"first")
            await runs.reach(1)
            late = await client.enqueue_and_track(QUEUE, b"late", expires_in=2)
            await until(lambda: len(queue.pending()) == 2)
            # The client's own conclusion waits for one more look at its notifications, which is held up.
            proxy.stall()
            await queue.pass_by(int(queue.entries()[1][b"expires_ts"]))
            go_on.set()
            await until(lambda: queue.words(client.client_id))
            proxy.flow()
            with pytest.raises(TaskExpired) as expired:
                await late.wait(timeout=20)
            assert expired.value.confirmed
            await queue.rest()
    assert [task.data for task in runs.tasks] == [b"first"]


@asynchronous
async def test_a_task_that_expires_before_redis_is_reached_is_never_sent(valkey: LocalServer) -> None:
    """A task that never left the process expires for certain, and nothing of it is sent later."""
    queue, noted = Queue(valkey), Events()
    with Proxy(valkey.port) as proxy:
        proxy.refuse = True
        async with Client(proxy.url, queues=[QUEUE], on_event=noted) as client:
            late = await client.enqueue_and_track(QUEUE, b"late", expires_in=0.2)
            forgotten = await client.enqueue_and_forget(QUEUE, b"forgotten", expires_in=0.2)
            with pytest.raises(TaskExpired) as expired:
                await late.wait(timeout=20)
            assert expired.value.confirmed
            proxy.refuse = False
            await client.enqueue_and_forget(QUEUE, b"marker")
            await client.flush(20)
            assert queue.data() == [b"marker"]
    assert [note.task_id for note in noted.of(events.ExpiredUnsent)] == [forgotten]


@asynchronous
async def test_a_task_expires_where_redis_is_never_reached() -> None:
    """G2 without any Redis: the handle settles at its deadline, and closing tells that nothing was sent."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        client = Client(f"redis://127.0.0.1:{nobody.getsockname()[1]}", queues=[QUEUE])
        handle = await client.enqueue_and_track(QUEUE, b"late", expires_in=timedelta(milliseconds=200))
        with pytest.raises(TaskExpired) as expired:
            await handle.wait(timeout=20)
        assert expired.value.confirmed
        report = await client.close(timeout=0)
    assert (report.confirmed, report.unsent, report.unknown) == (0, (), ())


@asynchronous
async def test_tasks_wait_for_a_server_that_starts_later(server: LocalServer) -> None:
    """A queue exists before its first worker; the group is made from the first entry on."""
    runs, queue = Runs(), Queue(server)
    data = payloads(50)
    async with Client(server.url, queues=[QUEUE]) as client:
        handles = await client.enqueue_many(QUEUE, data[:25], track=True)
        await client.enqueue_many(QUEUE, data[25:])
        await client.flush(20)
        assert queue.data() == data
        async with worker(server.url, runs, concurrency=4):
            for handle in handles:
                await handle.wait(timeout=20)
            await queue.rest()
    assert runs.times == each_once(data)


@asynchronous
async def test_a_retry_waits_in_redis_for_its_delay(server: LocalServer) -> None:
    """retry_delay: the task is in the delayed set meanwhile, not in a worker's memory, and runs when it is due."""
    started: list[float] = []
    queue = Queue(server)

    async def handler(task: Task) -> None:
        started.append(time.monotonic())
        if task.attempt == 1:
            raise RuntimeError("not yet")

    async with worker(server.url, handler), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"again", retry_delay=1.5)
        await until(queue.delayed)
        assert [fields[b"retries"] for fields in queue.delayed()] == [b"1"]
        assert queue.entries() == []
        assert queue.pending() == []
        await handle.wait(timeout=20)
        await queue.rest()
    # Jitter takes at most half of the delay.
    assert started[1] - started[0] >= 0.49
    assert queue.added() == 2


@asynchronous
async def test_retry_delays_grow_by_their_factor_up_to_their_bound(valkey: LocalServer) -> None:
    """retry_backoff and retry_delay_max, with jitter on the upper half."""
    noted = Events()

    async def handler(task: Task) -> None:
        raise RuntimeError("no")

    async with worker(valkey.url, handler, on_event=noted), Client(valkey.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(
            QUEUE, b"x", max_retries=4, retry_delay=0.02, retry_backoff=3, retry_delay_max=0.1
        )
        with pytest.raises(TaskFailed):
            await handle.wait(timeout=20)
    delays = [note.delay_ms for note in noted.of(events.TaskRetried)]
    for delay, full in zip(delays, [20, 60, 100, 100], strict=True):
        assert full // 2 <= delay <= full


@asynchronous
async def test_a_delayed_task_is_not_run_before_its_time(valkey: LocalServer) -> None:
    """delay= and at= at enqueue: the task waits in Redis, on Redis's clock."""
    ran_at: dict[bytes, int] = {}
    queue = Queue(valkey)

    async def handler(task: Task) -> None:
        ran_at[task.data] = queue.redis_ms()

    async with worker(valkey.url, handler), Client(valkey.url, queues=[QUEUE]) as client:
        before = queue.redis_ms()
        handles = [
            await client.enqueue_and_track(QUEUE, b"delay", delay=0.8),
            await client.enqueue_and_track(QUEUE, b"at", at=before / 1000 + 0.7),
            await client.enqueue_and_track(QUEUE, b"now"),
        ]
        await client.flush(20)
        await handles[2].wait(timeout=20)
        for handle in handles:
            await handle.wait(timeout=20)
        await queue.rest()
    assert ran_at[b"delay"] >= before + 500
    assert ran_at[b"at"] >= before + 700


@asynchronous
async def test_one_server_serves_several_queues(server: LocalServer) -> None:
    """Each queue has its own handler, its own keys, and its share of the server."""
    names = ["red", "green", "{tagged}:blue"]
    seen: dict[str, Runs] = {name: Runs() for name in names}
    queues = [Queue(server, name) for name in names]
    consumer = Server(server.url, **SHORT)
    for name in names:
        consumer.handler(name)(seen[name])
    data = {name: payloads(100, name) for name in names}
    async with consumer, Client(server.url, queues=names) as client:
        handles = [handle for name in names for handle in await client.enqueue_many(name, data[name], track=True)]
        for handle in handles:
            await handle.wait(timeout=20)
        for queue in queues:
            await queue.rest()
    for name in names:
        assert seen[name].times == each_once(data[name])
        assert {task.queue for task in seen[name].tasks} == {name}


@asynchronous
async def test_a_busy_queue_starves_no_other(valkey: LocalServer) -> None:
    """The queues of a server are read in turn: a short queue is served while a long one is far from empty."""
    order: list[str] = []

    async def handler(task: Task) -> None:
        order.append(task.queue)

    consumer = Server(valkey.url, **SHORT)
    consumer.handler("long")(handler)
    consumer.handler("short")(handler)
    async with Client(valkey.url, queues=["long", "short"]) as client:
        await client.enqueue_many("long", payloads(3000))
        await client.enqueue_many("short", payloads(10))
        await client.flush(20)
        async with consumer:
            await until(lambda: len(order) == 3010)
    last = max(at for at, name in enumerate(order) if name == "short")
    assert last < 2000


@asynchronous
async def test_several_servers_share_the_work_of_one_queue(server: LocalServer) -> None:
    """Servers on one queue each get tasks, and no task goes to two of them."""
    queue, all_runs = Queue(server), [Runs(), Runs(), Runs()]
    data = payloads(60)
    full = asyncio.Event()

    def handler_of(runs: Runs) -> Callable[[Task], Awaitable[None]]:
        async def handler(task: Task) -> None:
            runs.record(task)
            await full.wait()

        return handler

    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(server.url, queues=[QUEUE]))
        for runs in all_runs:
            await stack.enter_async_context(worker(server.url, handler_of(runs), concurrency=10))
        handles = await client.enqueue_many(QUEUE, data, track=True)
        await until(lambda: all(len(runs) == 10 for runs in all_runs))
        assert len(queue.pending()) == 30, "a busy worker holds what an idle one could take"
        full.set()
        for handle in handles:
            await handle.wait(timeout=20)
        await queue.rest()
    assert sum((runs.times for runs in all_runs), Counter()) == each_once(data)
