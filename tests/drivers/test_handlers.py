"""Handlers: what they get, what they may return and raise, how they are stopped."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from datetime import timedelta
from typing import Any

import pytest

from streamfleet_drivers.asyncio import Client, Reject, Retry, Task, TaskFailed, events
from streamfleet_drivers.local_server import LocalServer
from tests.drivers.support import QUEUE, Events, Queue, Runs, asynchronous, each_once, payloads, until, worker

MIB = 1024 * 1024


@asynchronous
async def test_a_handler_sees_all_of_its_task(server: LocalServer) -> None:
    """The attributes of Task."""
    runs = Runs()
    async with worker(server.url, runs), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, "grüße", max_retries=7, expires_in=timedelta(hours=1))
        await handle.wait(timeout=20)
        forgotten = await client.enqueue_and_forget(QUEUE, b"\xff")
        await runs.reach(2)
    first, second = runs.tasks
    assert (first.id, first.queue, first.data, first.text) == (handle.task_id, QUEUE, "grüße".encode(), "grüße")
    assert (first.attempt, first.deliveries, first.max_retries) == (1, 1, 7)
    assert first.client_id == client.client_id
    assert first.deadline is not None
    assert first.deadline.tzinfo is not None
    assert "-" in first.entry_id
    assert not first.canceled
    assert first.cancel_reason == ""
    assert handle.task_id in repr(first)
    assert (second.id, second.max_retries, second.deadline) == (forgotten, None, None)
    with pytest.raises(UnicodeDecodeError):
        _ = second.text


@asynchronous
async def test_every_kind_of_function_can_be_a_handler(valkey: LocalServer) -> None:
    """Coroutine functions, methods, partial ones, callable objects; plain functions run in threads."""

    async def coroutine(task: Task) -> str:
        return threading.current_thread().name

    def plain(task: Task) -> str:
        return threading.current_thread().name

    class Methods:
        async def coroutine(self, task: Task) -> str:
            return threading.current_thread().name

        def plain(self, task: Task) -> str:
            return threading.current_thread().name

        async def __call__(self, task: Task) -> str:
            return threading.current_thread().name

    async def with_argument(argument: int, task: Task) -> str:
        return threading.current_thread().name

    here = threading.current_thread().name
    handlers: list[tuple[Any, bool]] = [
        (coroutine, True),
        (plain, False),
        (Methods().coroutine, True),
        (Methods().plain, False),
        (Methods(), True),
        (functools.partial(with_argument, 1), True),
        (lambda task: threading.current_thread().name, False),
    ]
    async with Client(valkey.url, queues=[QUEUE]) as client:
        for handler, in_loop in handlers:
            async with worker(valkey.url, handler):
                result = await (await client.enqueue_and_track(QUEUE, b"x")).wait(timeout=20)
            assert result is not None
            assert (result.decode() == here) == in_loop
            assert in_loop or result.startswith(b"streamfleet-handler")


@asynchronous
async def test_plain_functions_run_side_by_side(valkey: LocalServer) -> None:
    """`concurrency` threads at once, while the event loop goes on."""
    barrier = threading.Barrier(4)

    def handler(task: Task) -> bytes:
        barrier.wait(20)
        return task.data

    async with worker(valkey.url, handler, concurrency=4), Client(valkey.url, queues=[QUEUE]) as client:
        handles = await client.enqueue_many(QUEUE, payloads(8), track=True)
        assert [await handle.wait(timeout=20) for handle in handles] == payloads(8)


@asynchronous
async def test_results_are_bytes_text_or_nothing(server: LocalServer) -> None:
    """What a handler returns is what wait() gives; text comes as UTF-8."""
    results: dict[bytes, Any] = {
        b"bytes": b"\x00\xff\r\n",
        b"empty": b"",
        b"text": "grüße",
        b"none": None,
        b"bytearray": bytearray(b"array"),
        b"view": memoryview(b"view"),
        b"large": os.urandom(MIB),
    }

    async def handler(task: Task) -> Any:
        return results[task.data]

    async with worker(server.url, handler), Client(server.url, queues=[QUEUE]) as client:
        handles = {name: await client.enqueue_and_track(QUEUE, name) for name in results}
        got = {name: await handle.wait(timeout=20) for name, handle in handles.items()}
    results[b"text"] = "grüße".encode()
    assert got == results


@asynchronous
async def test_a_result_of_a_wrong_type_is_told_and_not_run_again(server: LocalServer) -> None:
    """The work was done, so it is no failure to be retried; but a caller who waits for the result must know."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> Any:
        runs.record(task)
        return {"a": 1}

    async with worker(server.url, handler), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"tracked", retry_delay=0)
        with pytest.raises(TaskFailed, match="returned dict; a result is bytes, str or None"):
            await handle.wait(timeout=20)
        await client.enqueue_and_forget(QUEUE, b"forgotten")
        await runs.reach(2)
        await queue.rest()
    assert runs.times == each_once([b"tracked", b"forgotten"])
    assert [letter[b"data"] for letter in queue.dead()] == [b"tracked"]


@asynchronous
async def test_a_result_that_is_too_large_is_a_failure_that_says_so(valkey: LocalServer) -> None:
    """Over 1 MiB."""

    async def handler(task: Task) -> bytes:
        return bytes(MIB + 1)

    async with worker(valkey.url, handler), Client(valkey.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x", max_retries=0)
        with pytest.raises(TaskFailed, match=f"the result has {MIB + 1} bytes; at most {MIB} can be sent"):
            await handle.wait(timeout=20)


@asynchronous
async def test_retry_chooses_its_own_delay(server: LocalServer) -> None:
    """`raise Retry(delay)` counts as a retry, and replaces the task's own delay without jitter."""
    runs, noted, queue = Runs(), Events(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        if task.attempt == 1:
            raise Retry(delay=0.123, reason="come back")
        if task.attempt == 2:
            raise Retry(delay=0)
        if task.attempt == 3:
            raise Retry
        if task.attempt == 4:
            raise Retry(delay=-1)

    async with worker(server.url, handler, on_event=noted), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x", retry_delay=0.02, retry_backoff=1)
        assert await handle.wait(timeout=20) is None
        await queue.rest()
    assert runs.attempts(b"x") == [1, 2, 3, 4, 5]
    retried = noted.of(events.TaskRetried)
    assert [note.delay_ms for note in retried[:2]] == [123, 0]
    assert all(10 <= note.delay_ms <= 20 for note in retried[2:])
    assert [note.reason for note in retried[:2]] == ["come back", "the handler asked for a retry"]
    assert "0 seconds or more" in retried[3].reason
    assert queue.added() == 5


@asynchronous
async def test_retry_cannot_pass_max_retries(valkey: LocalServer) -> None:
    """A handler that asks for a retry when none is left has failed, with its own reason."""
    runs = Runs()

    async def handler(task: Task) -> None:
        runs.record(task)
        raise Retry(delay=0, reason="busy")

    async with worker(valkey.url, handler), Client(valkey.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x", max_retries=1)
        with pytest.raises(TaskFailed, match="busy"):
            await handle.wait(timeout=20)
    assert runs.attempts(b"x") == [1, 2]


@asynchronous
async def test_reject_ends_a_task_at_once(server: LocalServer) -> None:
    """`raise Reject(reason)`: no retry; a dead letter with the reason, and TaskFailed for who tracks it."""
    runs, queue, noted = Runs(), Queue(server), Events()

    async def handler(task: Task) -> None:
        runs.record(task)
        raise Reject("no such customer")

    async with worker(server.url, handler, on_event=noted), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x")
        with pytest.raises(TaskFailed, match="rejected by the handler: no such customer"):
            await handle.wait(timeout=20)
        await queue.rest()
        consumer = queue.consumers()[0]
    assert runs.attempts(b"x") == [1]
    (letter,) = queue.dead()
    assert letter[b"dead_reason"] == b"rejected by the handler: no such customer"
    assert (letter[b"id"], letter[b"data"]) == (handle.task_id.encode(), b"x")
    assert letter[b"dead_consumer"] == consumer
    assert letter[b"dead_entry"].decode() == runs.tasks[0].entry_id
    assert letter[b"dead_deliveries"] == b"1"
    assert abs(int(letter[b"dead_ts"]) - queue.redis_ms()) < 60_000
    assert [note.reason for note in noted.of(events.TaskDeadLettered)] == [letter[b"dead_reason"].decode()]


@asynchronous
async def test_dead_letters_can_be_bounded(valkey: LocalServer) -> None:
    """dead_letters_max keeps about the newest ones."""
    queue = Queue(valkey)

    async def handler(task: Task) -> None:
        raise Reject("no")

    async with (
        worker(valkey.url, handler, concurrency=50, dead_letters_max=100),
        Client(valkey.url, queues=[QUEUE]) as client,
    ):
        handles = await client.enqueue_many(QUEUE, payloads(1000), track=True)
        for handle in handles:
            with pytest.raises(TaskFailed):
                await handle.wait(timeout=20)
    assert 100 <= len(queue.dead()) < 500


@asynchronous
async def test_a_handler_that_runs_for_too_long_is_canceled_and_has_failed(server: LocalServer) -> None:
    """handler(queue, timeout=...): the coroutine is canceled, and the attempt counts as a failure."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        await asyncio.Event().wait()

    async with worker(server.url, handler, timeout=0.05), Client(server.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x", max_retries=1, retry_delay=0)
        with pytest.raises(TaskFailed, match="longer than its timeout of 50 ms"):
            await handle.wait(timeout=20)
        await queue.rest()
    assert runs.attempts(b"x") == [1, 2]
    assert all(task.canceled and "timeout" in task.cancel_reason for task in runs.tasks)


@asynchronous
async def test_a_timeout_stands_though_the_handler_then_succeeds(valkey: LocalServer) -> None:
    """A plain function sees task.canceled; whatever it returns after its time, the attempt has failed."""
    runs = Runs()

    def handler(task: Task) -> bytes:
        runs.record(task)
        if task.attempt == 1:
            stopped = threading.Event()
            while not task.canceled:
                stopped.wait(0.005)
        return b"attempt %d" % task.attempt

    async with worker(valkey.url, handler, timeout=0.3), Client(valkey.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x", retry_delay=0)
        assert await handle.wait(timeout=20) == b"attempt 2"
    assert runs.attempts(b"x") == [1, 2]


@asynchronous
async def test_what_a_handler_raises_reaches_the_caller_cut_and_without_a_traceback(valkey: LocalServer) -> None:
    """Type and message, at most 4 KiB of UTF-8; a message that cannot be shown ends nothing."""

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no message")

    async def handler(task: Task) -> None:
        if task.data == b"long":
            raise ValueError("ü" * 5000)
        if task.data == b"empty":
            raise KeyError
        if task.data == b"unspeakable":
            raise Unspeakable
        if task.data == b"canceled":
            raise asyncio.CancelledError
        if task.data == b"group":
            raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])
        raise ValueError("first line\nsecond line")

    async def reason(client: Client, data: bytes) -> str:
        handle = await client.enqueue_and_track(QUEUE, data, max_retries=0)
        with pytest.raises(TaskFailed) as failure:
            await handle.wait(timeout=20)
        return failure.value.reason

    async with worker(valkey.url, handler), Client(valkey.url, queues=[QUEUE]) as client:
        long = await reason(client, b"long")
        assert long.startswith("ValueError: üüü")
        assert 4090 < len(long.encode()) <= 4096
        assert await reason(client, b"empty") == "KeyError"
        assert await reason(client, b"unspeakable") == "Unspeakable: (its message cannot be shown)"
        assert await reason(client, b"canceled") == "CancelledError"
        assert await reason(client, b"group") == "ExceptionGroup: several (2 sub-exceptions)"
        assert await reason(client, b"other") == "ValueError: first line\nsecond line"


@asynchronous
async def test_large_and_binary_payloads_arrive_as_they_were(server: LocalServer) -> None:
    """10 MB of random bytes, no bytes at all, text as UTF-8, and all bytes there are; through a retry as well."""
    queue = Queue(server)
    seen: list[bytes] = []
    data: list[Any] = [os.urandom(10_000_000), b"", "grüße \U0001f600", bytes(range(256)), bytearray(b"array")]

    async def handler(task: Task) -> None:
        if task.attempt == 1:
            raise RuntimeError("once more")
        seen.append(task.data)

    # The deadline of a command follows from the renewal; 10 MB need a moment on a busy machine.
    async with (
        worker(server.url, handler, lease=60, renew_interval=10),
        Client(server.url, queues=[QUEUE]) as client,
    ):
        for each in data:
            await (await client.enqueue_and_track(QUEUE, each, retry_delay=0.001)).wait(timeout=30)
        await queue.rest()
    data[2] = data[2].encode()
    assert seen == data
    await until(lambda: not queue.left())
