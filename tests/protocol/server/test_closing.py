"""Closing, from every stage, with and without Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamfleet_protocol.effects import Disconnect, Faulted, Lane, ServerStopped
from streamfleet_protocol.inputs import Connected, HandlerSucceeded, Reply, StartServer
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.notes import Stalled, TaskAdopted, TaskHandedBack
from streamfleet_protocol.server.closing import Stage
from streamfleet_protocol.settings import QueueSettings
from streamfleet_protocol.wire import decode_task
from tests.protocol.server.support import (
    ABORTED,
    LEASE,
    ME,
    OTHER,
    RENEW,
    But,
    Rig,
    Row,
    commands_named,
    error,
    refusal,
    task,
    values,
)

GRACE = 30_000
CANCEL_WAIT = 5_000
FINISH = 5_000


def running(*names: str, held: int = 0, **changes: Any) -> Rig:
    """These run, and some more are held."""
    rig = Rig(**{"concurrency": max(1, len(names)), "prefetch": 5, **changes})
    rig.open()
    rig.bring(*[task(name) for name in names], *[task(f"held{at}") for at in range(held)])
    assert rig.started() == list(names)
    return rig


def stage(rig: Rig) -> Stage:
    """How far the closing is."""
    return rig.machine.closing.stage


def stopped(rig: Rig) -> ServerStopped:
    """The end."""
    (end,) = rig.of(ServerStopped)
    return end


def in_the_queue(rig: Rig) -> list[str]:
    """Ids of the tasks in the stream that nobody has."""
    return sorted(
        decode_task(fields).task_id for entry_id, fields in rig.q.bodies.items() if entry_id not in rig.q.pending
    )


# --- Before anything --------------------------------------------------------------------------------------


def test_a_server_that_never_started_stops_at_once() -> None:
    rig = Rig()
    rig.close()
    assert rig.effects == [ServerStopped(0, 0)]
    assert rig.feed(StartServer()) == []
    assert rig.machine.next_timeout() is None


@pytest.mark.parametrize("steps", range(8))
def test_a_server_that_is_just_starting_stops_soon(steps: int) -> None:
    rig = Rig()
    rig.start()
    for _ in range(steps):
        rig.answer_one()
    rig.close()
    rig.pass_time(1000)
    assert stopped(rig) == ServerStopped(0, 0)
    assert {link.state for link in rig.machine.links.values()} == {LinkState.IDLE}
    assert rig.machine.next_timeout() is None


def test_an_idle_server_stops_in_a_few_round_trips() -> None:
    rig = Rig("a", "b")
    rig.open()
    began = rig.now
    rig.close()
    rig.pass_time(10)
    assert stopped(rig) == ServerStopped(0, 0)
    assert rig.now - began <= 10


def test_closing_again_changes_nothing_after_the_end() -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.pass_time(10)
    assert stage(rig) is Stage.STOPPED
    rig.clear()
    rig.close()
    assert rig.tick(100_000) == []
    assert rig.feed(Connected(Lane.COMMAND, 5)) == []
    assert rig.machine.next_timeout() is None


# --- The read ---------------------------------------------------------------------------------------------


def test_a_blocked_read_is_ended_through_the_command_lane() -> None:
    rig = Rig()
    rig.open()
    rig.close()
    assert rig.section("intake.on_unblocked") == ((b"CLIENT", b"UNBLOCK", 7),)
    assert rig.blocked
    rig.answer()
    rig.answer(None, Lane.READ)
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.READ]
    assert rig.machine.intake.stopped
    rig.pass_time(10)
    # It was answered, so no entry can be on its way to nobody: the consumer goes too.
    assert commands_named(rig.facts.executed, b"XGROUP")[-1][1] == b"DELCONSUMER"


def test_a_read_that_has_not_reached_the_server_yet_is_unblocked_later() -> None:
    """UNBLOCK answers 0 where nothing blocks: it has overtaken the read, on another connection."""
    rig = Rig()
    rig.open()
    rig.close()
    rig.answer({"intake.on_unblocked": But({0: 0})})
    assert rig.machine.intake.unblock_due_at() == rig.now + 50
    rig.tick(50)
    assert rig.section("intake.on_unblocked") == ((b"CLIENT", b"UNBLOCK", 7),)
    rig.answer()
    rig.answer(None, Lane.READ)
    rig.pass_time(10)
    assert stopped(rig) == ServerStopped(0, 0)
    assert commands_named(rig.facts.executed, b"XGROUP")[-1][1] == b"DELCONSUMER"


def test_what_the_ended_read_has_brought_is_handed_back() -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.deliver(task("t1"))
    assert rig.started() == []
    rig.pass_time(10)
    assert in_the_queue(rig) == ["t1"]
    assert stopped(rig) == ServerStopped(1, 0)


@pytest.mark.parametrize("answer", [refusal("NOPERM no"), refusal("ERR unknown subcommand"), refusal("LOADING no")])
def test_a_read_that_cannot_be_ended_is_cut(answer: Any) -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.answer({"intake.on_unblocked": answer})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.READ]
    assert rig.of(Faulted) == []
    rig.pass_time(10)
    assert stopped(rig) == ServerStopped(0, 0)


def test_a_read_that_does_not_end_is_cut_after_a_while() -> None:
    rig = Rig(command_timeout_ms=3000)
    rig.open()
    rig.close()
    rig.answer()
    rig.facts.unblocked = False
    began = rig.now
    while rig.blocked:
        if rig.in_flight():
            rig.answer()
        else:
            due = rig.machine.next_timeout()
            assert due is not None
            rig.tick(due - rig.now)
    assert rig.now - began == 3000


def test_a_read_whose_connection_has_no_number_is_cut_at_once() -> None:
    rig = Rig()
    rig.start()
    rig.answer_all({"intake.on_identified": refusal("NOPERM no")})
    assert rig.blocked
    rig.close()
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.READ]
    assert "intake.on_unblocked" not in rig.purposes()


def test_a_read_that_does_not_block_is_waited_for() -> None:
    rig = Rig(concurrency=3, prefetch=0)
    rig.open()
    rig.deliver(task("t1"))
    assert not rig.blocked
    rig.close()
    assert rig.in_flight(Lane.READ)
    rig.deliver(task("t2"))
    rig.succeed("t1")
    rig.pass_time(10)
    assert in_the_queue(rig) == ["t2"]


def test_what_a_cut_read_has_brought_is_adopted_by_the_last_look_and_handed_back() -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.pend(b"77-0", task("t1"), owner=ME)
    rig.answer({"intake.on_unblocked": refusal("NOPERM no")})
    rig.pass_time(1000)
    assert [note.entry_id for note in rig.notes(TaskAdopted)] == ["77-0"]
    assert in_the_queue(rig) == ["t1"]
    assert rig.started() == []
    assert stopped(rig) == ServerStopped(1, 0)
    # The read was cut: it may still bring something, and what is pending under a deleted consumer is nobody's.
    assert b"DELCONSUMER" not in [command[1] for command in commands_named(rig.facts.executed, b"XGROUP")]


def test_an_aborted_adoption_of_the_last_look_is_looked_at_again() -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.pend(b"77-0", task("t1"), owner=ME)
    rig.answer({"intake.on_unblocked": refusal("NOPERM no")})
    rig.until("leases.on_renewed")
    rig.answer({"leases.on_renewed": ABORTED})
    rig.pass_time(1000)
    assert in_the_queue(rig) == ["t1"]


def test_the_last_look_is_made_after_the_read_is_over() -> None:
    """A look that was under way when the read was cut does not count."""
    rig = Rig()
    rig.open()
    rig.until("leases.on_look")
    rig.close()
    replies = rig.replies()
    rig.pend(b"77-0", task("t1"), owner=ME)
    rig.lose(Lane.READ)
    rig.feed(Reply(rig.batch().token, replies))
    assert stage(rig) is Stage.RETURNING
    rig.pass_time(1000)
    assert in_the_queue(rig) == ["t1"]


def test_a_ghost_of_the_last_look_is_taken_out() -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.pend(b"77-0", owner=ME)
    del rig.q.bodies[b"77-0"]
    rig.answer({"intake.on_unblocked": refusal("NOPERM no")})
    rig.until("leases.on_renewed")
    rig.answer({"leases.on_renewed": values([], [], 1)})
    rig.pass_time(1000)
    assert rig.q.pending == {}


def test_a_read_connection_that_is_only_coming_is_given_up() -> None:
    rig = Rig()
    rig.start()
    rig.connect()
    rig.answer()
    assert rig.machine.links[Lane.READ].state is LinkState.CONNECTING
    rig.close()
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.READ]
    rig.pass_time(10)
    assert stopped(rig) == ServerStopped(0, 0)


def test_a_read_connection_that_is_down_is_given_up() -> None:
    rig = Rig()
    rig.open()
    rig.lose(Lane.READ)
    rig.close()
    rig.pass_time(10)
    assert stopped(rig) == ServerStopped(0, 0)


def test_a_read_connection_that_is_lost_while_its_end_is_asked_for() -> None:
    rig = Rig()
    rig.open()
    rig.lose()
    rig.close()
    assert rig.machine.intake.unblock_due_at() <= rig.now
    rig.lose(Lane.READ)
    assert rig.machine.intake.stopped
    assert rig.machine.intake.unblock_due_at() > rig.now
    rig.pass_time(1000)
    assert stopped(rig) == ServerStopped(0, 0)
    assert not [command for command in rig.facts.executed if command[:2] == (b"CLIENT", b"UNBLOCK")]


def test_an_answer_about_the_end_of_a_read_that_is_over_is_nothing() -> None:
    rig = running("t1")
    rig.succeed("t1")
    rig.answer_all()
    rig.close()
    token = rig.batch().token
    rig.lose(Lane.READ)
    rig.lose()
    assert token
    rig.pass_time(1000)
    assert stopped(rig) == ServerStopped(0, 0)


# --- Handlers ---------------------------------------------------------------------------------------------


def test_handlers_get_their_grace() -> None:
    rig = running("t1", "t2", held=2)
    rig.close(GRACE)
    rig.pass_time(GRACE - 1)
    assert rig.canceled() == []
    assert stage(rig) is Stage.DRAINING
    rig.succeed("t1")
    rig.succeed("t2")
    rig.pass_time(100)
    assert stopped(rig) == ServerStopped(2, 0)
    assert rig.canceled() == []
    assert in_the_queue(rig) == ["held0", "held1"]


def test_what_is_held_is_handed_back_at_once() -> None:
    rig = running("t1", held=3)
    rig.close(GRACE)
    rig.pass_time(10)
    assert in_the_queue(rig) == ["held0", "held1", "held2"]
    assert stage(rig) is Stage.DRAINING
    assert rig.started() == ["t1"]


def test_what_is_held_and_doubtful_is_handed_back_too() -> None:
    """Whether it is ours is asked anyway, by the fenced question."""
    rig = running("t1", held=1)
    rig.held(b"1002-0").doubtful = True
    rig.close(GRACE)
    rig.pass_time(10)
    assert in_the_queue(rig) == ["held0"]


def test_leases_are_kept_during_the_grace() -> None:
    rig = running("t1")
    rig.close(10 * LEASE)
    for _ in range(20):
        rig.pass_time(RENEW)
        assert rig.facts.redis_ms - rig.q.pending[b"1001-0"].delivered_at <= RENEW
    rig.q.pending[b"1001-0"].owner = OTHER
    rig.pass_time(RENEW)
    assert rig.canceled() == [rig.run_of("t1")]


def test_handlers_are_canceled_after_the_grace_and_their_tasks_handed_back() -> None:
    rig = running("t1", "t2")
    rig.close(GRACE)
    rig.pass_time(GRACE)
    assert sorted(rig.canceled()) == sorted([rig.run_of("t1"), rig.run_of("t2")])
    assert stage(rig) is Stage.CANCELING
    rig.stop("t1")
    rig.succeed("t2")
    rig.pass_time(10)
    assert stopped(rig) == ServerStopped(1, 0)
    assert in_the_queue(rig) == ["t1"]
    assert [note.task_id for note in rig.notes(TaskHandedBack)] == ["t1"]
    assert rig.facts.words == []


def test_a_failure_after_the_grace_is_handed_back_unchanged() -> None:
    rig = running("t1")
    rig.close(0)
    rig.fail("t1")
    rig.pass_time(10)
    assert list(rig.q.bodies.values()) == [task("t1")]


def test_a_failure_during_the_grace_is_retried_as_ever() -> None:
    rig = Rig()
    rig.open()
    rig.deliver(task("t1", retry_delay_ms=1000))
    rig.close(GRACE)
    rig.fail("t1")
    rig.pass_time(10)
    assert len(rig.q.delayed) == 1
    assert stopped(rig) == ServerStopped(0, 0)


def test_handlers_that_do_not_stop_are_abandoned() -> None:
    rig = running("t1", "t2")
    rig.close(GRACE)
    rig.pass_time(GRACE + CANCEL_WAIT - 1)
    assert stage(rig) is Stage.CANCELING
    rig.pass_time(1)
    rig.pass_time(10)
    assert stopped(rig) == ServerStopped(2, 0)
    assert in_the_queue(rig) == ["t1", "t2"]
    assert rig.feed(HandlerSucceeded(rig.run_of("t1"))) == []


def test_a_timed_out_handler_is_asked_once_and_abandoned() -> None:
    rig = Rig(QueueSettings("q", timeout_ms=100))
    rig.open()
    rig.bring(task("t1"))
    rig.pass_time(100)
    rig.close(0)
    rig.pass_time(CANCEL_WAIT + 100)
    assert rig.canceled() == [rig.run_of("t1")]
    assert stopped(rig) == ServerStopped(1, 0)


def test_a_handler_whose_lease_is_lost_is_let_go() -> None:
    rig = running("t1")
    rig.q.pending[b"1001-0"].owner = OTHER
    rig.pass_time(RENEW + 1)
    rig.close(0)
    rig.pass_time(CANCEL_WAIT + 100)
    assert stopped(rig) == ServerStopped(0, 0)
    assert rig.q.pending[b"1001-0"].owner == OTHER


def test_a_shorter_grace_shortens_and_a_longer_does_not_lengthen() -> None:
    rig = running("t1")
    rig.close(GRACE)
    rig.wait(1000)
    rig.close(10 * GRACE)
    rig.close(2000)
    rig.close(5000)
    rig.pass_time(1999)
    assert stage(rig) is Stage.DRAINING
    rig.pass_time(1)
    assert stage(rig) is Stage.CANCELING
    rig.close(0)
    assert stage(rig) is Stage.CANCELING


def test_a_stall_while_closing_is_not_told() -> None:
    rig = running("t1")
    rig.close(10 * GRACE)
    rig.answer_all()
    rig.wait(GRACE)
    rig.tick()
    assert rig.notes(Stalled) == []


# --- The end of it ----------------------------------------------------------------------------------------


def test_the_own_consumer_is_deleted_where_nothing_is_pending() -> None:
    rig = Rig("a", "b")
    rig.open()
    rig.close()
    rig.until("closing.on_pending")
    assert stage(rig) is Stage.LEAVING
    asked = commands_named(rig.batch(), b"XPENDING")
    assert [command[3:] for command in asked] == [(b"-", b"+", 1, ME)] * 2
    rig.queue(1).pending[b"9-0"] = Row(ME, 0)
    rig.answer()
    deleted = commands_named(rig.batch(), b"XGROUP")
    assert [(command[1], command[2]) for command in deleted] == [(b"DELCONSUMER", rig.queue(0).keys.stream)]
    rig.answer()
    assert stopped(rig) == ServerStopped(0, 0)


@pytest.mark.parametrize("part", ["closing.on_pending", "closing.on_deleted"])
@pytest.mark.parametrize("how", ["refused", "lost", "silent"])
def test_a_consumer_that_cannot_be_deleted_is_left_to_others(part: str, how: str) -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.until(part)
    if how == "refused":
        rig.answer({part: refusal("NOGROUP no")})
    elif how == "lost":
        rig.lose()
    else:
        rig.pass_time(FINISH, answering=False)
    assert stopped(rig) == ServerStopped(0, 0)


def test_leaving_is_asked_again_where_the_connection_was_just_lost() -> None:
    rig = Rig()
    rig.open()
    rig.close()
    rig.until("closing.on_pending")
    rig.machine.closing.to_leave = [0]
    rig.machine.closing.leaving += 1
    rig.lose()
    assert stage(rig) is Stage.LEAVING
    rig.pass_time(1000)
    assert stopped(rig) == ServerStopped(0, 0)


# --- Without Redis ----------------------------------------------------------------------------------------


def cut_off(rig: Rig) -> None:
    rig.lose(Lane.READ)
    rig.lose()


def silent(rig: Rig) -> None:
    """Connections stand, nothing is answered."""


@pytest.mark.parametrize("outage", [cut_off, silent])
@pytest.mark.parametrize("grace", [0, GRACE])
def test_the_end_comes_in_time_without_redis(outage: Callable[[Rig], None], grace: int) -> None:
    rig = running("t1", "t2", held=2)
    rig.succeed("t2")
    outage(rig)
    rig.close(grace)
    began = rig.now
    rig.pass_time(grace + CANCEL_WAIT + FINISH - 1, answering=False)
    assert stage(rig) is not Stage.STOPPED
    rig.pass_time(1, answering=False)
    assert rig.now - began == grace + CANCEL_WAIT + FINISH
    # held0 ran when t2 was done.
    assert stopped(rig) == ServerStopped(0, 4)
    assert rig.machine.next_timeout() is None


def test_redis_that_comes_back_in_time_takes_everything_back() -> None:
    rig = running("t1", held=2)
    cut_off(rig)
    rig.close(1000)
    rig.pass_time(1000 + CANCEL_WAIT, answering=False)
    assert stage(rig) is Stage.RETURNING
    rig.pass_time(4000)
    assert stopped(rig) == ServerStopped(3, 0)
    assert in_the_queue(rig) == ["held0", "held1", "t1"]


def test_a_server_that_never_had_redis_stops_in_time() -> None:
    rig = Rig()
    rig.start()
    rig.lose()
    rig.close(GRACE)
    rig.pass_time(FINISH + 10, answering=False)
    assert stopped(rig) == ServerStopped(0, 0)


def test_what_is_done_and_not_settled_is_waited_for() -> None:
    rig = running("t1")
    rig.succeed("t1")
    rig.answer({"settlement.on_plain": refusal("LOADING no")})
    rig.close(GRACE)
    rig.pass_time(1000)
    assert stopped(rig) == ServerStopped(0, 0)
    assert rig.q.bodies == {}


def test_what_cannot_be_settled_in_time_is_counted() -> None:
    rig = running("t1")
    rig.succeed("t1")
    oom = {"settlement.on_plain": refusal("LOADING no")}
    rig.answer_all(oom)
    rig.close(GRACE)
    rig.pass_time(FINISH + 10, oom)
    assert stopped(rig) == ServerStopped(0, 1)


# --- A fault ----------------------------------------------------------------------------------------------


def test_a_fault_stops_the_server_without_a_grace_and_hands_back_what_it_can() -> None:
    rig = running("t1", held=1)
    rig.until("promotion.on_look")
    rig.answer({"promotion.on_look": refusal("NOPERM no ZRANGE")})
    assert len(rig.of(Faulted)) == 1
    assert rig.canceled() == [rig.run_of("t1")]
    rig.stop("t1")
    rig.pass_time(1000)
    assert stopped(rig) == ServerStopped(2, 0)
    assert in_the_queue(rig) == ["held0", "t1"]


def test_a_fault_ends_a_grace() -> None:
    rig = running("t1")
    rig.close(GRACE)
    rig.lose(error=error("NOAUTH no"))
    assert stage(rig) is Stage.CANCELING


def test_a_fault_is_told_once() -> None:
    rig = Rig()
    rig.open()
    for _ in range(3):
        rig.lose(error=error("WRONGPASS no"))
        due = rig.machine.next_timeout()
        assert due is not None
        rig.tick(due - rig.now)
    assert len(rig.of(Faulted)) == 1


def test_a_fault_before_anything_was_done_leaves_nothing_to_wait_for() -> None:
    rig = Rig()
    rig.start()
    rig.lose(error=error("WRONGPASS no"))
    assert len(rig.of(Faulted)) == 1
    assert stopped(rig) == ServerStopped(0, 0)
    assert rig.machine.next_timeout() is None
