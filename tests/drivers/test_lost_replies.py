"""Replies that never arrive, one kind of batch after the other: nothing is lost, nothing is done twice (G1, G3, G4).

A proxy lets one write through to the server and loses the reply to it with the connection. `entries-added` of the
stream says how many entries there ever were, the handler how many runs; both must be exact.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Unpack

import pytest

from streamfleet_drivers.asyncio import Client, Reject, Task, TaskFailed, events
from streamfleet_drivers.local_server import LocalServer
from streamfleet_drivers.options import ServerOptions
from streamfleet_protocol.keys import queue_keys
from tests.drivers.support import (
    QUEUE,
    Events,
    Match,
    Queue,
    Runs,
    asynchronous,
    each_once,
    go_entry,
    in_transaction,
    outside,
    payloads,
    quick,
    until,
    worker,
)
from tests.support.proxy import Command, Fault, Proxy

KEYS = queue_keys(QUEUE)
ENQUEUE = in_transaction((b"XADD", KEYS.stream), (b"HSET", KEYS.producers))


def renewal(commands: list[Command]) -> bool:
    """Writes that renew a lease; the probe before each look renews nothing."""
    return any(command[0] == b"XCLAIM" and command[5] != b"0-0" and command[-1] == b"JUSTID" for command in commands)


# --- The client's batches ---------------------------------------------------------------------------------


CLIENT_CASES = {
    "arming": outside((b"SET",), (b"HGET", KEYS.producers)),
    "enqueue": ENQUEUE,
    "heartbeat": in_transaction((b"HGET", KEYS.producers)),
    "making the receiver stream": outside((b"XGROUP", b"CREATE")),
    "reading notifications": outside((b"XREAD",)),
    "deleting notifications": outside((b"XDEL",)),
}


@pytest.mark.parametrize("fault", ["cut_reply", "cut_request"])
@pytest.mark.parametrize("case", CLIENT_CASES)
@asynchronous
async def test_a_client_loses_one_write_or_its_reply(server: LocalServer, case: str, fault: str) -> None:
    """Whichever write is cut off, before or after it took effect: each task is there once, and is answered once."""
    runs, queue, noted = Runs(), Queue(server), Events()
    data = payloads(40)

    async def handler(task: Task) -> bytes:
        runs.record(task)
        return task.data

    with Proxy(server.port) as proxy:
        cut: Fault = getattr(proxy, fault)(CLIENT_CASES[case])
        async with (
            worker(server.url, handler, concurrency=4),
            # What could not be deleted is read again once the read under way is over.
            Client(proxy.url, queues=[QUEUE], on_event=noted, block=0.5) as client,
        ):
            await client.enqueue_many(QUEUE, data[:20])
            handles = await client.enqueue_many(QUEUE, data[20:], track=True)
            assert [await handle.wait(timeout=20) for handle in handles] == data[20:]
            await client.flush(20)
            await runs.reach(len(data))
            await queue.rest()
            await until(lambda: cut.hits)
            await noted.reach(events.Reconnected)
            await until(lambda: not queue.words(client.client_id))
    assert runs.times == each_once(data)
    assert queue.added() == len(data)
    assert not noted.of(events.DataLossSeen)


@pytest.mark.parametrize("fault", ["cut_reply", "cut_request"])
@asynchronous
async def test_a_client_loses_a_batch_of_delayed_tasks(server: LocalServer, fault: str) -> None:
    """ZADD of delayed tasks in doubt: each is in the delayed set once."""
    queue = Queue(server)
    with Proxy(server.port) as proxy:
        cut: Fault = getattr(proxy, fault)(in_transaction((b"ZADD", KEYS.delayed)))
        async with Client(proxy.url, queues=[QUEUE]) as client:
            await client.enqueue_many(QUEUE, payloads(20), delay=60)
            await client.flush(20)
            assert cut.hits == 1
    assert Counter(fields[b"data"] for fields in queue.delayed()) == each_once(payloads(20))
    assert not queue.entries()


# --- The server's batches ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def cut_worker(
    server: LocalServer, handler: Callable[[Task], object], match: Match, **options: Unpack[ServerOptions]
) -> AsyncIterator[tuple[Fault, Client, Events]]:
    """A worker behind a proxy that will lose one reply, and a client whose connection is sound."""
    noted = Events()
    with Proxy(server.port) as proxy:
        cut = proxy.cut_reply(match)
        async with (
            worker(proxy.url, handler, on_event=noted, **options),
            Client(server.url, queues=[QUEUE]) as client,
        ):
            yield cut, client, noted


SETTLE_CASES = {
    "making the group": outside((b"XGROUP", b"CREATE", KEYS.stream)),
    "a look": outside((b"XPENDING", KEYS.stream)),
    "a read": outside((b"XREADGROUP",)),
    "settling untracked": outside((b"XDEL", KEYS.stream), (b"XACK", KEYS.stream)),
    "settling tracked": in_transaction((b"XDEL", KEYS.stream), (b"XACK", KEYS.stream), (b"XADD",)),
}


@pytest.mark.parametrize("case", SETTLE_CASES)
@asynchronous
async def test_a_worker_loses_one_reply(server: LocalServer, case: str) -> None:
    """Reading and settling: a lost reply makes no task run again, and each handle settles."""
    runs, queue = Runs(), Queue(server)
    data = payloads(40)

    async def handler(task: Task) -> bytes:
        runs.record(task)
        return task.data

    async with cut_worker(server, handler, SETTLE_CASES[case]) as (cut, client, _):
        await client.enqueue_many(QUEUE, data[:20])
        handles = await client.enqueue_many(QUEUE, data[20:], track=True)
        assert [await handle.wait(timeout=20) for handle in handles] == data[20:]
        await until(lambda: cut.hits)
        await queue.rest()
    assert runs.times == each_once(data)
    assert queue.added() == len(data)


QUESTION = outside((b"WATCH", KEYS.fence), (b"XRANGE", KEYS.stream))


@pytest.mark.parametrize(
    "match",
    [QUESTION, in_transaction((b"XADD", KEYS.stream), (b"XACK", KEYS.stream))],
    ids=["its question", "its transaction"],
)
@asynchronous
async def test_a_retry_at_once_loses_one_reply(server: LocalServer, match: Match) -> None:
    """The copy for the next attempt is written once."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        if task.attempt < 3:
            raise RuntimeError("not yet")

    async with cut_worker(server, handler, match) as (cut, client, _):
        handle = await client.enqueue_and_track(QUEUE, b"shy", retry_delay=0)
        await handle.wait(timeout=20)
        await until(lambda: cut.hits)
        await queue.rest()
    assert runs.attempts(b"shy") == [1, 2, 3]
    assert queue.added() == 3


@pytest.mark.parametrize(
    "match",
    [
        in_transaction((b"ZADD", KEYS.delayed), (b"XACK", KEYS.stream)),
        in_transaction((b"INCR", KEYS.promotions), (b"ZREM", KEYS.delayed)),
    ],
    ids=["the retry", "the promotion"],
)
@asynchronous
async def test_a_delayed_retry_loses_one_reply(server: LocalServer, match: Match) -> None:
    """The way into the delayed set and back is gone once for each attempt."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        if task.attempt < 3:
            raise RuntimeError("not yet")

    async with cut_worker(server, handler, match) as (cut, client, _):
        handle = await client.enqueue_and_track(QUEUE, b"shy", retry_delay=0.02)
        await handle.wait(timeout=20)
        await until(lambda: cut.hits)
        await queue.rest()
    assert runs.attempts(b"shy") == [1, 2, 3]
    assert queue.added() == 3


@pytest.mark.parametrize(
    "match", [QUESTION, in_transaction((b"XADD", KEYS.dead))], ids=["its question", "its transaction"]
)
@asynchronous
async def test_a_dead_letter_loses_one_reply(server: LocalServer, match: Match) -> None:
    """There is one dead letter, and the handle hears of it."""
    runs, queue = Runs(), Queue(server)

    async def handler(task: Task) -> None:
        runs.record(task)
        raise Reject("no good")

    async with cut_worker(server, handler, match) as (cut, client, _):
        handle = await client.enqueue_and_track(QUEUE, b"bad")
        with pytest.raises(TaskFailed, match="no good"):
            await handle.wait(timeout=20)
        await until(lambda: cut.hits)
        await queue.rest()
    assert runs.attempts(b"bad") == [1]
    assert len(queue.dead()) == 1


@asynchronous
async def test_an_expiry_loses_one_reply(valkey: LocalServer) -> None:
    """An expired task that is settled twice is settled once."""
    runs, queue = Runs(), Queue(valkey)
    queue.add(go_entry("late", b"late", expires_ts=queue.redis_ms() - 60_000))

    def expiry(commands: list[Command]) -> bool:
        return in_transaction((b"XACK", KEYS.stream), (b"XDEL", KEYS.stream))(commands)

    async with cut_worker(valkey, runs, expiry) as (cut, _, noted):
        await queue.rest()
        await until(lambda: cut.hits)
        await until(lambda: noted.of(events.TaskHasExpired) or noted.of(events.TaskReleased))
    assert not runs.tasks
    assert queue.added() == 1


@pytest.mark.parametrize(
    "match", [QUESTION, in_transaction((b"XADD", KEYS.stream))], ids=["its question", "its transaction"]
)
@asynchronous
async def test_a_hand_back_loses_one_reply(server: LocalServer, match: Match) -> None:
    """At close each unfinished task is put back once, and runs once more elsewhere."""
    first, second, queue = Runs(), Runs(), Queue(server)
    data = payloads(6)

    async def hang(task: Task) -> None:
        first.record(task)
        await asyncio.Event().wait()

    async with Client(server.url, queues=[QUEUE]) as client:
        with Proxy(server.port) as proxy:
            leaving = worker(proxy.url, hang, concurrency=2, prefetch=4, grace=0)
            async with leaving:
                handles = await client.enqueue_many(QUEUE, data, track=True)
                await until(lambda: len(first) == 2 and len(queue.pending()) == len(data))
                cut = proxy.cut_reply(match)
            assert cut.hits == 1
        assert queue.pending() == []
        assert sorted(queue.data()) == data
        assert queue.added() == 2 * len(data)
        async with worker(server.url, second):
            for handle in handles:
                await handle.wait(timeout=20)
            await queue.rest()
    assert second.times == each_once(data)
    assert queue.added() == 2 * len(data)


@asynchronous
async def test_a_renewal_loses_one_reply(server: LocalServer) -> None:
    """A worker whose renewal is in doubt looks again, and goes on with its tasks."""
    runs, queue, go_on = Runs(), Queue(server), asyncio.Event()

    async def handler(task: Task) -> None:
        runs.record(task)
        await go_on.wait()

    async with cut_worker(server, handler, renewal, renew_interval=0.5) as (cut, client, noted):
        handle = await client.enqueue_and_track(QUEUE, b"long")
        await until(lambda: cut.hits)
        await noted.reach(events.Reconnected)
        go_on.set()
        await handle.wait(timeout=20)
        await queue.rest()
        assert not noted.of(events.LeaseLost)
    assert runs.times == each_once([b"long"])
    assert [task.deliveries for task in runs.tasks] == [1]


def claim_question(commands: list[Command]) -> bool:
    """Writes that ask whether single entries are still as they were; a look asks for a range."""
    return any(command[0] == b"XPENDING" and command[3] == command[4] for command in commands)


async def claim_behind(server: LocalServer, match: Match) -> None:
    """A worker takes tasks over from a dead one, and loses one reply."""
    runs, queue = Runs(), Queue(server)
    data = payloads(5)
    queue.make_group()
    async with Client(server.url, queues=[QUEUE]) as client:
        handles = await client.enqueue_many(QUEUE, data, track=True)
        await client.flush(20)
        assert len(queue.take_as("the dead one")) == len(data)
        with Proxy(server.port) as proxy:
            cut = proxy.cut_reply(match)
            # What is listed as one's own and unknown is adopted once the read that may be bringing it is over.
            async with worker(proxy.url, runs, **quick(concurrency=5)):
                for handle in handles:
                    await handle.wait(timeout=30)
                assert cut.hits == 1
                await queue.rest()
    assert runs.times == each_once(data)
    assert {task.deliveries for task in runs.tasks} == {2}
    assert queue.added() == len(data)


@asynchronous
async def test_a_claim_loses_the_reply_to_its_question(valkey: LocalServer) -> None:
    """Tasks of a dead worker are taken over once."""
    await claim_behind(valkey, claim_question)


@asynchronous
async def test_a_claim_loses_its_reply(server: LocalServer) -> None:
    """Tasks of a dead worker are taken over once, though the worker does not hear that it has them."""
    await claim_behind(server, in_transaction((b"XCLAIM",), (b"INCR", KEYS.fence)))


# --- Bytes that are executed late -------------------------------------------------------------------------


@asynchronous
async def test_an_enqueue_batch_that_arrives_late_applies_nothing(server: LocalServer) -> None:
    """Bytes of a cut connection that Redis executes after the client has reconnected and sent them again: EXEC
    answers nil, each task is there once."""
    queue = Queue(server)
    data = payloads(20)
    with Proxy(server.port) as proxy:
        async with Client(proxy.url, queues=[QUEUE]) as client:
            hold = proxy.hold(ENQUEUE)
            await client.enqueue_many(QUEUE, data)
            await client.flush(20)
            assert hold.hits == 1
            assert queue.data() == data
            (late,) = await asyncio.to_thread(hold.release)
            assert b"*-1\r\n+OK\r\n" in late, "EXEC was not nil"
            await client.enqueue_and_forget(QUEUE, b"after")
            await client.flush(20)
            assert queue.data() == [*data, b"after"]
    assert queue.added() == len(data) + 1


@asynchronous
async def test_an_enqueue_batch_that_arrives_before_the_reconnect_is_not_sent_again(server: LocalServer) -> None:
    """Bytes of a cut connection that Redis executes while the client is still away are found by the sequence."""
    queue, noted = Queue(server), Events()
    data = payloads(20)
    with Proxy(server.port) as proxy:
        async with Client(proxy.url, queues=[QUEUE], on_event=noted) as client:
            await client.enqueue_and_forget(QUEUE, b"before")
            await client.flush(20)
            hold = proxy.hold(ENQUEUE)
            proxy.refuse = True
            await client.enqueue_many(QUEUE, data)
            await until(lambda: hold.hits)
            await asyncio.to_thread(hold.release)
            assert queue.data() == [b"before", *data]
            proxy.refuse = False
            await client.flush(20)
    assert queue.added() == len(data) + 1
    assert not noted.of(events.DataLossSeen)


@asynchronous
async def test_a_retry_that_arrives_late_applies_nothing(server: LocalServer) -> None:
    """A retry's transaction that Redis executes after its worker has come back: EXEC answers nil, no second copy."""
    runs, queue = Runs(), Queue(server)
    go_on = asyncio.Event()
    renewals: list[Command] = []

    async def handler(task: Task) -> None:
        runs.record(task)
        if task.attempt == 1:
            # The renewal's EXEC ends the WATCH of the last look: from then on the retry has none but its own.
            await until(lambda: renewals)
            raise RuntimeError("not yet")
        await go_on.wait()

    def watch_renewals(commands: list[Command]) -> bool:
        renewals.extend(command for command in commands if renewal([command]))
        return False

    with Proxy(server.port) as proxy:
        proxy.hold(watch_renewals)
        hold = proxy.hold(in_transaction((b"XADD", KEYS.stream), (b"XACK", KEYS.stream)))
        async with worker(proxy.url, handler, **quick()), Client(server.url, queues=[QUEUE]) as client:
            handle = await client.enqueue_and_track(QUEUE, b"shy", retry_delay=0)
            await runs.reach(2)
            assert hold.hits == 1
            (late,) = await asyncio.to_thread(hold.release)
            assert b"*-1\r\n" in late, "EXEC was not nil"
            go_on.set()
            await handle.wait(timeout=20)
            await queue.rest()
    assert runs.attempts(b"shy") == [1, 2]
    assert queue.added() == 2


@asynchronous
async def test_a_renewal_that_arrives_late_robs_nobody(server: LocalServer) -> None:
    """A renewal that Redis executes after another has taken the entries over: EXEC answers nil, they stay there."""
    first, second, queue, go_on = Runs(), Runs(), Queue(server), asyncio.Event()

    def handler_of(runs: Runs) -> Callable[[Task], object]:
        async def handler(task: Task) -> None:
            runs.record(task)
            await go_on.wait()

        return handler

    with Proxy(server.port) as proxy:
        async with (
            worker(proxy.url, handler_of(first), **quick()),
            Client(server.url, queues=[QUEUE]) as client,
        ):
            handle = await client.enqueue_and_track(QUEUE, b"long")
            await first.reach(1)
            hold = proxy.hold(renewal)
            proxy.refuse = True
            await until(lambda: hold.hits)
            proxy.cut_all()
            async with worker(server.url, handler_of(second), **quick()):
                await second.reach(1)
                owner = queue.pending()[0][1]
                (late,) = await asyncio.to_thread(hold.release)
                assert b"*-1\r\n" in late, "EXEC was not nil"
                assert queue.pending()[0][1] == owner
                proxy.refuse = False
                go_on.set()
                await handle.wait(timeout=20)
                await queue.rest()
    assert (len(first), len(second)) == (1, 1)
    assert queue.added() == 1
