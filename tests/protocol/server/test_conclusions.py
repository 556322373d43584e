"""Retry, expiry, dead letter, hand-back: asked first, then put in the entry's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamfleet_protocol.commands import Command
from streamfleet_protocol.effects import Disconnect, Faulted, Lane
from streamfleet_protocol.inputs import HandlerFailed, Several
from streamfleet_protocol.members import unpack_member
from streamfleet_protocol.notes import (
    Note,
    OperationRefused,
    TaskDeadLettered,
    TaskHandedBack,
    TaskHasExpired,
    TaskReleased,
    TaskRetried,
)
from streamfleet_protocol.replies import RawReply
from streamfleet_protocol.server.conclusions import Need, need_of
from streamfleet_protocol.server.lifecycle import TaskState
from streamfleet_protocol.server.tasks import Conclusion, EndKind
from streamfleet_protocol.wire import decode_notification, decode_task
from tests.protocol.server.support import (
    ABORTED,
    ME,
    OTHER,
    REDIS_START,
    RENEW,
    But,
    Rig,
    commands_named,
    error,
    refusal,
    task,
)

RECEIVER = b"streamfleet:receiver:c1"
KINDS = ["retry later", "retry now", "expired", "dead", "hand back"]
WITH_SUCCESSOR = [kind for kind in KINDS if kind != "expired"]
WORD = {"expired": "expired", "dead": "error"}
NOTE: dict[str, type[Note]] = {
    "retry later": TaskRetried,
    "retry now": TaskRetried,
    "expired": TaskHasExpired,
    "dead": TaskDeadLettered,
    "hand back": TaskHandedBack,
}


def fields_for(kind: str, task_id: str = "t1", **more: Any) -> tuple[bytes, ...]:
    """A task that will end so."""
    chosen: dict[str, Any] = {"retry_delay_ms": 0 if kind == "retry now" else 1000, "send_notif": True}
    if kind == "dead":
        chosen["no_retry"] = True
    if kind == "expired":
        chosen["expires_ts"] = REDIS_START
    return task(task_id, **{**chosen, **more})


def end(rig: Rig, kind: str, task_id: str = "t1") -> None:
    """Let a running task end so."""
    if kind == "hand back":
        rig.close(0)
        rig.stop(task_id)
    elif kind != "expired":
        rig.fail(task_id, "ValueError: no")


def asked(kind: str, fields: tuple[bytes, ...] | None = None, **changes: Any) -> Rig:
    """One task ends so; the question is in flight."""
    rig = Rig(**{"concurrency": 5, "prefetch": 0, **changes})
    rig.open()
    rig.deliver(fields or fields_for(kind))
    end(rig, kind)
    rig.until("conclusions.on_answer")
    return rig


def replacing(kind: str, fields: tuple[bytes, ...] | None = None, **changes: Any) -> Rig:
    """One task ends so; the transaction that replaces it is in flight."""
    rig = asked(kind, fields, **changes)
    rig.answer()
    assert rig.purposes()[0] == "conclusions.on_replaced"
    return rig


def elements(rig: Rig) -> list[Command]:
    """What the transaction in flight carries out."""
    return list(rig.section("conclusions.on_replaced")[1:-1])


def successor_of(kind: str, rig: Rig) -> list[tuple[bytes, ...]]:
    """The fields of all successors there are."""
    if kind == "retry later":
        return [unpack_member(member) for member in rig.q.delayed]
    return list((rig.q.dead if kind == "dead" else rig.q.bodies).values())


# --- The question -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_asks_for_the_entry_its_owner_and_the_key_of_the_successor(kind: str) -> None:
    rig = asked(kind)
    keys = rig.q.keys
    question = [
        (b"WATCH", keys.fence),
        (b"XRANGE", keys.stream, b"1001-0", b"1001-0"),
        (b"XPENDING", keys.stream, b"streamfleet-server", b"1001-0", b"1001-0", 1),
    ]
    question += {"retry later": [(b"ZCARD", keys.delayed)], "dead": [(b"XLEN", keys.dead)]}.get(kind, [])
    assert list(rig.section("conclusions.on_answer")) == question
    assert rig.purposes()[-1] == "conclusions.on_answer"


@pytest.mark.parametrize(
    ("conclusion", "need"),
    [
        (Conclusion(EndKind.RETRY, "", 0), Need.STREAM),
        (Conclusion(EndKind.RETRY, "", 1), Need.DELAYED),
        (Conclusion(EndKind.DEAD), Need.DEAD),
        (Conclusion(EndKind.EXPIRED), Need.STREAM),
        (Conclusion(EndKind.HAND_BACK), Need.STREAM),
    ],
)
def test_the_key_that_must_be_right(conclusion: Conclusion, need: Need) -> None:
    assert need_of(conclusion) is need


# --- The replacement --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_replacement_is_one_transaction(kind: str) -> None:
    rig = replacing(kind)
    names = [command[0] for command in elements(rig)]
    successor = {"retry later": [b"ZADD"], "expired": []}.get(kind, [b"XADD"])
    word = [b"XADD"] if kind in WORD else []
    assert names == [*successor, b"XACK", b"XDEL", *word]
    rig.answer()
    assert b"1001-0" not in rig.q.bodies
    assert b"1001-0" not in rig.q.pending
    assert rig.machine.tasks.by_id == {}
    assert len(rig.notes(NOTE[kind])) == 1
    assert [decode_notification(fields).type.value for _, fields in rig.facts.words] == (
        [WORD[kind]] if kind in WORD else []
    )
    assert len(successor_of(kind, rig)) == (kind != "expired")


def test_a_retry_later_is_in_the_delayed_set_by_the_clock_of_redis() -> None:
    rig = replacing("retry later", task("t1", retry_delay_ms=8000, retries=3))
    delay = rig.held(b"1001-0").conclusion
    assert delay is not None
    (add, *_) = elements(rig)
    assert add[:3] == (b"ZADD", rig.q.keys.delayed, rig.facts.redis_ms + delay.delay_ms)
    assert isinstance(add[3], bytes)
    copy = decode_task(unpack_member(add[3]))
    assert (copy.task_id, copy.retries) == ("t1", 4)
    # It is looked for when it is due.
    assert rig.machine.promotion.delayed[0].look_at <= rig.now + delay.delay_ms


def test_a_retry_at_once_goes_to_the_end_of_the_stream() -> None:
    rig = replacing("retry now", task("t1", retry_delay_ms=0, retries=3))
    (add, *_) = elements(rig)
    assert add[:3] == (b"XADD", rig.q.keys.stream, b"*")
    copy = decode_task(add[3:])
    assert (copy.task_id, copy.retries) == ("t1", 4)
    rig.answer()
    (note,) = rig.notes(TaskRetried)
    assert (note.attempt, note.delay_ms, note.reason) == (4, 0, "ValueError: no")


def test_a_copy_keeps_the_fields_that_nobody_here_knows() -> None:
    fields = (*task("t1", retry_delay_ms=0), b"trace", b"\x00\x01", b"trace", b"again")
    rig = replacing("retry now", fields)
    assert elements(rig)[0][-4:] == (b"trace", b"\x00\x01", b"trace", b"again")


def test_a_task_that_is_handed_back_is_unchanged_and_nobody_is_told() -> None:
    fields = (*fields_for("hand back", retries=2), b"more", b"1")
    rig = replacing("hand back", fields)
    assert elements(rig)[0] == (b"XADD", rig.q.keys.stream, b"*", *fields)
    rig.answer()
    assert rig.facts.words == []
    assert rig.machine.conclusions.handed_back == 1


def test_a_dead_letter_says_why_which_by_whom_and_when() -> None:
    rig = replacing("dead")
    (add, *_, word) = elements(rig)
    assert add[:3] == (b"XADD", rig.q.keys.dead, b"*")
    fields = fields_for("dead")
    assert add[3 : 3 + len(fields)] == fields
    assert add[3 + len(fields) :] == (
        b"dead_reason",
        b"ValueError: no",
        b"dead_entry",
        b"1001-0",
        b"dead_consumer",
        ME,
        b"dead_deliveries",
        b"1",
        b"dead_ts",
        b"%d" % rig.facts.redis_ms,
    )
    assert word[:4] == (b"XADD", RECEIVER, b"NOMKSTREAM", b"*")
    rig.answer()
    assert [decode_notification(fields).error for _, fields in rig.facts.words] == ["ValueError: no"]


def test_dead_letters_may_be_trimmed() -> None:
    rig = replacing("dead", dead_letters_max=50)
    assert elements(rig)[0][:6] == (b"XADD", rig.q.keys.dead, b"MAXLEN", b"~", 50, b"*")


def test_a_long_reason_is_cut() -> None:
    rig = Rig()
    rig.open()
    rig.deliver(fields_for("dead"))
    rig.fail("t1", "x" * 10_000)
    rig.answer_all()
    (letter,) = rig.q.dead.values()
    assert len(letter[letter.index(b"dead_reason") + 1]) == 4096


@pytest.mark.parametrize("kind", ["expired", "dead"])
def test_nobody_is_told_who_does_not_track(kind: str) -> None:
    rig = replacing(kind, fields_for(kind, send_notif=False))
    rig.answer()
    assert rig.facts.words == []


def test_what_is_no_task_has_nobody_to_tell() -> None:
    rig = Rig()
    rig.open()
    rig.bring((b"send_notif", b"1", b"client_id", b"c1"))
    assert rig.facts.words == []
    assert len(rig.q.dead) == 1


# --- Not ours ---------------------------------------------------------------------------------------------


def anothers(rig: Rig) -> None:
    rig.q.pending[b"1001-0"].owner = OTHER


def nowhere(rig: Rig) -> None:
    del rig.q.pending[b"1001-0"], rig.q.bodies[b"1001-0"]


def orphaned(rig: Rig) -> None:
    """In no list, but in the stream: the sweep of anybody finds it."""
    del rig.q.pending[b"1001-0"]


def ghost(rig: Rig) -> None:
    del rig.q.bodies[b"1001-0"]


@pytest.mark.parametrize("why", [anothers, nowhere, orphaned, ghost])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_ours_is_let_go(kind: str, why: Callable[[Rig], None]) -> None:
    rig = asked(kind)
    why(rig)
    rig.facts.executed.clear()
    rig.answer()
    assert rig.machine.tasks.by_id == {}
    assert "conclusions.on_replaced" not in rig.purposes()
    assert [note.task_id for note in rig.notes(TaskReleased)] == ["t1"]
    rig.answer_all()
    written = [command[0] for command in rig.facts.executed if command[0] in (b"XADD", b"ZADD", b"XACK", b"XDEL")]
    # A pending id without an entry is taken out.
    assert written == ([b"XACK"] if why is ghost else [])
    assert rig.facts.words == []


@pytest.mark.parametrize("reply", [None, b"?", 5, [None], [[b"1001-0", None]]], ids=repr)
@pytest.mark.parametrize("at", [1, 2])
def test_a_question_answered_with_garbage_changes_nothing(at: int, reply: RawReply) -> None:
    rig = asked("retry later")
    rig.facts.executed.clear()
    rig.answer({"conclusions.on_answer": But({at: reply})})
    assert not commands_named(rig.facts.executed, b"ZADD")
    assert rig.machine.tasks.by_id == {}
    # Where it was mine all the same, a later look finds it, and it is tried again.
    if at == 2:
        rig.pass_time(3 * RENEW)
        assert rig.started() == ["t1", "t1"]


def test_of_many_those_that_are_ours_are_replaced() -> None:
    rig = Rig(concurrency=10, prefetch=0)
    rig.open()
    rig.bring(*[task(f"t{at}", retry_delay_ms=1000) for at in range(5)])
    rig.feed(Several(tuple(HandlerFailed(rig.run_of(f"t{at}"), "no") for at in range(5))))
    assert len(commands_named(rig.section("conclusions.on_answer"), b"XRANGE")) == 5
    rig.q.pending[b"1001-0"].owner = OTHER
    del rig.q.bodies[b"1003-0"]
    rig.answer()
    assert [command[3] for command in commands_named(elements(rig), b"XACK")] == [b"1002-0", b"1004-0", b"1005-0"]
    rig.answer_all()
    assert sorted(decode_task(unpack_member(member)).task_id for member in rig.q.delayed) == ["t1", "t3", "t4"]


# --- Outcomes of the question -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["LOADING no", "BUSY no", "OOM no", "ERR strange"])
@pytest.mark.parametrize("part", ["conclusions.on_answer", "conclusions.on_replaced"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_is_asked_again_with_backoff(kind: str, part: str, text: str) -> None:
    rig = (asked if part == "conclusions.on_answer" else replacing)(kind)
    refused = rig.now
    rig.answer({part: refusal(text)})
    assert rig.held(b"1001-0").state is TaskState.CONCLUDING
    assert "ending a task" in [note.operation for note in rig.notes(OperationRefused)]
    rig.until("conclusions.on_answer")
    assert refused < rig.now <= refused + 50
    rig.answer_all()
    assert rig.machine.tasks.by_id == {}
    assert len(successor_of(kind, rig)) == (kind != "expired")


@pytest.mark.parametrize("part", ["conclusions.on_answer", "conclusions.on_replaced"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_asked_again_on_the_next_connection(kind: str, part: str) -> None:
    rig = (asked if part == "conclusions.on_answer" else replacing)(kind)
    rig.lose()
    assert rig.held(b"1001-0").state is TaskState.CONCLUDING
    rig.reconnect()
    rig.answer_all()
    assert rig.machine.tasks.by_id == {}
    assert len(successor_of(kind, rig)) == (kind != "expired")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_answer_to_a_replacement_makes_no_second_successor(kind: str) -> None:
    rig = replacing(kind)
    rig.replies()  # carried out
    rig.lose()
    rig.reconnect()
    rig.answer_all()
    assert rig.machine.tasks.by_id == {}
    assert len(successor_of(kind, rig)) == (kind != "expired")
    assert len(rig.facts.words) == (kind in WORD)


@pytest.mark.parametrize("kind", KINDS)
def test_an_aborted_replacement_is_asked_again_at_once(kind: str) -> None:
    rig = replacing(kind)
    rig.answer({"conclusions.on_replaced": ABORTED})
    assert rig.purposes()[-1] == "conclusions.on_answer"
    rig.answer_all()
    assert rig.machine.tasks.by_id == {}
    assert len(successor_of(kind, rig)) == (kind != "expired")


@pytest.mark.parametrize("part", ["conclusions.on_answer", "conclusions.on_replaced"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_waiting_does_not_cure_stops_the_server_and_the_entry_stays_pending(kind: str, part: str) -> None:
    rig = (asked if part == "conclusions.on_answer" else replacing)(kind)
    rig.answer({part: refusal("NOPERM no")})
    assert [fault.error.code for fault in rig.of(Faulted)] == ["NOPERM"]
    assert rig.held(b"1001-0").state is TaskState.CONCLUDING
    assert rig.q.pending[b"1001-0"].owner == ME


def test_a_replica_is_left_and_the_entry_ended_elsewhere() -> None:
    rig = replacing("dead")
    rig.answer({"conclusions.on_replaced": refusal("READONLY no")})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]
    rig.pass_time(1000)
    assert len(rig.q.dead) == 1


def test_a_replacement_that_could_not_be_written_is_asked_again() -> None:
    """The answer to the question said yes, and another answer of the same batch that the server is a replica now."""
    rig = Rig(concurrency=2, prefetch=2)
    rig.open()
    rig.bring(task("good"), task("bad", retry_delay_ms=100_000))
    rig.until("leases.on_look")
    rig.succeed("good")
    rig.fail("bad")
    rig.answer()
    assert {"settlement.on_plain", "conclusions.on_answer"} <= set(rig.purposes())
    rig.answer({"settlement.on_plain": refusal("READONLY no")})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]
    assert not rig.in_flight()
    rig.pass_time(1000)
    assert rig.machine.tasks.by_id == {}
    assert [decode_task(unpack_member(member)).task_id for member in rig.q.delayed] == ["bad"]


def test_nothing_is_asked_before_the_fence_is_bumped() -> None:
    rig = Rig()
    rig.open()
    rig.bring(task("t1"))
    rig.lose()
    rig.fail()
    rig.reconnect()
    rig.answer({"setup.on_group": But({1: 0})})
    rig.answer({"setup.on_fence": refusal("OOM no")})
    assert "conclusions.on_answer" not in rig.purposes()
    rig.until("conclusions.on_answer")
    assert rig.machine.setup.is_fenced(0)


# --- Elements of the transaction --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_SUCCESSOR)
def test_a_success_that_came_in_between_wins(kind: str) -> None:
    """XDEL answered 0: another has completed the task. The successor is taken out again."""
    rig = replacing(kind)
    at = [command[0] for command in elements(rig)].index(b"XDEL")
    rig.q.bodies.pop(b"1001-0")
    rig.answer({"conclusions.on_replaced": But({at: 0})})
    assert rig.machine.tasks.by_id == {}
    removal = b"ZREM" if kind == "retry later" else b"XDEL"
    assert [command[0] for command in rig.section("conclusions.on_repaired")] == [removal]
    rig.answer_all()
    assert successor_of(kind, rig) == []
    assert rig.notes(NOTE[kind]) == []
    assert [note.reason for note in rig.notes(TaskReleased)] == ["a success came in between"]


def test_an_expiry_that_a_success_forestalled_has_nothing_to_take_out() -> None:
    rig = replacing("expired")
    rig.q.bodies.pop(b"1001-0")
    rig.answer()
    assert rig.machine.tasks.by_id == {}
    assert not rig.in_flight()
    assert rig.notes(TaskHasExpired) == []


@pytest.mark.parametrize("text", ["WRONGTYPE no", "ERR strange"])
@pytest.mark.parametrize("kind", WITH_SUCCESSOR)
def test_a_successor_that_could_not_be_written_is_put_back(kind: str, text: str) -> None:
    """The key changed its type within one round trip. The entry is gone, and its body still in hand."""
    rig = replacing(kind)
    rig.answer({"conclusions.on_replaced": But({0: error(text)})})
    assert rig.machine.tasks.by_id == {}
    rig.answer_all()
    (body,) = rig.q.bodies.values()
    assert decode_task(body).task_id == "t1"
    assert decode_task(body).retries == (1 if kind.startswith("retry") else 0)
    assert any(text == note.reason for note in rig.notes(OperationRefused))


def test_where_the_entry_was_gone_already_nothing_is_put_back() -> None:
    rig = replacing("dead")
    rig.q.bodies.pop(b"1001-0")
    rig.answer({"conclusions.on_replaced": But({0: error("WRONGTYPE no")})})
    rig.answer_all()
    assert rig.q.bodies == {}
    assert rig.machine.tasks.by_id == {}


@pytest.mark.parametrize("kind", ["expired", "dead"])
def test_a_word_that_could_not_be_written_is_only_that_word(kind: str) -> None:
    rig = replacing(kind)
    rig.answer({"conclusions.on_replaced": But({len(elements(rig)) - 1: error("WRONGTYPE no stream")})})
    assert rig.machine.tasks.by_id == {}
    assert rig.of(Faulted) == []
    assert len(rig.notes(NOTE[kind])) == 1


@pytest.mark.parametrize("reply", [None, b"?", error("WRONGTYPE no"), []], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_strange_element_for_the_entry_ends_it_all_the_same(kind: str, reply: RawReply) -> None:
    rig = replacing(kind)
    at = [command[0] for command in elements(rig)].index(b"XDEL")
    rig.answer({"conclusions.on_replaced": But({at: reply})})
    assert rig.machine.tasks.by_id == {}


@pytest.mark.parametrize("reply", [None, 7], ids=str)
def test_a_successor_without_an_id_cannot_be_taken_out(reply: RawReply) -> None:
    rig = replacing("hand back")
    rig.answer({"conclusions.on_replaced": But({0: reply, 2: 0})})
    assert rig.machine.tasks.by_id == {}
    assert "conclusions.on_repaired" not in rig.purposes()


# --- Repairs ----------------------------------------------------------------------------------------------


def repairing() -> Rig:
    rig = replacing("retry later")
    rig.answer({"conclusions.on_replaced": But({0: error("WRONGTYPE no")})})
    assert rig.purposes()[0] == "conclusions.on_repaired"
    return rig


@pytest.mark.parametrize("text", ["OOM no", "LOADING no"])
def test_a_repair_is_repeated_until_it_is_done(text: str) -> None:
    rig = repairing()
    for _ in range(5):
        before = rig.now
        rig.answer({"conclusions.on_repaired": refusal(text)})
        rig.until("conclusions.on_repaired")
        assert rig.now > before
    rig.answer_all()
    assert len(rig.q.bodies) == 1
    assert rig.machine.conclusions.repairing == 0
    assert rig.machine.conclusions.repair_backoff.attempts == 0


def test_a_repair_without_an_answer_is_repeated_on_the_next_connection() -> None:
    rig = repairing()
    rig.lose()
    rig.reconnect()
    assert "conclusions.on_repaired" in rig.purposes()
    rig.answer_all()
    assert len(rig.q.bodies) == 1


def test_a_server_does_not_end_before_its_repairs() -> None:
    rig = Rig()
    rig.open()
    rig.deliver(fields_for("hand back"))
    rig.close(0)
    rig.stop("t1")
    rig.until("conclusions.on_replaced")
    rig.answer({"conclusions.on_replaced": But({0: error("ERR strange")})})
    rig.until("conclusions.on_repaired")
    rig.answer({"conclusions.on_repaired": refusal("LOADING no")})
    rig.pass_time(20_000)
    assert list(rig.q.bodies.values()) == [fields_for("hand back")]


def test_a_repair_that_cannot_be_done_stops_the_server() -> None:
    rig = repairing()
    rig.answer({"conclusions.on_repaired": refusal("WRONGTYPE no stream")})
    assert len(rig.of(Faulted)) == 1


# --- A key of a wrong type --------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "at"), [("retry later", 3), ("dead", 3)])
def test_a_successors_key_of_a_wrong_type_keeps_the_entry_pending(kind: str, at: int) -> None:
    rig = asked(kind, fields_for(kind, retry_delay_ms=1_000_000))
    wrong = {"conclusions.on_answer": refusal("WRONGTYPE no", at)}
    began = rig.now
    asked_at = []
    while rig.now < began + 60_000:
        rig.until("conclusions.on_answer")
        asked_at.append(rig.now)
        rig.answer(wrong)
    assert rig.of(Faulted) == []
    assert rig.q.pending[b"1001-0"].owner == ME
    assert rig.q.bodies[b"1001-0"]
    assert 60_000 / 5000 <= len(asked_at) <= 60_000 / 2500 + 10
    key = {"retry later": "delayed", "dead": "dead"}[kind]
    assert f"writing to {key} of 'q'" in {note.operation for note in rig.notes(OperationRefused)}
    # Others go on meanwhile, and it heals.
    rig.bring(task("t2"))
    rig.succeed("t2")
    rig.pass_time(10_000)
    assert rig.machine.tasks.by_id == {}
    assert len(successor_of(kind, rig)) == 1


def test_other_endings_go_on_meanwhile() -> None:
    rig = asked("dead")
    rig.answer({"conclusions.on_answer": refusal("WRONGTYPE no", 3)})
    rig.bring(task("t2", retry_delay_ms=1000))
    rig.fail("t2")
    rig.answer_all(
        {"conclusions.on_answer": lambda s: refusal("WRONGTYPE no", 3) if s.context[1] is Need.DEAD else None}
    )
    assert len(rig.q.delayed) == 1
    assert list(rig.machine.tasks.by_id) == [(0, b"1001-0")]


@pytest.mark.parametrize("kind", ["retry now", "hand back", "expired"])
def test_a_stream_of_a_wrong_type_stops_the_server(kind: str) -> None:
    rig = asked(kind)
    rig.answer({"conclusions.on_answer": refusal("WRONGTYPE no")})
    assert len(rig.of(Faulted)) == 1


# --- Bounds and turns -------------------------------------------------------------------------------------


def test_a_question_is_bounded_in_tasks_and_bytes() -> None:
    for changes, data, sizes in (({"batch": 2}, b"", [2, 2, 1]), ({"batch_bytes": 1000}, b"x" * 500, [2, 2, 1])):
        rig = Rig(**{"concurrency": 10, "prefetch": 0, **changes})
        rig.open()
        rig.bring(*[task(f"t{at}", retry_delay_ms=1000, data=data) for at in range(5)])
        rig.feed(Several(tuple(HandlerFailed(rig.run_of(f"t{at}"), "no") for at in range(5))))
        found = []
        while rig.machine.tasks.by_id:
            if "conclusions.on_answer" in rig.purposes():
                found.append(len(commands_named(rig.section("conclusions.on_answer"), b"XRANGE")))
            rig.answer()
        assert found == sizes


def failing_without_end(rig: Rig, rounds: int) -> list[tuple[str, ...]]:
    """In each round a task of the first queue fails, so that its conclusion has always something to ask."""
    seen = []
    for at in range(rounds):
        if rig.in_flight(Lane.READ):
            rig.deliver(task(f"x{at}", retry_delay_ms=1000))
            rig.fail(f"x{at}")
        seen.append(rig.purposes())
        rig.answer()
    return seen


def test_a_constant_flow_of_one_ending_keeps_no_other_waiting() -> None:
    rig = Rig("a", "b", concurrency=5, prefetch=0)
    rig.open()
    rig.bring(fields_for("dead"), task("t2"))
    rig.bring(fields_for("dead", "t3"), queue=1)
    failing_without_end(rig, 5)
    rig.fail("t1")
    rig.fail("t3")
    failing_without_end(rig, 12)
    assert len(rig.queue(0).dead) == 1
    assert len(rig.queue(1).dead) == 1


def test_a_constant_flow_of_endings_keeps_promotions_and_claims_going() -> None:
    rig = Rig(concurrency=5, prefetch=0, block_ms=10**9)
    rig.pend(b"5-0")
    rig.open()
    rig.q.delayed[b"damaged"] = rig.facts.redis_ms + 61_000
    rig.pass_time(62_000 - rig.settings.renew_interval_ms)
    rig.wait(rig.settings.renew_interval_ms)
    seen = [name for purposes in failing_without_end(rig, 40) for name in purposes]
    assert "reclaim.on_question" in seen
    assert "promotion.on_answer" in seen
    assert seen.count("conclusions.on_answer") > 10
