"""The wire: entries of the Go library, entries that are none, and what our own look like."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from streamfleet_drivers.asyncio import Client, Task, TaskCanceled, TaskExpired, TaskFailed, events
from streamfleet_drivers.local_server import LocalServer
from streamfleet_protocol.keys import RECEIVER_GROUP, receiver_key
from tests.drivers.support import (
    QUEUE,
    Events,
    Fields,
    Queue,
    Runs,
    asynchronous,
    each_once,
    go_entry,
    until,
    worker,
)

GO_FIELDS = [
    b"enc_version",
    b"id",
    b"client_id",
    b"data",
    b"max_retries",
    b"expires_ts",
    b"retry_delay",
    b"send_notif",
    b"retries",
]


# --- The Go library's side --------------------------------------------------------------------------------


@asynchronous
async def test_a_task_of_the_go_library_is_run_and_answered(server: LocalServer) -> None:
    """Nine fields in another order, retry_delay 0, send_notif 1: run, and answered with the four fields Go reads."""
    runs, queue = Runs(), Queue(server)
    queue.call("XGROUP", "CREATE", receiver_key("go client"), RECEIVER_GROUP, "0", "MKSTREAM")

    async def handler(task: Task) -> None:
        runs.record(task)
        if task.data == b"bad":
            raise ValueError("no good")

    for name in ("good", "bad", "late"):
        expires_ts = queue.redis_ms() - 60_000 if name == "late" else 0
        fields = go_entry(f"id {name}", name.encode(), client_id="go client", send_notif=1, expires_ts=expires_ts)
        queue.add({**fields, b"max_retries": b"2"})
    async with worker(server.url, handler):
        await queue.rest()
    words = {fields[b"task_id"]: fields for fields in queue.words("go client")}
    assert words == {
        b"id good": {b"enc_version": b"1", b"task_id": b"id good", b"type": b"completed", b"err_msg": b""},
        b"id bad": {
            b"enc_version": b"1",
            b"task_id": b"id bad",
            b"type": b"error",
            b"err_msg": b"ValueError: no good",
        },
        b"id late": {b"enc_version": b"1", b"task_id": b"id late", b"type": b"expired", b"err_msg": b""},
    }
    assert runs.attempts(b"good") == [1]
    assert runs.attempts(b"bad") == [1, 2, 3], "retry_delay 0 is a retry at once, max_retries counts retries"
    assert {task.client_id for task in runs.tasks} == {"go client"}


@asynchronous
async def test_a_copy_keeps_what_it_does_not_know(server: LocalServer) -> None:
    """Retries, delays and dead letters keep unknown fields, as they were."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        raise RuntimeError("no")

    fields = go_entry("traced", b"x", max_retries=2, retry_delay=10)
    queue.add({**fields, b"trace": b"\x00\xff"})
    async with worker(server.url, handler):
        await until(queue.dead)
        await queue.rest()
    (letter,) = queue.dead()
    assert (letter[b"trace"], letter[b"retries"], letter[b"retry_delay"]) == (b"\x00\xff", b"2", b"10")
    assert runs.attempts(b"x") == [1, 2, 3]


@asynchronous
async def test_the_stream_of_a_client_that_is_gone_is_not_made_again(server: LocalServer) -> None:
    """A word to a client whose receiver stream was collected goes nowhere, and leaves nothing."""
    runs, queue = Runs(), Queue(server)
    queue.add(go_entry("orphan", b"x", client_id="gone", send_notif=1))
    async with worker(server.url, runs):
        await queue.rest()
    assert len(runs) == 1
    assert not queue.call("EXISTS", receiver_key("gone"))


@asynchronous
async def test_our_entries_can_be_read_by_the_go_library(server: LocalServer) -> None:
    """All nine fields, always, in one order; what is ours alone comes after them and only where it is used."""
    queue = Queue(server)
    async with Client(server.url, queues=[QUEUE]) as client:
        plain = await client.enqueue_and_forget(QUEUE, b"plain", retry_backoff=1)
        await client.enqueue_and_track(
            QUEUE, b"full", max_retries=3, retry_delay=2, retry_backoff=1.5, retry_delay_max=60, expires_in=100
        )
        await client.enqueue_and_forget(QUEUE, b"never", max_retries=0)
        await client.enqueue_and_forget(QUEUE, b"delayed", delay=1000)
        await client.flush(20)
        now = queue.redis_ms()
        entries = {fields[b"data"]: fields for fields in [*queue.entries(), *queue.delayed()]}
        for fields in entries.values():
            assert list(fields)[:9] == GO_FIELDS
            assert fields[b"enc_version"] == b"1"
            assert fields[b"client_id"] == client.client_id.encode()
            assert fields[b"retries"] == b"0"
        first = entries[b"plain"]
        assert first[b"id"] == plain.encode()
        assert [first[name] for name in GO_FIELDS[4:]] == [b"0", b"0", b"1000", b"0", b"0"]
        full = entries[b"full"]
        assert abs(int(full[b"expires_ts"]) - now - 100_000) < 30_000
        assert (full[b"max_retries"], full[b"retry_delay"], full[b"send_notif"]) == (b"3", b"2000", b"1")
        assert (full[b"retry_backoff"], full[b"retry_delay_max"]) == (b"1.5", b"60000")
        # Go's 0 would mean for ever.
        assert (entries[b"never"][b"max_retries"], entries[b"never"][b"no_retry"]) == (b"1", b"1")
        # The group is for Go's collector of dead clients.
        groups = queue.call("XINFO", "GROUPS", receiver_key(client.client_id))
        assert [group[1] for group in groups] == [RECEIVER_GROUP]


@asynchronous
async def test_words_of_a_go_worker_settle_handles(server: LocalServer) -> None:
    """Notifications with nothing but Go's four fields; one that cannot be read is dropped, and the rest is heard."""
    queue, noted = Queue(server), Events()
    async with Client(server.url, queues=[QUEUE], on_event=noted) as client:
        kinds = ["completed", "error", "expired", "canceled"]
        handles = await client.enqueue_many(QUEUE, [kind.encode() for kind in kinds], track=True)
        await client.flush(20)
        receiver = receiver_key(client.client_id)
        queue.call("XADD", receiver, "*", "garbage", b"\xff\xfe")
        queue.call("XADD", receiver, "*", "enc_version", "1", "task_id", "x", "type", "exploded", "err_msg", "")
        queue.call("XADD", receiver, "*", "enc_version", "1", "task_id", "unknown", "type", "error", "err_msg", "")
        for kind, handle in zip(kinds, handles, strict=True):
            word = ["type", kind, "err_msg", f"about {kind}", "task_id", handle.task_id, "enc_version", "1"]
            queue.call("XADD", receiver, "*", *word)
            queue.call("XADD", receiver, "*", *word[:1], "error", *word[2:])
        assert await handles[0].wait(timeout=20) is None
        with pytest.raises(TaskFailed, match="about error"):
            await handles[1].wait(timeout=20)
        with pytest.raises(TaskExpired) as expired:
            await handles[2].wait(timeout=20)
        assert expired.value.confirmed
        with pytest.raises(TaskCanceled, match="about canceled"):
            await handles[3].wait(timeout=20)
        await until(lambda: not queue.words(client.client_id))
    assert len(noted.of(events.BadNotification)) == 2


# --- What is no task --------------------------------------------------------------------------------------


def bad_entries() -> dict[str, Fields]:
    """Entries that are no task of version 1, by what is said about them."""
    good = go_entry("bad", b"bad", client_id="go client", send_notif=1)
    bad = {f"{name.decode()} is missing": {n: v for n, v in good.items() if n != name} for name in GO_FIELDS}
    bad["enc_version is b'2'"] = {**good, b"enc_version": b"2"}
    bad["max_retries is b'-1'"] = {**good, b"max_retries": b"-1"}
    bad["retries is b'many'"] = {**good, b"retries": b"many"}
    bad["expires_ts is b'1e9'"] = {**good, b"expires_ts": b"1e9"}
    bad["id is b'\\xff'"] = {**good, b"id": b"\xff"}
    bad["id is empty"] = {**good, b"id": b""}
    bad["retry_backoff is b'x'"] = {**good, b"retry_backoff": b"x"}
    garbage: Fields = {b"\x00": b"\xff" * 100}
    return {**bad, "the field enc_version is missing": garbage}


@asynchronous
async def test_entries_that_are_no_tasks_are_dead_lettered(server: LocalServer) -> None:
    """Undecodable, of an unknown version, each single field missing: a dead letter says why; the server goes on."""
    runs, queue, noted = Runs(), Queue(server), Events()
    bad = bad_entries()
    for fields in bad.values():
        queue.add(fields)
    queue.add(go_entry("good", b"good"))
    async with worker(server.url, runs, on_event=noted):
        await runs.reach(1)
        await queue.rest()
    assert runs.times == each_once([b"good"])
    reasons = queue.dead_reasons()
    assert len(reasons) == len(bad)
    for letter, (reason, fields) in zip(sorted_letters(queue), bad.items(), strict=True):
        text = letter[b"dead_reason"].decode()
        assert text.startswith("not a task: ")
        assert reason in text
        assert {name: letter[name] for name in fields} == fields
    assert len(noted.of(events.TaskDeadLettered)) == len(bad)


def sorted_letters(queue: Queue) -> list[Fields]:
    """The dead letters in the order of the entries they were."""

    def place(letter: Fields) -> tuple[int, int]:
        milliseconds, _, number = letter[b"dead_entry"].partition(b"-")
        return int(milliseconds), int(number)

    return sorted(queue.dead(), key=place)


@asynchronous
async def test_a_delayed_member_that_is_no_task_is_dead_lettered(valkey: LocalServer) -> None:
    """Garbage in the delayed set does not hold up what is behind it."""
    runs, queue = Runs(), Queue(valkey)
    queue.call("ZADD", queue.keys.delayed, 1, b"garbage", 2, b"3:abc,", 3, b"1:x,1:0,1:a,1:b,")
    async with Client(valkey.url, queues=[QUEUE]) as client:
        await client.enqueue_and_forget(QUEUE, b"good", delay=0.3)
        await client.flush(20)
        async with worker(valkey.url, runs):
            await runs.reach(1)
            await until(lambda: len(queue.dead()) == 3)
            await queue.rest()
    assert runs.times == each_once([b"good"])
    reasons = Counter(reason.split(":")[0] for reason in queue.dead_reasons())
    assert reasons["not a task"] == 1


@pytest.mark.parametrize("key", ["dead", "delayed"])
@asynchronous
async def test_a_task_stays_where_it_is_while_its_next_place_is_of_a_wrong_type(valkey: LocalServer, key: str) -> None:
    """A dead letter or a delayed retry that cannot be written: the entry stays pending, and goes there later."""
    runs, queue, noted, go_on = Runs(), Queue(valkey), Events(), asyncio.Event()
    place = getattr(queue.keys, key)

    async def handler(task: Task) -> None:
        runs.record(task)
        await go_on.wait()
        if task.attempt == 1 and task.data == b"x":
            raise RuntimeError("no")

    async with worker(valkey.url, handler, on_event=noted), Client(valkey.url, queues=[QUEUE]) as client:
        handle = await client.enqueue_and_track(QUEUE, b"x", max_retries=0 if key == "dead" else None, retry_delay=0.02)
        await runs.reach(1)
        queue.call("SET", place, "something else")
        go_on.set()
        await noted.reach(events.OperationRefused)
        # Others go on meanwhile.
        await (await client.enqueue_and_track(QUEUE, b"other")).wait(timeout=20)
        assert queue.data() == [b"x"]
        assert len(queue.pending()) == 1
        queue.call("DEL", place)
        if key == "dead":
            with pytest.raises(TaskFailed):
                await handle.wait(timeout=20)
        else:
            await handle.wait(timeout=20)
        await queue.rest()
    assert runs.attempts(b"x") == ([1] if key == "dead" else [1, 2])
    assert len(queue.dead()) == (1 if key == "dead" else 0)
