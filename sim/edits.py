"""Edits of a plan that make it smaller or simpler, for the shrinker.

A place in a plan is a path: names of fields, names of items, positions of acts, keys of mappings; for example
`("tasks", "t7", "acts", 0, "after_ms")`. An edit of a place that an earlier edit has removed changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from .plan import Act, FaultPlan, Plan, ProcessPlan, TaskPlan, without
from .redis_model import VERSIONS

Group = Literal["faults", "tasks", "clients", "workers"]
Path = tuple[str | int, ...]

REMOVED = object()
"""As the value of an edit: the act or the key goes. The last act of a task stays."""

_LENGTH_OF_RUNS = ("silence_ms", "interval_ms", "lease_ms")
"""Ends of the names of settings that stay as they are. Their own defaults are made for production: with them a run that
collects what is left over takes a virtual day, and a replay file of it too long for a corpus."""
_SIMPLEST_PLAN: dict[str, int | str] = {
    "split_percent": 0,
    "jitter_ms": 0,
    "latency_ms": 1,
    "version": next(iter(VERSIONS)),
}
_SIMPLEST_ACT = Act("succeed")
_SIMPLEST_TASK = TaskPlan("", 0, "", "", False, (_SIMPLEST_ACT,))
_SIMPLEST_PROCESS = ProcessPlan("")


class Edit(NamedTuple):
    """One value is replaced, or removed."""

    path: Path
    value: object


class Number(NamedTuple):
    """A number in a plan that a rounder one might do for."""

    path: Path
    value: int


def apply(plan: Plan, edits: Sequence[Edit]) -> Plan:
    """The plan with these edits."""
    for edit in edits:
        plan = _edited(plan, edit.path, edit.value)
    return plan


def _edited(owner: Any, path: Path, value: object) -> Any:
    step, rest = path[0], path[1:]
    if isinstance(owner, tuple):
        return _edited_items(owner, step, rest, value)
    if not isinstance(owner, dict):
        return replace(owner, **{str(step): _edited(getattr(owner, str(step)), rest, value) if rest else value})
    if step not in owner:
        return owner
    if value is REMOVED:
        return {key: item for key, item in owner.items() if key != step}
    return {**owner, step: value}


def _edited_items(items: tuple[Any, ...], step: str | int, rest: Path, value: object) -> tuple[Any, ...]:
    """Items of a plan go by their names, acts by their positions."""
    if not rest:
        return items if len(items) == 1 else tuple(item for at, item in enumerate(items) if at != step)
    return tuple(
        _edited(item, rest, value) if step in (at, getattr(item, "name", None)) else item
        for at, item in enumerate(items)
    )


# Items.


def without_items(plan: Plan, group: Group, names: Sequence[str]) -> Plan:
    """Take items out, and what cannot be without them."""
    gone = frozenset(names)
    if group == "faults":
        return replace(plan, faults=without(plan.faults, gone))
    if group == "tasks":
        return replace(plan, tasks=without(plan.tasks, gone))
    faults = _faults_on_others(plan, gone)
    if group == "workers":
        left = tuple(name for name in plan.gone if name not in gone)
        return replace(plan, workers=without(plan.workers, gone), faults=faults, gone=left)
    tasks = tuple(task for task in plan.tasks if task.client not in gone)
    return replace(plan, clients=without(plan.clients, gone), faults=faults, tasks=tasks)


def without_unused_queues(plan: Plan, names: Sequence[str]) -> Plan:
    """Take queues out that no task is for. One queue stays, used or not."""
    gone = frozenset(names) - {task.queue for task in plan.tasks}
    kept = tuple(queue for queue in plan.queues if queue not in gone) or plan.queues[:1]
    return replace(plan, queues=kept, faults=_faults_on_others(plan, gone.difference(kept)))


def without_later(plan: Plan, at_ms: int) -> Plan:
    """Take out what begins after that time."""
    tasks = tuple(task for task in plan.tasks if task.at_ms <= at_ms)
    return replace(plan, tasks=tasks, faults=tuple(fault for fault in plan.faults if fault.at_ms <= at_ms))


def _faults_on_others(plan: Plan, gone: frozenset[str]) -> tuple[FaultPlan, ...]:
    """The faults that name none of these processes or queues."""
    return tuple(fault for fault in plan.faults if gone.isdisjoint((fault.on, *fault.values.values())))


# Values.


def simpler(plan: Plan) -> Iterator[Edit]:
    """Each value that has a simplest one is set to that; each override of a setting or an option is left out."""
    for name, simplest in _SIMPLEST_PLAN.items():
        yield Edit((name,), simplest)
    for settings in ("client_settings", "worker_settings"):
        yield from _fewer_settings(plan, settings)
    for group in ("workers", "clients"):
        for process in getattr(plan, group):
            for name in ("at_ms", "origin_ms", "drift_ppm", "wall_ms"):
                yield Edit((group, process.name, name), getattr(_SIMPLEST_PROCESS, name))
            yield from _fewer_settings(process, "settings", group, process.name)
    for task in plan.tasks:
        yield from _simpler_task(task)
    for fault in plan.faults:
        yield Edit(("faults", fault.name, "for_ms"), 0)
        for key, value in fault.values.items():
            if isinstance(value, int):
                yield Edit(("faults", fault.name, "values", key), 0)


def _simpler_task(task: TaskPlan) -> Iterator[Edit]:
    here: Path = ("tasks", task.name)
    yield Edit((*here, "acts"), _SIMPLEST_TASK.acts)
    # The last first: removing one moves those behind it.
    for position in reversed(range(len(task.acts))):
        yield Edit((*here, "acts", position), REMOVED)
    for position in range(len(task.acts)):
        for name in ("delay_ms", "after_ms", "does"):
            yield Edit((*here, "acts", position, name), getattr(_SIMPLEST_ACT, name))
    for name in ("tracked", "wait", "size", "expires_at_ms", "due_at_ms"):
        yield Edit((*here, name), getattr(_SIMPLEST_TASK, name))
    yield from _fewer(task, "options", *here)


def _fewer_settings(owner: object, field: str, *path: str | int) -> Iterator[Edit]:
    for edit in _fewer(owner, field, *path):
        if not str(edit.path[-1]).endswith(_LENGTH_OF_RUNS):
            yield edit


def _fewer(owner: object, field: str, *path: str | int) -> Iterator[Edit]:
    for key in getattr(owner, field):
        yield Edit((*path, field, key), REMOVED)


def numbers(plan: Plan) -> Iterator[Number]:
    """The durations and times that are not zero, and the numbers in faults."""
    for fault in plan.faults:
        yield from _numbers_of(fault, ("for_ms", "at_ms"), "faults", fault.name)
        for key, value in fault.values.items():
            if isinstance(value, int) and value:
                yield Number(("faults", fault.name, "values", key), value)
    for task in plan.tasks:
        for position, act in enumerate(task.acts):
            yield from _numbers_of(act, ("after_ms", "delay_ms"), "tasks", task.name, "acts", position)
        sizes = ("size",) if task.size > _SIMPLEST_TASK.size else ()
        yield from _numbers_of(task, ("at_ms", "due_at_ms", "expires_at_ms", *sizes), "tasks", task.name)
    for group in ("workers", "clients"):
        for process in getattr(plan, group):
            yield from _numbers_of(process, ("at_ms", "origin_ms", "wall_ms"), group, process.name)
    yield from _numbers_of(plan, ("calm_at_ms", "latency_ms", "jitter_ms"))


def _numbers_of(owner: object, names: Sequence[str], *path: str | int) -> Iterator[Number]:
    for name in names:
        value = getattr(owner, name)
        if value:
            yield Number((*path, name), value)
