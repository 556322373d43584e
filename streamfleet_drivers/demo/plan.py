"""What a run of the demo does, from its seed: the tasks, and where the faults strike."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

CONCURRENCY = 8
"""Handlers at once in each worker."""
_SHORTEST, _LONGEST = 0.02, 0.18
"""Seconds of a handler."""
_FAIL_ONCE = 12
"""One task in so many fails in its first attempt."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Faults are placed by the number of settled tasks: by seconds, no two runs would be alike."""

    seed: int
    orders: tuple[bytes, ...]
    """The tasks' data."""
    fail_once: int
    victim: int
    """Index of the worker that is killed."""
    kill_worker_at: int
    kill_server_at: int
    server_down: float
    """Seconds between the server's death and its restart."""
    time_limit: float
    """Seconds after which the demo gives up waiting."""


def make_plan(seed: int, tasks: int, workers: int) -> Plan:
    """The same arguments give the same plan."""
    chance = random.Random(seed)
    failing = set(chance.sample(range(tasks), max(1, tasks // _FAIL_ONCE)))
    seconds = [round(chance.uniform(_SHORTEST, _LONGEST), 3) for _ in range(tasks)]
    orders = tuple(
        json.dumps({"number": number, "seconds": seconds[number], "fails_first": number in failing}).encode()
        for number in range(tasks)
    )
    return Plan(
        seed=seed,
        orders=orders,
        fail_once=len(failing),
        victim=chance.randrange(workers),
        kill_worker_at=int(tasks * chance.uniform(0.15, 0.25)),
        kill_server_at=int(tasks * chance.uniform(0.6, 0.7)),
        server_down=round(chance.uniform(0.5, 1.5), 2),
        # The survivors alone could do all the work in this time, with half a minute to notice and repair the damage.
        time_limit=30 + 1.2 * sum(seconds) / (CONCURRENCY * (workers - 1)),
    )
