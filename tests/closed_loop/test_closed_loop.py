"""Promises G1 to G4 under random faults, each run from a seed; the seed of a failing run is in its test id."""

from __future__ import annotations

import os
from functools import partial

import pytest

from streamfleet_protocol import ServerMachine
from streamfleet_protocol.effects import End
from streamfleet_protocol.inputs import CloseClient
from streamfleet_protocol.notes import LeaseLost

from .world import Faults, World

SEEDS = int(os.environ.get("STREAMFLEET_SEEDS", "4"))

KINDS = {
    "none": Faults(),
    "lost replies": Faults(lost_reply=0.03, prefix=0.01),
    "lost requests": Faults(lost_request=0.03),
    "late bytes": Faults(late=0.03),
    "killed workers": Faults(kill=0.1),
    "frozen workers": Faults(freeze=0.1),
    "restarts": Faults(restart=0.05, lost_reply=0.01),
    "rollbacks": Faults(rollback=0.04),
    "full server": Faults(oom=0.3),
    "clock steps": Faults(clock=0.1),
    "closed workers": Faults(close=0.2),
    "an operator": Faults(operator=0.1),
    "network and clock": Faults(lost_reply=0.02, lost_request=0.01, late=0.02, prefix=0.01, clock=0.05, oom=0.1),
    "all": Faults(0.02, 0.01, 0.02, 0.01, 0.03, 0.05, 0.02, 0.02, 0.1, 0.05, 0.05, 0.02),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_promises_hold(kind: str, seed: int) -> None:
    check(KINDS[kind], seed)


def check(faults: Faults, seed: int) -> World:
    """One run: work under faults, then calm, then rest."""
    version = ("valkey9", "redis7", "redis8")[seed % 3]
    world = World(seed, faults, version=version, queues=1 + seed % 3)
    for _ in range(1 + seed % 3):
        world.add_server()
    client = world.add_client()
    for number in range(40):
        failures = world.random.choice((0, 0, 0, 1, 2))
        enqueue = partial(
            world.enqueue,
            client,
            tracked=world.random.random() < 0.5,
            failures=failures,
            delay_ms=world.random.choice((0, 0, 0, 500)),
            retry_delay_ms=world.random.choice((0, 200)),
        )
        world.at(world.now + number * 700, enqueue)
    world.after(1_000, world.each_second)
    world.run(world.now + 45_000)
    world.heal()
    servers = [node for node in world.nodes if isinstance(node.machine, ServerMachine) and node.alive]
    if not servers:
        world.add_server()
    # A step of Redis's clock shifts delays by that step.
    patience = 400_000 + (1_500_000 if faults.clock else 0)
    done = world.run(world.now + patience, lambda: all_ended(world))
    explain = f"seed {seed}: {left_over(world)}"
    assert done, explain
    check_delivery(world, faults)
    world.run(world.now + patience, lambda: at_rest(world))
    assert at_rest(world), f"seed {seed}: {rest(world)}"
    world.run(world.now + 10_000)
    client.feed(CloseClient(5_000))
    world.close_servers()
    world.run(world.now + 30_000)
    check_nothing_is_left(world, faults)
    return world


def all_ended(world: World) -> bool:
    """Every accepted task has succeeded, and every handle has settled."""
    return all(
        (world.succeeded[task_id] or unknown(world, task_id)) and (not tracked or task_id in world.settled)
        for task_id, tracked in world.accepted.items()
    )


def unknown(world: World, task_id: str) -> bool:
    return any(settled.end is End.UNKNOWN for settled in world.settled.get(task_id, ()))


def left_over(world: World) -> str:
    missing = [task_id for task_id in world.accepted if not world.succeeded[task_id]]
    open_handles = [task_id for task_id, tracked in world.accepted.items() if tracked and task_id not in world.settled]
    return f"never succeeded {missing}, open handles {open_handles}"


def check_delivery(world: World, faults: Faults) -> None:
    for task_id, tracked in world.accepted.items():
        assert len(world.settled.get(task_id, ())) == (1 if tracked else 0), f"{task_id} settled more than once"
        for settled in world.settled.get(task_id, ()):
            assert settled.end in (End.COMPLETED, End.UNKNOWN), settled
            if settled.end is End.UNKNOWN:
                assert faults.lose_data, f"the outcome of {task_id} is known"
        if not faults.excuse_duplicates:
            assert world.succeeded[task_id] == 1, f"{task_id} succeeded {world.succeeded[task_id]} times"
            runs = world.failures[task_id] + 1
            assert world.started[task_id] == runs, f"{task_id} was run {world.started[task_id]} times, not {runs}"
    if not faults.excuse_duplicates:
        assert not [note for _, _, note in world.notes if isinstance(note, LeaseLost)]


def at_rest(world: World) -> bool:
    return not any(rest(world).values())


def rest(world: World) -> dict[str, object]:
    """What is still to be done in Redis."""
    connection = world.redis.connect()
    left: dict[str, object] = {}
    for name in world.queues:
        stream = f"streamfleet:{name}"
        left[f"{name} entries"] = connection.execute(["XLEN", stream])
        left[f"{name} delayed"] = connection.execute(["ZCARD", f"{{{stream}}}:delayed"])
        pending = connection.execute(["XPENDING", stream, "streamfleet-server", "-", "+", 10])
        left[f"{name} pending"] = pending if isinstance(pending, list) else []
    connection.close()
    return left


def check_nothing_is_left(world: World, faults: Faults) -> None:
    connection = world.redis.connect()
    for name in world.queues:
        stream = f"streamfleet:{name}"
        assert connection.execute(["HLEN", f"{{{stream}}}:producers"]) == 0
        assert connection.execute(["ZCARD", f"{stream}:receivers"]) == 0
        consumers = connection.execute(["XINFO", "CONSUMERS", stream, "streamfleet-server"])
        assert isinstance(consumers, list)
        if faults.leave_connections:
            assert consumers == [], consumers
    client = next(node for node in world.nodes if node.name.startswith("c"))
    assert connection.execute(["EXISTS", f"streamfleet:receiver:{client.name}"]) == 0
