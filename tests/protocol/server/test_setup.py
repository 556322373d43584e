"""Groups and fences: what must stand before a queue is served."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamfleet_protocol.commands import TEN_YEARS_MS
from streamfleet_protocol.effects import Disconnect, Faulted, Lane, ServerStopped
from streamfleet_protocol.inputs import StartServer
from streamfleet_protocol.link import LinkState, Section
from streamfleet_protocol.notes import DataLossSeen, OperationRefused, RiskySetting
from streamfleet_protocol.server.closing import Stage
from tests.protocol.server.support import (
    OTHER,
    REDIS_START,
    START,
    Answer,
    But,
    Refusal,
    Rig,
    Values,
    commands_named,
    error,
    purpose,
    refusal,
    task,
    values,
)

BUSYGROUP = error("BUSYGROUP Consumer Group name already exists")


def connected(*queues: str, **changes: object) -> Rig:
    """A server whose first batch is in flight."""
    rig = Rig(*queues, **changes)
    rig.start()
    rig.connect()
    return rig


def test_nothing_is_done_before_the_start() -> None:
    rig = Rig()
    assert rig.machine.next_timeout() is None
    assert rig.tick(1000) == []


def test_a_second_start_changes_nothing() -> None:
    rig = Rig()
    rig.start()
    assert rig.feed(StartServer()) == []


def test_a_connection_begins_with_the_group_and_the_bump_of_the_fence() -> None:
    rig = connected()
    assert rig.purposes()[:3] == ("setup.on_time", "setup.on_memory", "setup.on_group")
    assert not commands_named(rig.batch(), b"WATCH")
    assert not commands_named(rig.batch(), b"EXEC")
    keys = rig.q.keys
    assert rig.section("setup.on_group") == (
        (b"XGROUP", b"CREATE", keys.stream, b"streamfleet-server", b"0", b"MKSTREAM"),
        (b"PEXPIRE", keys.fence, TEN_YEARS_MS),
    )
    assert not rig.in_flight(Lane.READ)
    rig.answer()
    # The look comes before anything else, reads too.
    assert rig.purposes()[-1] == "leases.on_look"
    assert not rig.in_flight(Lane.READ)


def test_the_read_connection_is_opened_when_a_group_stands() -> None:
    rig = connected("a", "b")
    assert rig.machine.links[Lane.READ].state is LinkState.IDLE
    rig.answer({"setup.on_group": lambda section: refusal("LOADING") if section.context == 1 else None})
    assert rig.machine.setup.is_grouped(0)
    assert rig.machine.links[Lane.READ].state is LinkState.CONNECTING


def test_a_queue_whose_group_cannot_be_made_does_not_hold_up_the_others() -> None:
    """A new queue on a full server: the old ones must be drained, or it stays full."""
    rig = Rig("old", "new", concurrency=1, prefetch=3)
    rig.queue(1).grouped = rig.queue(1).fenced = False
    nogroup = error("NOGROUP No such key 'streamfleet:new' or consumer group 'streamfleet-server'")

    def refused(section: Section) -> Answer | None:
        if section.context == 1 and purpose(section) == "setup.on_group":
            return But({0: error("OOM command not allowed"), 1: 0})
        if purpose(section) == "setup.on_fence":
            return refusal("OOM command not allowed")
        if purpose(section) == "leases.on_look" and section.context.queue == 1:
            return Refusal(nogroup, 2)
        if purpose(section) == "intake.on_read" and rig.queue(1).keys.stream in section.commands[0]:
            return Refusal(nogroup)
        return None

    full: dict[str, Callable[[Section], Answer | None]] = dict.fromkeys(
        ("setup.on_group", "setup.on_fence", "leases.on_look", "intake.on_read"), refused
    )
    rig.start()
    rig.answer_all(full, most=1000)
    for at in range(5):
        rig.pass_time(1000, full)
        while b"streamfleet:new" in rig.batch(Lane.READ).commands[0] or not rig.in_flight(Lane.READ):
            rig.pass_time(50, full)
        rig.deliver(task(f"t{at}"))
        rig.succeed(f"t{at}")
    assert rig.started() == [f"t{at}" for at in range(5)]
    rig.pass_time(10_000)
    assert rig.blocked
    assert b"streamfleet:new" in rig.batch(Lane.READ).commands[0]


def test_a_group_that_is_made_is_no_loss_at_first() -> None:
    rig = connected()
    rig.q.grouped = False
    rig.answer()
    assert rig.machine.setup.complete
    assert rig.notes(DataLossSeen) == []


@pytest.mark.parametrize("lane", [Lane.READ, Lane.COMMAND])
def test_a_group_that_is_gone_is_made_again_and_told(lane: Lane) -> None:
    rig = Rig()
    rig.open()
    nogroup = refusal("NOGROUP No such key 'streamfleet:q' or consumer group 'streamfleet-server'")
    rig.q.grouped = False
    if lane is Lane.READ:
        rig.answer({"intake.on_read": nogroup}, Lane.READ)
    else:
        rig.pass_time(10_000 - 1)
        rig.tick(1)
        rig.answer({"leases.on_look": nogroup})
    assert not rig.machine.setup.complete
    assert any("work on 'q'" in note.operation for note in rig.notes(OperationRefused))
    rig.pass_time(100)
    assert rig.q.grouped
    assert [note.queue for note in rig.notes(DataLossSeen)] == ["q"]
    rig.pass_time(10_000)
    assert rig.machine.setup.complete
    assert rig.blocked


def test_a_group_that_another_has_made_again_is_not_told() -> None:
    rig = Rig()
    rig.open()
    rig.answer({"intake.on_read": refusal("NOGROUP no such 'streamfleet:q'")}, Lane.READ)
    rig.pass_time(100)
    assert rig.machine.setup.complete
    assert rig.notes(DataLossSeen) == []


def test_a_full_server_is_served_where_the_group_stands() -> None:
    """XGROUP CREATE is refused before BUSYGROUP can be seen; PEXPIRE passes."""
    rig = connected()
    rig.answer({"setup.on_group": But({0: error("OOM command not allowed")})})
    assert rig.machine.setup.is_grouped(0)
    assert rig.machine.setup.is_fenced(0)
    rig.answer_all()
    assert rig.blocked


def test_a_full_server_without_the_fence_is_read_all_the_same() -> None:
    rig = connected()
    rig.q.fenced = False
    rig.answer({"setup.on_group": But({0: error("OOM command not allowed")})})
    assert rig.machine.setup.is_grouped(0)
    assert not rig.machine.setup.is_fenced(0)
    refused = {"setup.on_fence": refusal("OOM command not allowed")}
    rig.answer_all(refused)
    assert rig.blocked
    rig.bring(task("t1", max_retries=3))
    assert rig.started() == ["t1"]
    # No guarded operation before the fence is there; a success needs none.
    rig.fail()
    rig.pass_time(30_000, refused)
    assert rig.machine.tasks.by_id
    rig.pass_time(10_000)
    assert rig.machine.setup.is_fenced(0)
    assert not rig.machine.tasks.by_id


def test_a_full_server_without_the_group_is_asked_again_and_again() -> None:
    rig = connected()
    oom = {"setup.on_group": But({0: error("OOM command not allowed")})}
    rig.answer(oom)
    nogroup = refusal("NOGROUP No such key 'streamfleet:q'")
    rig.answer_all({"intake.on_read": nogroup, "leases.on_look": nogroup, **oom}, most=1000)
    first = rig.now
    for _ in range(50):
        rig.pass_time(1000, {"intake.on_read": nogroup, "leases.on_look": nogroup, **oom})
    asked = sum(1 for command in rig.facts.executed if command[0] == b"XREADGROUP")
    assert asked <= (rig.now - first) / 1000 * 4
    rig.pass_time(10_000)
    assert rig.blocked


def test_a_missing_fence_is_made_and_touched() -> None:
    rig = connected()
    rig.q.fenced = False
    rig.answer()
    assert not rig.machine.setup.is_fenced(0)
    keys = rig.q.keys
    assert rig.section("setup.on_fence") == ((b"INCR", keys.fence), (b"PEXPIRE", keys.fence, TEN_YEARS_MS))
    rig.answer()
    assert rig.machine.setup.is_fenced(0)


@pytest.mark.parametrize(
    "answer",
    [refusal("OOM command not allowed"), refusal("OOM command not allowed", 1), refusal("ERR strange")],
    ids=["INCR refused", "PEXPIRE refused", "unknown error"],
)
def test_a_fence_that_cannot_be_made_is_tried_again(answer: Refusal) -> None:
    rig = connected()
    rig.q.fenced = False
    rig.answer()
    rig.answer({"setup.on_fence": answer})
    assert not rig.machine.setup.is_fenced(0)
    until = rig.machine.setup.states[0].backoff.until
    assert rig.now + 25 <= until <= rig.now + 50
    rig.pass_time(100)
    assert rig.machine.setup.is_fenced(0)
    assert rig.machine.setup.states[0].backoff.attempts == 0


def test_each_queue_has_a_backoff_of_its_own() -> None:
    rig = connected("a", "b", "c")
    rig.answer({"setup.on_group": refusal("LOADING")})
    untils = [state.backoff.until for state in rig.machine.setup.states]
    assert len(set(untils)) > 1
    rig.tick(min(untils) - rig.now)
    asked = [command[2] for command in commands_named(rig.batch(), b"XGROUP")]
    assert asked == [rig.queue(at).keys.stream for at in range(3) if untils[at] <= rig.now]
    assert len(asked) < 3


def test_a_group_whose_loss_is_seen_twice_is_told_once() -> None:
    rig = Rig()
    rig.open()
    rig.until("leases.on_look")
    nogroup = refusal("NOGROUP No such key 'streamfleet:q'")
    rig.answer({"intake.on_read": nogroup}, Lane.READ)
    rig.answer({"leases.on_look": nogroup})
    told = [note.operation for note in rig.notes(OperationRefused)]
    assert told.count("work on 'q'") == 1
    rig.pass_time(1000)
    assert rig.machine.setup.complete


def test_attempts_are_further_and_further_apart() -> None:
    rig = connected()
    gaps = []
    for _ in range(12):
        before = rig.now
        rig.answer({"setup.on_group": refusal("LOADING")})
        due = rig.machine.next_timeout()
        assert due is not None
        gaps.append(due - before)
        rig.tick(due - rig.now)
    spans = [min(5000, 50 << at) for at in range(12)]
    assert all(span // 2 <= gap <= span for gap, span in zip(gaps, spans, strict=True)), gaps


def test_a_lost_answer_is_asked_again_on_the_next_connection() -> None:
    rig = connected()
    rig.q.grouped = False
    rig.lose()
    assert not rig.machine.setup.complete
    rig.reconnect()
    assert rig.purposes()[:3] == ("setup.on_time", "setup.on_memory", "setup.on_group")
    rig.answer_all()
    assert rig.blocked


def test_a_lost_answer_to_the_fence_is_asked_again_on_the_next_connection() -> None:
    rig = connected()
    rig.q.fenced = False
    rig.answer()
    rig.lose()
    rig.reconnect()
    rig.answer()
    assert rig.purposes()[0] == "setup.on_fence"


def test_each_new_connection_bumps_the_fence_before_it_guards_anything() -> None:
    rig = Rig(concurrency=2, prefetch=2)
    rig.open()
    rig.bring(task("t1", max_retries=3))
    rig.lose()
    rig.fail()
    rig.reconnect()
    bumps = commands_named(rig.batch(), b"PEXPIRE")
    assert [command[1] for command in bumps] == [rig.q.keys.fence]
    assert not commands_named(rig.batch(), b"WATCH")
    rig.answer()
    assert commands_named(rig.batch(), b"WATCH")


@pytest.mark.parametrize(
    "text",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        "NOPERM this user has no permissions to run the 'xgroup|create' command",
        "ERR unknown command 'XGROUP'",
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_what_waiting_does_not_cure_stops_the_server(text: str, at: int) -> None:
    rig = connected()
    rig.answer({"setup.on_group": But({at: error(text)})})
    assert [fault.error.text for fault in rig.of(Faulted)] == [text]
    assert rig.machine.closing.is_closing
    rig.pass_time(20_000, {})
    assert len(rig.of(ServerStopped)) == 1
    assert rig.machine.closing.stage is Stage.STOPPED
    assert rig.machine.next_timeout() is None


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("text", ["READONLY You can't write against a read only replica.", "MASTERDOWN no"])
def test_another_server_is_looked_for(text: str, at: int) -> None:
    rig = connected()
    rig.answer({"setup.on_group": But({at: error(text)})})
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.COMMAND]
    rig.pass_time(1000)
    assert rig.blocked


def test_the_clock_is_learned_first() -> None:
    rig = connected()
    rig.answer(after_ms=20)
    assert rig.machine.shared.clock.read(rig.now) == REDIS_START
    assert rig.now == START + 20


@pytest.mark.parametrize("answer", [values(None), values([b"1"]), refusal("LOADING"), values([b"x", b"y"])])
def test_a_clock_that_is_not_told_is_asked_again(answer: Values | Refusal) -> None:
    rig = connected()
    rig.answer({"setup.on_time": answer, "setup.on_group": refusal("LOADING")})
    rig.tick(50)
    assert rig.purposes()[:1] == ("setup.on_time",)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (values(b"# Memory\r\nmaxmemory_policy:allkeys-lru\r\nx:1\r\n"), ["allkeys-lru"]),
        (values(b"maxmemory_policy:noeviction"), []),
        (values(b"no such line"), []),
        (values(None), []),
        (refusal("NOPERM no INFO for you"), []),
    ],
)
def test_a_server_that_evicts_is_warned_of(answer: Values | Refusal, told: list[str]) -> None:
    rig = connected()
    rig.answer({"setup.on_memory": answer})
    assert [note.value for note in rig.notes(RiskySetting)] == told
    assert rig.of(Faulted) == []
    rig.answer_all()
    assert rig.blocked


def test_garbage_for_the_group_is_taken_for_a_group() -> None:
    """What is not an error is Ok; a read shows whether it was."""
    rig = connected()
    rig.answer({"setup.on_group": values(None, b"?")})
    assert rig.machine.setup.is_grouped(0)
    assert not rig.machine.setup.is_fenced(0)


def test_work_of_others_is_left_alone_by_the_setup() -> None:
    rig = Rig()
    rig.pend(b"1-0", owner=OTHER)
    rig.open()
    assert rig.q.pending[b"1-0"].owner == OTHER
