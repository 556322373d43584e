"""Plans: as JSON and back, what is wrong with a bad one, and what the swarm draws."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim.faults import CATALOGUE
from sim.handlers import ACTS
from sim.plan import Act, FaultPlan, Plan, PlanError, ProcessPlan, TaskPlan
from sim.settings import client_settings, worker_settings
from sim.swarm import CLIENT_PURPOSES, WORKER_PURPOSES, make_plan

SEEDS = range(1_000)
DOCS = Path(__file__).parents[2] / "docs"


def small() -> Plan:
    """A plan with one of each."""
    return Plan(
        seed=1,
        version="valkey9",
        queues=("q1",),
        latency_ms=1,
        jitter_ms=0,
        split_percent=0,
        workers=(ProcessPlan("w1"),),
        clients=(ProcessPlan("c1"),),
        tasks=(TaskPlan("t1", 100, "c1", "q1", tracked=True, acts=(Act("succeed", 5),)),),
        faults=(FaultPlan("f1", "flush", 500),),
        calm_at_ms=1_000,
    )


def test_a_plan_survives_json() -> None:
    for seed in range(200):
        plan = make_plan(seed)
        assert Plan.load(plan.dump()) == plan


def test_a_seed_is_a_plan() -> None:
    """The same in every process; others differ."""
    assert make_plan(5) == make_plan(5)
    assert len({make_plan(seed).dump() for seed in range(50)}) == 50


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    """The text of a plan's JSON with something wrong."""
    data = json.loads(small().dump())
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "an object is needed"),
        (broken(lambda d: d.update(format=7)), "its format is 7"),
        (broken(lambda d: d.pop("seed")), "the plan has no seed"),
        (broken(lambda d: d.update(colour=1)), "unknown fields: colour"),
        (broken(lambda d: d.update(seed="x")), "the plan, seed is 'x': int is needed"),
        (broken(lambda d: d.update(latency_ms=True)), "latency_ms is True"),
        (broken(lambda d: d.update(version="redis6")), "version is 'redis6'"),
        (broken(lambda d: d.update(workers=[])), "at least one worker"),
        (broken(lambda d: d["clients"][0].update(name="w1")), "'w1' is empty, or used twice"),
        (broken(lambda d: d["tasks"][0].update(queue="q9")), "no queue 'q9'"),
        (broken(lambda d: d["tasks"][0].update(acts=[{"does": "sing"}])), "its acts must be some of"),
        (broken(lambda d: d["tasks"][0].update(acts=[])), "its acts must be some of"),
        (broken(lambda d: d["tasks"][0].update(acts=5)), "tasks[0], acts is 5: a list is needed"),
        (broken(lambda d: d["faults"][0].update(kind="quake")), "its kind is 'quake'"),
        (broken(lambda d: d["faults"][0].update(on="w1")), "is on 'w1'"),
        (broken(lambda d: d["faults"][0].update(values={"x": 1})), "unknown values: x"),
        (broken(lambda d: d["faults"][0].update(kind="clock", values={"by_ms": "soon"})), "by_ms is 'soon'"),
        (broken(lambda d: d["faults"][0].update(kind="clock")), "by_ms is None"),
        (broken(lambda d: d.update(worker_settings={"lease_ms": "long"})), "worker_settings, lease_ms is 'long'"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.load(text)
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.json"):
        Plan.read(tmp_path / "none.json")
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match=r"damaged\.json"):
        Plan.read(damaged)


# The swarm.


def test_the_swarm_draws_everything() -> None:
    """Every kind of fault and act, every version; and at least one run in twenty without any fault."""
    kinds: Counter[str] = Counter()
    acts: Counter[str] = Counter()
    purposes: Counter[str] = Counter()
    shapes: Counter[tuple[str, int]] = Counter()
    faultless = 0
    for seed in SEEDS:
        plan = make_plan(seed)
        faultless += not plan.faults
        kinds.update(fault.kind for fault in plan.faults)
        purposes.update(fault.purpose for fault in plan.faults if fault.purpose)
        acts.update(act.does for task in plan.tasks for act in task.acts)
        shapes.update([("workers", len(plan.workers)), ("clients", len(plan.clients)), ("queues", len(plan.queues))])
    assert set(kinds) == set(CATALOGUE)
    assert set(acts) == set(ACTS)
    assert set(purposes) == set(WORKER_PURPOSES) | set(CLIENT_PURPOSES)
    assert faultless >= len(SEEDS) // 20
    assert {count for name, count in shapes if name == "workers"} >= {1, 2, 12}
    assert {count for name, count in shapes if name == "clients"} >= {1, 4}
    assert {count for name, count in shapes if name == "queues"} >= {1, 5}


def test_every_plan_makes_sense() -> None:
    """It passes its own check, and the settings pass those of the protocol."""
    for seed in range(300):
        plan = make_plan(seed)
        plan.check()
        worker_settings(plan, plan.workers[0], "w1:1", 1)
        client_settings(plan, plan.clients[0], "c1:1", 1)
        assert plan.workers[0].name not in plan.gone


def test_a_purpose_is_a_section_of_the_protocol() -> None:
    """A name that no batch has would be a fault that never strikes."""
    core = Path(__file__).parents[2] / "streamfleet_protocol"
    text = "".join(path.read_text() for path in core.rglob("*.py"))
    for purpose in (*WORKER_PURPOSES, *CLIENT_PURPOSES):
        part, method = purpose.split(".")
        is_phase = part == "audit" and f"{method.removeprefix('on_').upper()} = " in text
        assert is_phase or f'("{part}", "{method}")' in text, purpose


def test_the_documentation_has_the_catalogue() -> None:
    page = (DOCS / "faults.md").read_text()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:6]]
        for cells in (line.split("|") for line in page.splitlines() if line.startswith("| "))
        if len(cells) == 7
    }
    del rows["fault"], rows["---"]
    assert {
        name: [
            kind.on,
            "`for_ms`" if kind.lasts else "",
            ", ".join(f"`{value}`" for value in kind.values),
            kind.imitates,
        ]
        for name, kind in CATALOGUE.items()
    } == rows
    for act, what in ACTS.items():
        assert f"| {act} | {what} |" in page


def test_the_smallest_plan_is_good() -> None:
    small().check()
    assert replace(small(), faults=()).dump().count("\n") > 10
