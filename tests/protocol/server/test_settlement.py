"""Settling successes: what is sent, and what each answer leads to."""

from __future__ import annotations

import pytest

from streamfleet_protocol.effects import Disconnect, Faulted, Lane
from streamfleet_protocol.notes import OperationRefused
from streamfleet_protocol.wire import decode_notification
from tests.protocol.server.support import (
    ABORTED,
    OTHER,
    RENEW,
    Answer,
    But,
    Rig,
    commands_named,
    error,
    refusal,
    task,
)


def rig_with(*tasks: tuple[bytes, ...], queue: int = 0, **changes: object) -> Rig:
    """These run."""
    rig = Rig(**{"concurrency": 10, "prefetch": 0, **changes})
    rig.open()
    rig.deliver(*tasks, queue=queue)
    rig.answer_all()
    return rig


def done(rig: Rig) -> bool:
    """Nothing is left anywhere."""
    return rig.machine.tasks.by_id == {} and rig.q.bodies == {} and rig.q.pending == {}


# --- Nobody is told ---------------------------------------------------------------------------------------


def test_plain_xdel_then_xack() -> None:
    """In this order, and in no MULTI: a full server accepts both, and there is no bad state in between."""
    rig = rig_with(task("t1"))
    rig.succeed("t1", b"a result for nobody")
    assert rig.section("settlement.on_plain") == (
        (b"XDEL", rig.q.keys.stream, b"1001-0"),
        (b"XACK", rig.q.keys.stream, b"streamfleet-server", b"1001-0"),
    )
    rig.answer_all()
    assert done(rig)


def test_what_ends_while_a_batch_is_in_flight_goes_together() -> None:
    rig = rig_with(*[task(f"t{at}") for at in range(4)])
    for at in range(4):
        rig.succeed(f"t{at}")
    assert rig.section("settlement.on_plain")[0][2:] == (b"1001-0",)
    rig.answer()
    assert rig.section("settlement.on_plain")[0][2:] == (b"1002-0", b"1003-0", b"1004-0")


def test_a_batch_is_bounded() -> None:
    rig = rig_with(*[task(f"t{at}") for at in range(8)], batch=3)
    for at in range(8):
        rig.succeed(f"t{at}")
    sizes = []
    while rig.in_flight():
        sizes.append(len(rig.section("settlement.on_plain")[0]) - 2)
        rig.answer()
    assert sizes == [1, 3, 3, 1]
    assert done(rig)


def test_queues_are_settled_side_by_side() -> None:
    rig = Rig("a", "b", concurrency=10, prefetch=0)
    rig.open()
    rig.bring(task("t1"))
    rig.bring(task("t2"), queue=1)
    rig.until("leases.on_look")
    rig.succeed("t1")
    rig.succeed("t2")
    rig.answer()
    assert rig.purposes().count("settlement.on_plain") == 2
    assert len({command[1] for command in commands_named(rig.batch(), b"XDEL")}) == 2


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("text", ["LOADING no", "BUSY no", "MISCONF no", "NOREPLICAS no", "OOM no", "ERR strange"])
def test_a_refusal_is_repeated_with_backoff(text: str, at: int) -> None:
    rig = rig_with(task("t1"))
    rig.succeed()
    rig.answer({"settlement.on_plain": refusal(text, at)})
    assert not rig.in_flight()
    assert [note.operation for note in rig.notes(OperationRefused)] == ["settling"]
    due = rig.machine.next_timeout()
    assert due is not None
    assert rig.now < due <= rig.now + 50
    rig.until("settlement.on_plain")
    assert rig.section("settlement.on_plain")[0][2:] == (b"1001-0",)
    rig.answer()
    assert rig.machine.tasks.by_id == {}
    assert rig.machine.settlement.successes[0].plain_backoff.attempts == 0


def test_no_answer_is_repeated_on_the_next_connection() -> None:
    rig = rig_with(task("t1"))
    rig.succeed()
    rig.replies()  # carried out
    rig.lose()
    assert rig.machine.tasks.by_id
    rig.reconnect()
    assert "settlement.on_plain" in rig.purposes()
    rig.answer_all()
    assert done(rig)


def test_a_server_that_is_a_replica_now_is_left() -> None:
    rig = rig_with(task("t1"))
    rig.succeed()
    rig.answer({"settlement.on_plain": refusal("READONLY no")})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]
    rig.pass_time(1000)
    assert done(rig)


@pytest.mark.parametrize("text", ["NOPERM no XDEL", "WRONGTYPE no stream"])
def test_what_waiting_does_not_cure_stops_the_server(text: str) -> None:
    rig = rig_with(task("t1"))
    rig.succeed()
    rig.answer({"settlement.on_plain": refusal(text)})
    assert [fault.error.text for fault in rig.of(Faulted)] == [text]


def test_a_success_after_the_lease_was_lost_wins() -> None:
    rig = rig_with(task("t1"))
    rig.q.pending[b"1001-0"].owner = OTHER
    rig.pass_time(RENEW + 1)
    rig.succeed()
    rig.answer_all()
    assert done(rig)


# --- A client waits ---------------------------------------------------------------------------------------


def words(rig: Rig) -> list[tuple[bytes, str, bytes | None]]:
    """(receiver, task id, result) of each notification."""
    decoded = [(key, decode_notification(fields)) for key, fields in rig.facts.words]
    assert {word.type.value for _, word in decoded} <= {"completed"}
    return [(key, word.task_id, word.result) for key, word in decoded]


def test_a_tracked_success_and_its_word_are_one_transaction() -> None:
    rig = rig_with(task("t1", send_notif=True, client_id="c1"))
    rig.succeed("t1", b"\x00result")
    section = rig.section("settlement.on_tracked")
    assert [command[0] for command in section] == [b"MULTI", b"XDEL", b"XACK", b"XADD", b"EXEC"]
    assert section[3][:4] == (b"XADD", b"streamfleet:receiver:c1", b"NOMKSTREAM", b"*")
    rig.answer_all()
    assert done(rig)
    assert words(rig) == [(b"streamfleet:receiver:c1", "t1", b"\x00result")]


def test_many_of_them_are_one_transaction_too() -> None:
    rig = rig_with(*[task(f"t{at}", send_notif=True, client_id=f"c{at}") for at in range(4)])
    rig.until("leases.on_look")
    for at in range(4):
        rig.succeed(f"t{at}")
    rig.answer()
    section = rig.section("settlement.on_tracked")
    assert len(commands_named(section, b"XDEL")) == 1
    assert len(commands_named(section, b"XADD")) == 4
    rig.answer_all()
    assert sorted(words(rig)) == [(b"streamfleet:receiver:c%d" % at, f"t{at}", None) for at in range(4)]


def test_tracked_and_others_are_settled_side_by_side() -> None:
    rig = rig_with(task("t1", send_notif=True), task("t2"))
    rig.until("leases.on_look")
    rig.succeed("t1")
    rig.succeed("t2")
    rig.answer()
    assert {"settlement.on_plain", "settlement.on_tracked"} <= set(rig.purposes())


@pytest.mark.parametrize(("sizes", "parts"), [([600, 600, 600], [1, 1, 1]), ([300, 300, 900], [2, 1]), ([5000], [1])])
def test_a_transaction_is_bounded_in_bytes(sizes: list[int], parts: list[int]) -> None:
    rig = rig_with(*[task(f"t{at}", send_notif=True) for at in range(len(sizes))], batch_bytes=1000)
    rig.until("leases.on_look")
    for at, size in enumerate(sizes):
        rig.succeed(f"t{at}", b"x" * size)
    rig.answer()
    found = []
    while "settlement.on_tracked" in rig.purposes():
        found.append(len(commands_named(rig.section("settlement.on_tracked"), b"XADD")))
        rig.answer()
    assert found == parts
    assert done(rig)


def test_a_transaction_is_bounded_in_tasks() -> None:
    rig = rig_with(*[task(f"t{at}", send_notif=True) for at in range(5)], batch=2)
    rig.until("leases.on_look")
    for at in range(5):
        rig.succeed(f"t{at}")
    rig.answer()
    found = []
    while "settlement.on_tracked" in rig.purposes():
        found.append(len(commands_named(rig.section("settlement.on_tracked"), b"XADD")))
        rig.answer()
    assert found == [2, 2, 1]


@pytest.mark.parametrize("element", [error("WRONGTYPE no stream"), error("ERR strange"), None], ids=str)
def test_a_word_that_cannot_be_written_is_only_that_word(element: Answer) -> None:
    rig = rig_with(task("t1", send_notif=True), task("t2", send_notif=True, client_id="c2"))
    rig.until("leases.on_look")
    rig.succeed("t1")
    rig.succeed("t2")
    rig.answer()
    rig.answer({"settlement.on_tracked": But({2: element})})  # type: ignore[dict-item]
    assert rig.machine.tasks.by_id == {}
    assert rig.of(Faulted) == []
    told = [note.operation for note in rig.notes(OperationRefused)]
    assert told == (["notifying a client"] if element is not None else [])
    assert (b"streamfleet:receiver:c2", "t2", None) in words(rig)


@pytest.mark.parametrize("answer", [refusal("OOM no"), refusal("MISCONF no"), But({1: error("ERR strange")})])
def test_a_refused_transaction_is_repeated_with_backoff(answer: Answer) -> None:
    rig = rig_with(task("t1", send_notif=True))
    rig.succeed()
    rig.answer({"settlement.on_tracked": answer})
    assert not rig.in_flight()
    assert rig.machine.tasks.by_id
    due = rig.machine.next_timeout()
    assert due is not None
    assert rig.now < due <= rig.now + 50
    rig.pass_time(100)
    assert rig.machine.tasks.by_id == {}
    assert rig.machine.settlement.successes[0].tracked_backoff.attempts == 0


def test_others_are_settled_while_a_full_server_refuses_the_words() -> None:
    rig = rig_with(task("t1", send_notif=True), task("t2"))
    rig.succeed("t1")
    rig.answer({"settlement.on_tracked": refusal("OOM no")})
    rig.succeed("t2")
    assert rig.purposes() == ("settlement.on_plain",)
    rig.pass_time(10, {"settlement.on_tracked": refusal("OOM no")})
    assert list(rig.machine.tasks.by_id) == [(0, b"1001-0")]


def test_an_aborted_transaction_is_repeated_at_once() -> None:
    """A WATCH was left over from a question that led to nothing."""
    rig = rig_with(task("t1", send_notif=True))
    rig.succeed()
    rig.answer({"settlement.on_tracked": ABORTED})
    assert rig.purposes() == ("settlement.on_tracked",)
    assert rig.notes(OperationRefused) == []
    rig.answer()
    assert done(rig)


def test_a_transaction_without_an_answer_is_repeated() -> None:
    """The client drops a second word about the same task."""
    rig = rig_with(task("t1", send_notif=True))
    rig.succeed("t1", b"r")
    rig.replies()  # carried out
    rig.lose()
    rig.reconnect()
    rig.answer_all()
    assert done(rig)
    assert words(rig) == [(b"streamfleet:receiver:c1", "t1", b"r")] * 2


def test_the_order_is_kept_where_a_batch_is_repeated() -> None:
    rig = rig_with(*[task(f"t{at}", send_notif=at % 2 == 0) for at in range(6)], batch=2)
    rig.until("leases.on_look")
    for at in range(6):
        rig.succeed(f"t{at}")
    rig.answer()
    rig.answer({"settlement.on_plain": refusal("LOADING no"), "settlement.on_tracked": ABORTED})
    successes = rig.machine.settlement.successes[0]
    assert [held.task_id for held in successes.plain] == ["t1", "t3", "t5"]
    assert commands_named(rig.section("settlement.on_tracked"), b"XDEL")[0][2:] == (b"1001-0", b"1003-0")


@pytest.mark.parametrize("at", [0, 1])
def test_a_stream_of_a_wrong_type_stops_the_server(at: int) -> None:
    rig = rig_with(task("t1", send_notif=True))
    rig.succeed()
    rig.answer({"settlement.on_tracked": But({at: error("WRONGTYPE no stream")})})
    assert len(rig.of(Faulted)) == 1
    assert rig.machine.tasks.by_id
