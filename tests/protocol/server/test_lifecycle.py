"""The table of a task's life, every pair of it, and the counts that `Tasks.move` keeps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from streamfleet_protocol.errors import InvariantBroken
from streamfleet_protocol.server.lifecycle import LEASED, TRANSITIONS, WITH_HANDLER, Happening, TaskState
from streamfleet_protocol.server.tasks import HeldTask, Tasks
from tests.protocol.server.support import settings, task

PAIRS = list(itertools.product(TaskState, Happening))

# The life of a task on a worker, written down a second time and by hand. A line: from, then what leads where.
DIAGRAM = """
held        start > running, conclude > concluding, lease lost > gone
running     success > succeeded, failure > concluding, stopped > concluding, timeout > timed out,
            lease lost > lost, release > releasing
timed out   success > concluding, failure > concluding, stopped > concluding, lease lost > lost,
            release > timed out, abandon > concluding
releasing   success > succeeded, failure > concluding, stopped > concluding, timeout > releasing,
            lease lost > lost, abandon > concluding
lost        success > succeeded, failure > gone, stopped > gone, timeout > lost, release > lost, abandon > gone
succeeded   settled > gone
concluding  settled > gone, lease lost > gone
gone
"""


def written(diagram: str) -> dict[tuple[str, str], str]:
    """The transitions in the diagram."""
    found: dict[tuple[str, str], str] = {}
    state = ""
    for line in diagram.strip().splitlines():
        name, steps = line[:12].strip(), line[12:]
        state = name or state
        for step in filter(None, (part.strip() for part in steps.split(","))):
            happening, _, after = step.partition(" > ")
            found[state, happening] = after
    return found


def drawn(transitions: dict[tuple[TaskState, Happening], TaskState]) -> str:
    """The transitions in the same words: a diagram derived from the table."""
    lines = []
    for state in TaskState:
        steps = [
            f"{happening.value} > {after.value}"
            for happening in Happening
            if (after := transitions.get((state, happening))) is not None
        ]
        lines.append(f"{state.value:12}{', '.join(steps)}".rstrip())
    return "\n".join(lines)


def path_to(state: TaskState) -> list[Happening]:
    """The shortest way from HELD to a state, by the table alone."""
    ways: dict[TaskState, list[Happening]] = {TaskState.HELD: []}
    front = [TaskState.HELD]
    while front:
        before = front.pop(0)
        for (start, happening), after in TRANSITIONS.items():
            if start is before and after not in ways:
                ways[after] = [*ways[before], happening]
                front.append(after)
    return ways[state]


def led_to(state: TaskState) -> tuple[Tasks, HeldTask]:
    """A table with one task, in this state."""
    tasks = Tasks(settings())
    held = tasks.take(0, b"1-0", task(), 1)
    assert held is not None
    for happening in path_to(state):
        tasks.move(held, happening)
    assert held.state is state
    return tasks, held


def counts(tasks: Tasks) -> tuple[int, int, int, int]:
    """Held, running, in the table, unsettled."""
    return tasks.held, len(tasks.running), len(tasks.by_id), tasks.unsettled


def expected_counts(states: Iterable[TaskState]) -> tuple[int, int, int, int]:
    states = [state for state in states if state is not TaskState.GONE]
    held = states.count(TaskState.HELD)
    running = sum(state in WITH_HANDLER for state in states)
    return held, running, len(states), len(states) - held - running


def test_the_table_is_the_diagram() -> None:
    in_words = {(state.value, happening.value): after.value for (state, happening), after in TRANSITIONS.items()}
    assert in_words == written(DIAGRAM)


def test_a_diagram_derived_from_the_table_is_complete() -> None:
    diagram = drawn(TRANSITIONS)
    assert [line[:12].strip() for line in diagram.splitlines()] == [state.value for state in TaskState]
    assert written(diagram) == written(DIAGRAM)


def test_every_state_can_be_reached_and_left() -> None:
    for state in TaskState:
        assert state is TaskState.HELD or path_to(state)
        leaves = any(before is state and after is not state for (before, _), after in TRANSITIONS.items())
        assert leaves == (state is not TaskState.GONE)


def test_every_happening_happens() -> None:
    assert {happening for _, happening in TRANSITIONS} == set(Happening)


def test_a_task_can_only_get_nearer_to_its_end() -> None:
    """But for waiting in one state there is no way back, so no task can go round for ever."""
    order = list(TaskState)
    for (before, _), after in TRANSITIONS.items():
        assert after is before or order.index(after) > order.index(before), (before, after)


@pytest.mark.parametrize(("state", "happening"), PAIRS, ids=lambda value: value.value)
def test_each_pair_gives_its_state_or_is_a_bug(state: TaskState, happening: Happening) -> None:
    tasks, held = led_to(state)
    assert counts(tasks) == expected_counts([state])
    after = TRANSITIONS.get((state, happening))
    if after is None:
        before = counts(tasks)
        with pytest.raises(InvariantBroken):
            tasks.move(held, happening)
        assert held.state is state
        assert counts(tasks) == before
    else:
        assert tasks.move(held, happening) is after
        assert held.state is after
        assert counts(tasks) == expected_counts([after])
        assert ((0, b"1-0") in tasks.by_id) == (after is not TaskState.GONE)
        assert (held.run in tasks.running) == (after in WITH_HANDLER)


def test_counts_of_many_tasks_in_all_states() -> None:
    tasks = Tasks(settings(concurrency=20))
    for at, state in enumerate(TaskState):
        held = tasks.take(0, b"%d-0" % at, task(f"t{at}"), 1)
        assert held is not None
        for happening in path_to(state):
            tasks.move(held, happening)
    assert counts(tasks) == expected_counts(TaskState)
    assert sorted(tasks.running) == [run for run in range(1, tasks.runs + 1) if run in tasks.running]
    for held in list(tasks.by_id.values()):
        while held.state is not TaskState.GONE:
            happening = next(h for (s, h), after in TRANSITIONS.items() if s is held.state and after is not s)
            tasks.move(held, happening)
    assert counts(tasks) == (0, 0, 0, 0)


def test_runs_have_numbers_of_their_own() -> None:
    tasks = Tasks(settings(concurrency=3))
    runs = []
    for at in range(3):
        held = tasks.take(0, b"%d-0" % at, task(), 1)
        assert held is not None
        tasks.move(held, Happening.START)
        runs.append(held.run)
    assert runs == [1, 2, 3]


def test_leased_states_are_those_that_losing_the_lease_ends_or_cancels() -> None:
    losing = {state for (state, happening) in TRANSITIONS if happening is Happening.LEASE_LOST}
    # A conclusion finds out by its own fenced question.
    assert losing == LEASED | {TaskState.CONCLUDING}
