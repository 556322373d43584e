"""Speed of the simulator on one core: virtual seconds, and steps of the protocol, for each second of CPU.

`pytest -m benchmark tests/benchmarks/test_simulator.py`. CPU seconds, since the simulator waits for nothing: what else
the machine does then counts less.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from sim.plan import Act, Plan, ProcessPlan, TaskPlan
from sim.run import run
from sim.swarm import make_plan

ROUNDS = 5
HOUR_MS = 3_600_000


def fleet(tasks: int, within_ms: int) -> Plan:
    """Three workers and a client with the default settings, and so many tasks, half of them tracked."""
    return Plan(
        seed=1,
        version="valkey9",
        queues=("q1",),
        latency_ms=1,
        jitter_ms=2,
        split_percent=0,
        workers=tuple(ProcessPlan(f"w{n}", origin_ms=n * 1_000) for n in (1, 2, 3)),
        clients=(ProcessPlan("c1"),),
        tasks=tuple(
            TaskPlan(f"t{n}", n * within_ms // tasks, "c1", "q1", tracked=n % 2 == 0, acts=(Act("succeed", 5),))
            for n in range(tasks)
        ),
        faults=(),
        calm_at_ms=within_ms,
        worker_settings={"concurrency": 8},
    )


def measure(benchmark: Any, plans: list[Plan], what: str) -> None:
    figures: list[tuple[float, float]] = []

    def once() -> None:
        started = time.process_time()
        steps = virtual_ms = 0
        for plan in plans:
            verdict = run(plan)
            assert verdict.violation is None, verdict.violation
            steps += verdict.steps
            virtual_ms += verdict.virtual_ms
        seconds = time.process_time() - started
        figures.append((virtual_ms / 1_000 / seconds, steps / seconds))

    benchmark.pedantic(once, rounds=ROUNDS, iterations=1, warmup_rounds=1)
    virtual = sorted(figure[0] for figure in figures)
    steps = sorted(figure[1] for figure in figures)
    benchmark.extra_info["virtual_s_per_cpu_s"] = round(virtual[len(virtual) // 2])
    benchmark.extra_info["steps_per_cpu_s"] = round(steps[len(steps) // 2])
    print(
        f"\n{what}: {virtual[len(virtual) // 2]:,.0f} [{virtual[0]:,.0f}..{virtual[-1]:,.0f}] virtual seconds and "
        f"{steps[len(steps) // 2]:,.0f} [{steps[0]:,.0f}..{steps[-1]:,.0f}] steps a CPU second"
    )


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_an_hour_of_a_fleet(benchmark: Any) -> None:
    measure(benchmark, [fleet(1_000, HOUR_MS)], "an hour, 1,000 tasks, default settings")


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_a_busy_fleet(benchmark: Any) -> None:
    measure(benchmark, [fleet(10_000, 20_000)], "20 seconds, 10,000 tasks, default settings")


@pytest.mark.benchmark
@pytest.mark.timeout(600)
def test_the_swarm(benchmark: Any) -> None:
    measure(benchmark, [make_plan(seed) for seed in range(40)], "40 seeds of the swarm")
