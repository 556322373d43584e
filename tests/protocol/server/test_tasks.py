"""The table of tasks: taking, waiting, and room."""

from __future__ import annotations

import pytest

from streamfleet_protocol.server.lifecycle import Happening, TaskState
from streamfleet_protocol.server.tasks import Tasks
from tests.protocol.server.support import settings, task


def test_an_entry_is_taken_once() -> None:
    tasks = Tasks(settings())
    held = tasks.take(0, b"1-0", task("t1"), 3)
    assert held is not None
    assert (held.task_id, held.deliveries, held.state) == ("t1", 3, TaskState.HELD)
    assert tasks.take(0, b"1-0", task("t1"), 4) is None
    assert tasks.held == 1
    assert held.deliveries == 3


def test_the_same_id_in_another_queue_is_another_entry() -> None:
    tasks = Tasks(settings("a", "b"))
    assert tasks.take(0, b"1-0", task(), 1) is not None
    assert tasks.take(1, b"1-0", task(), 1) is not None
    assert [held.queue for held in tasks.of_queue(1)] == [1]


def test_an_entry_may_be_taken_again_when_it_is_gone() -> None:
    tasks = Tasks(settings())
    first = tasks.take(0, b"1-0", task(), 1)
    assert first is not None
    tasks.move(first, Happening.LEASE_LOST)
    again = tasks.take(0, b"1-0", task(), 2)
    assert again is not None
    assert again.serial > first.serial
    assert tasks.next_held() is again


@pytest.mark.parametrize(
    "fields",
    [(), (b"id", b"x"), task()[:-1], (b"\xff", b"\xfe"), task(), (b"data", None, b"id", 5)],
    ids=["nothing", "no version", "odd", "no text", "good", "no bytes"],
)
def test_whatever_is_read_is_taken(fields: tuple[bytes, ...]) -> None:
    held = Tasks(settings()).take(0, b"1-0", fields, 1)
    assert held is not None
    assert (held.entry is None) == bool(held.problem)
    assert held.task_id == ("t1" if fields == task() else "(entry 1-0)")


def test_held_tasks_wait_in_the_order_of_their_arrival() -> None:
    tasks = Tasks(settings())
    taken = [tasks.take(0, b"%d-0" % at, task(f"t{at}"), 1) for at in range(5)]
    assert all(held is not None for held in taken)
    first, second, third, fourth, fifth = (held for held in taken if held is not None)
    assert tasks.next_held() is first
    tasks.move(second, Happening.LEASE_LOST)
    tasks.move(first, Happening.CONCLUDE)
    assert tasks.next_held() is third
    fourth.doubtful = third.doubtful = True
    assert tasks.next_held() is fifth
    assert tasks.next_held(doubtful=True) is third
    third.doubtful = False
    assert tasks.next_held() is third
    tasks.move(third, Happening.START)
    tasks.move(fifth, Happening.START)
    assert tasks.next_held() is None
    assert tasks.next_held(doubtful=True) is fourth


def test_room_is_what_concurrency_and_prefetch_leave() -> None:
    tasks = Tasks(settings(concurrency=2, prefetch=3))
    assert tasks.room == 5
    held = [tasks.take(0, b"%d-0" % at, task(), 1) for at in range(3)]
    assert tasks.room == 2
    assert held[0] is not None
    tasks.move(held[0], Happening.START)
    assert tasks.room == 2
    tasks.reserved += 1
    assert tasks.room == 1
    tasks.move(held[0], Happening.SUCCESS)
    # What is only waiting to be settled takes no room.
    assert tasks.room == 2
    assert tasks.unsettled == 1


def test_a_handler_that_was_asked_to_stop_takes_room_until_it_has_stopped() -> None:
    tasks = Tasks(settings(concurrency=1, prefetch=0))
    held = tasks.take(0, b"1-0", task(), 1)
    assert held is not None
    tasks.move(held, Happening.START)
    tasks.move(held, Happening.LEASE_LOST)
    assert tasks.room == 0


@pytest.mark.parametrize(
    ("durations", "concurrency", "prefetch"),
    [
        ([], 4, 0),  # nothing is known yet
        ([50], 1, 1),
        ([10], 1, 5),
        ([10], 4, 20),
        ([51], 1, 0),
        ([1000], 1, 0),
        ([1000], 30, 1),
        ([0], 1, 40),  # never more than the bound
        ([1] * 50, 1, 40),
        ([1000, *[10] * 60], 1, 5),  # it follows
        ([10, *[1000] * 40], 1, 0),
    ],
)
def test_prefetch_is_about_50_ms_of_work(durations: list[int], concurrency: int, prefetch: int) -> None:
    tasks = Tasks(settings(concurrency=concurrency, prefetch_most=40))
    for duration in durations:
        tasks.measured(duration)
    assert abs(tasks.prefetch - prefetch) <= (1 if len(durations) > 1 else 0)


def test_a_prefetch_that_was_set_is_kept() -> None:
    tasks = Tasks(settings(prefetch=7))
    tasks.measured(1)
    assert tasks.prefetch == 7
