"""Speed as a ratio to the bare loop, both measured alternately in one run: `pytest -m benchmark`.

The time that pytest-benchmark shows is that of our own run; `extra_info` and the printed line hold the ratio.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from streamfleet_drivers.asyncio import Client, Server, Task
from streamfleet_drivers.local_server import LocalServer

from . import bare

TASKS = 20_000
ROUNDS = 5

Run = Callable[[str, int], Coroutine[Any, Any, float]]


async def enqueue_one_by_one(url: str, tasks: int) -> float:
    async with Client(url, queues=["tasks"]) as client:
        started = time.perf_counter()
        for _ in range(tasks):
            await client.enqueue_and_forget("tasks", bare.PAYLOAD)
        await client.flush()
        return tasks / (time.perf_counter() - started)


async def enqueue_many(url: str, tasks: int) -> float:
    async with Client(url, queues=["tasks"]) as client:
        started = time.perf_counter()
        await client.enqueue_many("tasks", [bare.PAYLOAD] * tasks)
        await client.flush()
        return tasks / (time.perf_counter() - started)


async def drain(url: str, tasks: int) -> float:
    async with Client(url, queues=["tasks"]) as client:
        await client.enqueue_many("tasks", [bare.PAYLOAD] * tasks)
        await client.flush()
    server = Server(url, concurrency=100)
    handled = 0
    over = asyncio.Event()

    @server.handler("tasks")
    async def handle(task: Task) -> None:
        nonlocal handled
        handled += 1
        if handled == tasks:
            over.set()

    started = time.perf_counter()
    async with server:
        await over.wait()
        seconds = time.perf_counter() - started
    return tasks / seconds


async def tracked(url: str, tasks: int, in_flight: int) -> float:
    server = Server(url, concurrency=64)

    @server.handler("tasks")
    async def handle(task: Task) -> None:
        pass

    async with server, Client(url, queues=["tasks"]) as client:
        await (await client.enqueue_and_track("tasks", bare.PAYLOAD)).wait()

        async def several(count: int) -> None:
            for _ in range(count):
                await (await client.enqueue_and_track("tasks", bare.PAYLOAD)).wait()

        started = time.perf_counter()
        await asyncio.gather(*(several(tasks // in_flight) for _ in range(in_flight)))
        return tasks / (time.perf_counter() - started)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "ours", "yardstick", "tasks"),
    [
        ("enqueue, one by one", enqueue_one_by_one, bare.enqueue, TASKS),
        ("enqueue_many", enqueue_many, bare.enqueue, TASKS),
        ("drain", drain, bare.drain, TASKS),
        ("tracked, 64 in flight", lambda url, tasks: tracked(url, tasks, 64), bare.enqueue, 6_400),
        ("tracked, sequential", lambda url, tasks: tracked(url, tasks, 1), bare.round_trips, 1_000),
    ],
)
def test_ratio_to_bare_loop(
    benchmark: Any,
    valkey: LocalServer,
    capsys: pytest.CaptureFixture[str],
    name: str,
    ours: Run,
    yardstick: Callable[[int, int], float],
    tasks: int,
) -> None:
    ratios: list[float] = []
    rates: list[tuple[float, float]] = []

    def setup() -> None:
        if yardstick is bare.drain:
            bare.enqueue(valkey.port, tasks)
        rates.append((yardstick(valkey.port, tasks), 0.0))

    def run() -> None:
        rate = asyncio.run(ours(valkey.url, tasks))
        rates[-1] = (rates[-1][0], rate)
        ratios.append(rate / rates[-1][0])

    benchmark.pedantic(run, setup=setup, rounds=ROUNDS)
    benchmark.extra_info["ratio"] = round(statistics.median(ratios), 3)
    with capsys.disabled():
        bare_rate = statistics.median(rate for rate, _ in rates)
        our_rate = statistics.median(rate for _, rate in rates)
        print(
            f"\n{name}: {our_rate:,.0f}/s, bare {bare_rate:,.0f}/s, ratio {statistics.median(ratios):.2f} "
            f"[{min(ratios):.2f}..{max(ratios):.2f}]"
        )
