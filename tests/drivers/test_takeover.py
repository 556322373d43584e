"""Workers that die, freeze or stand still: their tasks are taken over in time, and nobody else's are."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streamfleet_drivers.asyncio import Client, Server, Task, TaskFailed, events
from streamfleet_drivers.local_server import LocalServer
from tests.conftest import StartServer
from tests.drivers.support import QUEUE, Events, Queue, Runs, asynchronous, each_once, payloads, quick, until, worker
from tests.drivers.workers import Record, worker_process
from tests.support.servers import KINDS, Kind


async def kill_and_take_over(
    server: LocalServer, record: Record, heir: Callable[[Runs, Events], Server], *options: str
) -> float:
    """Kill a worker that runs five tasks and holds five more; how long it took until all had run elsewhere."""
    runs, queue, noted = Runs(), Queue(server), Events()
    data = payloads(10)
    async with Client(server.url, queues=[QUEUE]) as client:
        with worker_process(server.url, record, -1, "--concurrency=5", "--prefetch=5", *options) as doomed:
            await doomed.ready()
            handles = await client.enqueue_many(QUEUE, data, track=True)
            await until(lambda: len(queue.pending()) == len(data) and len(record.of("begin")) == 5)
            async with heir(runs, noted):
                doomed.kill()
                killed_at = time.monotonic()
                for handle in handles:
                    assert await handle.wait(timeout=120) is None
                elapsed = time.monotonic() - killed_at
                await queue.rest()
    assert runs.times == each_once(data)
    assert record.of("end") == []
    assert {task.deliveries for task in runs.tasks} == {2}
    assert len(noted.of(events.TaskClaimed)) == len(data)
    assert queue.added() == len(data)
    return elapsed


@asynchronous
async def test_tasks_of_a_killed_worker_run_within_ten_seconds(start: StartServer, tmp_path: Path) -> None:
    """SIGKILL with lease 4 s and renewal 1 s: what the worker ran or held runs again elsewhere, exactly once more."""

    async def take_over(kind: Kind) -> float:
        server = start(kind)
        return await kill_and_take_over(
            server, Record(tmp_path / kind), lambda runs, noted: worker(server.url, runs, concurrency=4, on_event=noted)
        )

    elapsed = await asyncio.gather(*map(take_over, KINDS))
    print("recovery with lease 4 s:", ", ".join(f"{seconds:.1f} s" for seconds in elapsed))
    assert max(elapsed) < 10


@pytest.mark.skipif(os.environ.get("STREAMFLEET_SLOW", "") in ("", "0"), reason="takes 75 s; set STREAMFLEET_SLOW=1")
@pytest.mark.timeout(150)
def test_tasks_of_a_killed_worker_run_within_ninety_seconds_by_default(valkey: LocalServer, tmp_path: Path) -> None:
    """SIGKILL with the default settings, lease 60 s and renewal 10 s."""

    def heir(runs: Runs, noted: Events) -> Server:
        server = Server(valkey.url, on_event=noted)
        server.handler(QUEUE)(runs)
        return server

    record = Record(tmp_path / "record")
    elapsed = asyncio.run(kill_and_take_over(valkey, record, heir, "--lease=60", "--renew=10"))
    print(f"recovery with default settings: {elapsed:.1f} s")
    assert elapsed < 90


@asynchronous
async def test_a_busy_worker_keeps_its_tasks(valkey: LocalServer) -> None:
    """Handlers that run for several leases are renewed all the time: an idle worker beside them takes nothing."""
    first, second, queue = Runs(), Runs(), Queue(valkey)
    noted, go_on = Events(), asyncio.Event()

    async def handler(task: Task) -> None:
        first.record(task)
        await go_on.wait()

    async with (
        worker(valkey.url, handler, on_event=noted, **quick(concurrency=3, prefetch=3)),
        Client(valkey.url, queues=[QUEUE]) as client,
    ):
        handles = await client.enqueue_many(QUEUE, payloads(6), track=True)
        await until(lambda: len(queue.pending()) == 6)
        async with worker(valkey.url, second, on_event=noted, **quick(concurrency=6)):
            begun_at = time.monotonic()
            await until(lambda: time.monotonic() > begun_at + 3)
            go_on.set()
            for handle in handles:
                await handle.wait(timeout=20)
            await queue.rest()
    assert not noted.of(events.TaskClaimed)
    assert first.times + second.times == each_once(payloads(6))


@asynchronous
async def test_a_frozen_worker_loses_its_task_and_its_failure_counts_no_more(
    valkey: LocalServer, tmp_path: Path
) -> None:
    """SIGSTOP for longer than a lease: another takes over; the thawed worker finds its lease lost and stops."""
    runs, queue, record = Runs(), Queue(valkey), Record(tmp_path / "record")
    go_on = asyncio.Event()

    async def handler(task: Task) -> None:
        runs.record(task)
        await go_on.wait()

    options = ("--lease=1.2", "--renew=0.3")
    async with Client(valkey.url, queues=[QUEUE]) as client:
        with worker_process(valkey.url, record, -1, *options) as frozen:
            await frozen.ready()
            handle = await client.enqueue_and_track(QUEUE, b"long")
            await until(lambda: record.of("begin"))
            frozen.freeze()
            async with worker(valkey.url, handler, **quick()):
                await runs.reach(1)
                frozen.thaw()
                await until(lambda: record.of("TaskReleased"))
                assert record.of("Stalled")
                assert record.of("LeaseLost")
                assert queue.pending()[0][3] == 2
                go_on.set()
                await handle.wait(timeout=20)
                await queue.rest()
    assert len(runs) == 1
    assert record.of("begin") == ["long"]
    assert queue.added() == 1


@asynchronous
async def test_a_success_after_the_lease_was_lost_still_counts(valkey: LocalServer, tmp_path: Path) -> None:
    """First success wins: the work is done, whoever has the entry by then, and the other is told to stop."""
    runs, queue, record, noted = Runs(), Queue(valkey), Record(tmp_path / "record"), Events()

    async def handler(task: Task) -> None:
        runs.record(task)
        await asyncio.Event().wait()

    async with Client(valkey.url, queues=[QUEUE]) as client:
        with worker_process(valkey.url, record, 2.0, "--lease=1.2", "--renew=0.3") as frozen:
            await frozen.ready()
            handle = await client.enqueue_and_track(QUEUE, b"long")
            await until(lambda: record.of("begin"))
            begun_at = time.monotonic()
            frozen.freeze()
            async with worker(valkey.url, handler, on_event=noted, **quick()):
                await runs.reach(1)
                await until(lambda: time.monotonic() > begun_at + 2.5)
                frozen.thaw()
                # Its handler is over at once, before any reply can tell that the lease was lost.
                assert await handle.wait(timeout=20) == b"long"
                await noted.reach(events.LeaseLost)
                await until(lambda: runs.tasks[0].canceled)
                await queue.rest()
    assert "the entry is gone" in runs.tasks[0].cancel_reason
    assert len(runs) == 1


@asynchronous
async def test_a_stalled_event_loop_is_told_about_and_costs_no_lease(valkey: LocalServer, tmp_path: Path) -> None:
    """A handler that blocks the event loop for longer than a renewal: Stalled is noted, nothing runs twice."""
    runs, queue, record, noted = Runs(), Queue(valkey), Record(tmp_path / "record"), Events()
    go_on = asyncio.Event()

    async def handler(task: Task) -> None:
        runs.record(task)
        await go_on.wait()
        if task.data == b"task 0":
            time.sleep(2.5)

    async with (
        Client(valkey.url, queues=[QUEUE]) as client,
        worker(valkey.url, handler, concurrency=2, prefetch=2, on_event=noted),
    ):
        handles = await client.enqueue_many(QUEUE, payloads(4), track=True)
        await until(lambda: len(queue.pending()) == 4)
        # A healthy process looks on, and would take over what is not renewed in time.
        with worker_process(valkey.url, record, 0) as other:
            await other.ready()
            go_on.set()
            for handle in handles:
                await handle.wait(timeout=20)
            await queue.rest()
    assert max(note.stalled_ms for note in noted.of(events.Stalled)) > 1000
    assert not noted.of(events.LeaseLost)
    assert runs.times == each_once(payloads(4))
    assert not record.of("begin")


@asynchronous
async def test_a_task_that_kills_its_workers_is_dead_lettered(server: LocalServer, tmp_path: Path) -> None:
    """Poison: an entry that was delivered max_deliveries times is not run again, and its handle hears why."""
    runs, queue, noted = Runs(), Queue(server), Events()
    queue.make_group()
    async with Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"poison")
        await client.flush(20)
        (entry_id,) = queue.take_as("dead 0")
        for number in range(1, 3):
            queue.call("XCLAIM", queue.keys.stream, "streamfleet-server", f"dead {number}", 0, entry_id)
        good = await client.enqueue_and_track(QUEUE, b"good")
        async with worker(server.url, runs, on_event=noted, **quick(max_deliveries=3)):
            await good.wait(timeout=20)
            with pytest.raises(TaskFailed, match="delivered 4 times, more than max_deliveries"):
                await handle.wait(timeout=20)
            await queue.rest()
    assert runs.times == each_once([b"good"])
    assert [note.task_id for note in noted.of(events.TaskDeadLettered)] == [handle.task_id]
    (letter,) = queue.dead()
    assert (letter[b"data"], letter[b"dead_deliveries"], letter[b"dead_entry"]) == (b"poison", b"4", entry_id)


@asynchronous
async def test_the_last_delivery_that_is_allowed_is_run(valkey: LocalServer) -> None:
    """max_deliveries is how often an entry may be delivered, not one less."""
    runs, queue = Runs(), Queue(valkey)
    queue.make_group()
    async with Client(valkey.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"unlucky")
        await client.flush(20)
        (entry_id,) = queue.take_as("dead 0")
        queue.call("XCLAIM", queue.keys.stream, "streamfleet-server", "dead 1", 0, entry_id)
        async with worker(valkey.url, runs, **quick(max_deliveries=3)):
            await handle.wait(timeout=20)
            await queue.rest()
    assert [task.deliveries for task in runs.tasks] == [3]
