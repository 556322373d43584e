"""Held and not listed: another's, nobody's, or gone."""

from __future__ import annotations

import pytest

from streamfleet_protocol.effects import CancelHandler, Faulted, Lane
from streamfleet_protocol.notes import LeaseLost, OperationRefused, TaskAdopted
from streamfleet_protocol.replies import RawReply
from streamfleet_protocol.server.lifecycle import TaskState
from streamfleet_protocol.server.missing import id_parts, last_delivered
from tests.protocol.server.support import LEASE, ME, OTHER, RENEW, But, Rig, Row, commands_named, refusal, task, values


def asked(*tasks: tuple[bytes, ...], **changes: object) -> Rig:
    """Tasks are held that the look will not list; the question is in flight."""
    rig = Rig(**{"concurrency": 5, "prefetch": 5, **changes})
    rig.open()
    rig.bring(*(tasks or (task("t1"),)))
    rig.until("leases.on_look")
    for entry_id in list(rig.q.pending):
        del rig.q.pending[entry_id]
    rig.answer()
    rig.clear()
    return rig


def test_the_question_is_asked_at_once() -> None:
    rig = asked()
    stream = rig.q.keys.stream
    assert rig.section("missing.on_answer") == (
        (b"XPENDING", stream, b"streamfleet-server", b"1001-0", b"1001-0", 1),
        (b"XRANGE", stream, b"1001-0", b"1001-0"),
        (b"XINFO", b"GROUPS", stream),
    )


def test_anothers_is_lost() -> None:
    rig = asked()
    rig.q.pending[b"1001-0"] = Row(OTHER, 0)
    rig.answer_all()
    assert rig.held(b"1001-0").state is TaskState.LOST
    assert len(rig.of(CancelHandler)) == 1
    assert "node2:bbbb" in rig.notes(LeaseLost)[0].reason


def test_what_is_gone_is_lost_and_nothing_of_it_is_written() -> None:
    rig = asked(task("t1", max_retries=5))
    del rig.q.bodies[b"1001-0"]
    rig.answer_all()
    assert rig.held(b"1001-0").state is TaskState.LOST
    assert "gone" in rig.notes(LeaseLost)[0].reason
    rig.facts.executed.clear()
    rig.fail()
    rig.pass_time(RENEW)
    assert not commands_named(rig.facts.executed, b"XADD")
    assert not commands_named(rig.facts.executed, b"ZADD")
    assert rig.machine.tasks.by_id == {}


def test_nobodys_is_taken_back_with_the_lease_as_the_least_idle_time() -> None:
    rig = asked()
    rig.answer()
    assert rig.section("missing.on_adopted") == (
        (b"XCLAIM", rig.q.keys.stream, b"streamfleet-server", ME, LEASE, b"1001-0", b"FORCE"),
    )
    rig.answer_all()
    assert rig.q.pending[b"1001-0"].owner == ME
    assert rig.held(b"1001-0").state is TaskState.RUNNING
    assert rig.held(b"1001-0").deliveries == 2
    assert [note.entry_id for note in rig.notes(TaskAdopted)] == ["1001-0"]
    assert rig.of(CancelHandler) == []


def test_a_count_that_is_higher_is_kept() -> None:
    rig = Rig(concurrency=5)
    rig.pend(b"5-0", task("t1"), owner=ME, deliveries=4)
    rig.open()
    rig.until("leases.on_look")
    row = rig.q.pending.pop(b"5-0")
    assert row.deliveries == 4
    rig.answer_all()
    assert rig.held(b"5-0").deliveries == 4


def test_an_undelivered_entry_is_left_to_the_read() -> None:
    """The group was made again, or rolled back: `>` gives it out again, to whoever asks first."""
    rig = asked()
    rig.q.last_delivered = b"1000-99"
    rig.answer()
    assert "missing.on_adopted" not in rig.purposes()
    assert rig.held(b"1001-0").state is TaskState.RUNNING


def test_an_undelivered_entry_that_is_only_held_takes_no_room_from_the_read_that_will_bring_it() -> None:
    """Somebody has destroyed the group; to hold on to the entry and not to read would be to wait for ever."""
    rig = asked(task("t1"), task("t2"), concurrency=1, prefetch=0)
    rig.q.last_delivered = b"0-0"
    rig.succeed("t1")
    rig.answer_all()
    assert rig.machine.tasks.by_id == {}
    assert rig.started() == []
    assert b"1002-0" in rig.q.bodies
    assert rig.in_flight(Lane.READ)
    reply = values([[rig.q.keys.stream, [[b"1002-0", list(task("t2"))]]]])
    rig.answer({"intake.on_read": reply}, Lane.READ)
    assert rig.started() == ["t2"]


@pytest.mark.parametrize("part", ["missing.on_answer", "missing.on_adopted"])
def test_without_permission_the_server_stops(part: str) -> None:
    rig = asked()
    if part == "missing.on_adopted":
        rig.answer()
    rig.answer({part: refusal("NOPERM no")})
    assert len(rig.of(Faulted)) == 1


def test_somebody_else_was_faster() -> None:
    """XCLAIM with the lease as min-idle answers nothing where it is in somebody's list."""
    rig = asked()
    rig.answer()
    rig.q.pending[b"1001-0"] = Row(OTHER, rig.facts.redis_ms)
    rig.answer_all()
    assert rig.q.pending[b"1001-0"].owner == OTHER
    assert rig.notes(TaskAdopted) == []
    assert rig.held(b"1001-0").state is TaskState.RUNNING
    rig.pass_time(RENEW + 1)
    assert rig.held(b"1001-0").state is TaskState.LOST


def test_mine_after_all_changes_nothing() -> None:
    rig = asked()
    rig.q.pending[b"1001-0"] = Row(ME, 0)
    rig.answer_all()
    assert rig.held(b"1001-0").state is TaskState.RUNNING
    assert rig.effects == []


@pytest.mark.parametrize("part", ["missing.on_answer", "missing.on_adopted"])
def test_no_answer_is_found_again_by_the_next_look(part: str) -> None:
    rig = asked()
    if part == "missing.on_adopted":
        rig.answer()
    assert part in rig.purposes()
    rig.lose()
    rig.reconnect()
    rig.answer_all()
    assert rig.q.pending[b"1001-0"].owner == ME
    assert rig.held(b"1001-0").state is TaskState.RUNNING


@pytest.mark.parametrize("part", ["missing.on_answer", "missing.on_adopted"])
def test_a_refusal_is_asked_again_by_the_next_look(part: str) -> None:
    rig = asked()
    if part == "missing.on_adopted":
        rig.answer()
    rig.answer({part: refusal("LOADING no")})
    noted = [note.operation for note in rig.notes(OperationRefused)]
    assert noted == ["adopting" if part == "missing.on_adopted" else "asking about a held entry"]
    rig.answer_all()
    assert b"1001-0" not in rig.q.pending
    rig.pass_time(RENEW + 1)
    assert rig.q.pending[b"1001-0"].owner == ME


def test_a_task_that_ended_meanwhile_is_passed_over() -> None:
    rig = asked(task("t1"), task("t2"))
    rig.succeed("t1")
    rig.answer()
    adoptions = commands_named(rig.batch(), b"XCLAIM")
    assert [command[5] for command in adoptions if command[4] == LEASE] == [b"1002-0"]


def test_a_task_that_ended_before_the_adoption_is_answered_is_settled_all_the_same() -> None:
    rig = asked()
    rig.answer()
    rig.succeed("t1")
    rig.answer_all()
    assert rig.machine.tasks.by_id == {}
    assert rig.q.bodies == {}
    assert rig.q.pending == {}


def test_a_hundred_are_asked_about_at_once_and_the_others_next() -> None:
    tasks = [task(f"t{at}") for at in range(120)]
    rig = asked(*tasks, concurrency=120)
    assert len([name for name in rig.purposes() if name == "missing.on_answer"]) == 100
    rig.answer()
    assert len([name for name in rig.purposes() if name == "missing.on_answer"]) == 20
    rig.answer_all()
    assert len(rig.q.pending) == 120


def test_a_newer_look_replaces_what_is_still_to_be_asked() -> None:
    rig = Rig("a", "b", concurrency=5)
    rig.open()
    missing = rig.machine.missing
    missing.ask(0, [b"1-0"])
    missing.ask(1, [b"2-0"])
    missing.ask(0, [b"3-0"])
    assert missing.to_ask == [(1, b"2-0"), (0, b"3-0")]
    missing.ask(0, [])
    assert missing.to_ask == [(1, b"2-0")]


@pytest.mark.parametrize(
    "reply", [None, b"?", 5, [], [None], [[b"name"]], [[5, b"x"]], [[b"name", b"other"]]], ids=repr
)
def test_without_a_known_group_nothing_was_delivered(reply: RawReply) -> None:
    assert last_delivered(reply) == b"0-0"
    rig = asked()
    rig.answer({"missing.on_answer": But({2: reply})})
    assert "missing.on_adopted" not in rig.purposes()


@pytest.mark.parametrize(
    ("entry_id", "parts"),
    [(b"5-3", (5, 3)), (b"10-0", (10, 0)), (b"0-0", (0, 0)), (b"", (0, 0)), (b"7", (0, 0)), (b"a-1", (0, 0))],
)
def test_ids_compare_as_numbers(entry_id: bytes, parts: tuple[int, int]) -> None:
    assert id_parts(entry_id) == parts


def test_a_held_task_that_another_has_is_forgotten() -> None:
    rig = asked(task("t1"), task("t2"), concurrency=1)
    rig.q.pending[b"1002-0"] = Row(OTHER, 0)
    rig.q.pending[b"1001-0"] = Row(ME, 0)
    rig.answer_all()
    assert list(rig.machine.tasks.by_id) == [(0, b"1001-0")]
    rig.succeed("t1")
    assert rig.started() == []
