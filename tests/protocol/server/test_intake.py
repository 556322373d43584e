"""Reading: how much, from which queue, when to wait, and what the answers lead to."""

from __future__ import annotations

import itertools

import pytest

from streamfleet_protocol.commands import Command
from streamfleet_protocol.effects import Disconnect, Faulted, Lane
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.replies import RawReply
from tests.protocol.server.support import (
    LEASE,
    ME,
    RENEW,
    START,
    Refusal,
    Rig,
    Values,
    connects,
    error,
    refusal,
    task,
    values,
)

NOTHING = values(None)


def read(rig: Rig) -> Command:
    """The read in flight."""
    return rig.section("intake.on_read", Lane.READ)[0]


def streams_of(command: Command) -> list[str]:
    """Queues that a read asks."""
    names = command[command.index(b"STREAMS") + 1 :]
    half = names[: len(names) // 2]
    return [name.decode().removeprefix("streamfleet:") for name in half if isinstance(name, bytes)]


def count_of(command: Command) -> int:
    """Its COUNT."""
    count = command[command.index(b"COUNT") + 1]
    assert isinstance(count, int)
    return count


def ready(*queues: str, **changes: object) -> Rig:
    """A server about to read for the first time."""
    rig = Rig(*queues, **changes)
    rig.start()
    rig.connect()
    while connects(rig.effects)[-1:] != [Lane.READ]:
        rig.answer()
    while rig.in_flight():
        rig.answer()
    rig.connect(Lane.READ)
    return rig


def test_a_read_connection_is_asked_for_its_number_first() -> None:
    rig = ready()
    assert rig.section("intake.on_identified", Lane.READ) == ((b"CLIENT", b"ID"),)
    rig.answer(None, Lane.READ)
    assert rig.machine.intake.client_number == 7
    assert read(rig)[0] == b"XREADGROUP"


@pytest.mark.parametrize("answer", [refusal("NOPERM no CLIENT for you"), values(b"7"), values(None)])
def test_a_read_connection_without_a_number_reads_all_the_same(answer: Values | Refusal) -> None:
    rig = ready()
    rig.answer({"intake.on_identified": answer}, Lane.READ)
    assert rig.machine.intake.client_number is None
    assert rig.of(Faulted) == []
    assert read(rig)


def test_each_queue_is_asked_for_all_there_is_room_for() -> None:
    rig = ready("a", "b", concurrency=3, prefetch=2)
    rig.answer(None, Lane.READ)
    assert (streams_of(read(rig)), count_of(read(rig)), b"BLOCK" in read(rig)) == (["a"], 5, False)
    assert read(rig)[1:4] == (b"GROUP", b"streamfleet-server", ME)
    assert read(rig)[-1] == b">"


def test_a_read_waits_only_after_all_queues_were_empty() -> None:
    rig = ready("a", "b", "c", concurrency=4)
    rig.answer(None, Lane.READ)
    asked = []
    while not rig.blocked:
        asked.append(streams_of(read(rig)))
        rig.answer(None, Lane.READ)
    assert asked == [["a"], ["b"], ["c"]]
    assert streams_of(read(rig)) == ["a", "b", "c"]
    assert count_of(read(rig)) == 1
    assert read(rig)[read(rig).index(b"BLOCK") + 1] == 5000


def test_an_empty_wait_is_followed_by_another() -> None:
    rig = Rig("a", "b")
    rig.open()
    rig.wait(5000)
    rig.answer(None, Lane.READ)
    assert rig.blocked


def test_queues_take_turns_while_there_is_work() -> None:
    rig = Rig("a", "b", "c", concurrency=1, prefetch=0)
    rig.open()
    rig.deliver(task("t0"), queue=1)
    asked = []
    for at in range(1, 7):
        rig.succeed(f"t{at - 1}")
        assert not rig.blocked
        asked += streams_of(read(rig))
        rig.deliver(task(f"t{at}"), queue=(asked[-1:] == ["b"] and 1) or (2 if asked[-1] == "c" else 0))
    assert sorted(asked[:3]) == ["a", "b", "c"]
    assert asked[:3] == asked[3:]


def test_a_read_that_was_not_filled_lets_the_next_queue_have_its_turn() -> None:
    rig = Rig("a", "b", concurrency=5, prefetch=0)
    rig.open()
    rig.deliver(task("t0"))
    assert not rig.blocked
    first = streams_of(read(rig))
    rig.answer(None, Lane.READ)
    second = streams_of(read(rig))
    assert sorted(first + second) == ["a", "b"]
    rig.answer(None, Lane.READ)
    assert rig.blocked


def test_no_room_no_read() -> None:
    rig = Rig(concurrency=2, prefetch=0)
    rig.open()
    rig.deliver(task("t0"))
    assert count_of(read(rig)) == 1
    rig.deliver(task("t1"))
    assert not rig.in_flight(Lane.READ)
    rig.succeed("t0")
    assert count_of(read(rig)) == 1


def test_a_read_is_worth_a_round_trip() -> None:
    """While more than half of the prefetch is held, nothing is read: one entry each would cost a round trip each."""
    rig = Rig(concurrency=1, prefetch=4)
    rig.open()
    rig.deliver(*[task(f"t{at}") for at in range(5)])
    assert not rig.in_flight(Lane.READ)
    rig.succeed("t0")
    assert not rig.in_flight(Lane.READ)
    rig.succeed("t1")
    assert count_of(read(rig)) == 2


def test_room_grows_with_the_measured_duration() -> None:
    rig = Rig(concurrency=2)
    rig.open()
    rig.deliver(task("t0"))
    assert count_of(read(rig)) == 1
    rig.wait(10)
    rig.succeed("t0")
    # 50 ms of work for 2 handlers of 10 ms are 10 tasks.
    rig.answer(None, Lane.READ)
    assert rig.blocked
    rig.deliver(task("t1"))
    assert count_of(read(rig)) == 11


def test_what_is_not_settled_ends_the_reading_too() -> None:
    """Redis takes no XDEL: tasks that are done and pile up must not be without bound."""
    rig = Rig(concurrency=100, prefetch=0)
    rig.open()
    oom = {"settlement.on_plain": refusal("MISCONF no")}
    done = 0
    while rig.in_flight(Lane.READ) and done < 3000:
        room = rig.machine.tasks.room
        names = [f"t{done + at}" for at in range(room)]
        rig.deliver(*[task(name) for name in names])
        for name in names:
            rig.succeed(name)
            done += 1
        if rig.in_flight():
            rig.answer({name: answer for name, answer in oom.items() if name in rig.purposes()})
    assert 1000 <= rig.machine.tasks.unsettled == done < 1300
    rig.pass_time(10_000)
    assert rig.machine.tasks.unsettled == 0
    assert rig.in_flight(Lane.READ)


def test_a_queue_is_not_read_before_its_first_look() -> None:
    rig = Rig("a", "b")
    rig.start()
    rig.connect()
    rig.answer()
    rig.connect(Lane.READ)
    assert not rig.in_flight(Lane.READ)
    rig.answer()
    assert rig.purposes()[-1] == "leases.on_look"
    rig.answer(None, Lane.READ)
    assert streams_of(read(rig)) == ["a"]
    rig.answer(None, Lane.READ)
    # The other may be ready at any moment, so this read does not wait for long.
    assert streams_of(read(rig)) == ["a"]
    assert read(rig)[read(rig).index(b"BLOCK") + 1] == 100
    rig.answer()
    rig.facts.unblocked = True
    rig.answer(None, Lane.READ)
    while not rig.blocked:
        rig.answer(None, Lane.READ)
    assert streams_of(read(rig)) == ["a", "b"]
    assert read(rig)[read(rig).index(b"BLOCK") + 1] == 5000


def test_nothing_is_read_while_the_command_connection_is_away() -> None:
    rig = Rig()
    rig.open()
    rig.lose()
    assert rig.blocked  # that read goes on
    rig.answer(None, Lane.READ)
    assert not rig.in_flight(Lane.READ)
    rig.reconnect()
    rig.answer_all()
    assert rig.blocked


def test_reads_are_numbered() -> None:
    rig = ready()
    intake = rig.machine.intake
    rig.answer(None, Lane.READ)
    assert (intake.sent, intake.over) == (1, 0)
    rig.answer(None, Lane.READ)
    assert (intake.sent, intake.over) == (2, 1)
    rig.lose(Lane.READ)
    assert (intake.sent, intake.over) == (2, 2)


def test_a_blocked_read_ends_by_the_own_clock() -> None:
    """BLOCK runs on the server's wall clock, which may have been set back."""
    rig = Rig(block_ms=5000, read_margin_ms=2000)
    rig.open()
    sent = rig.now
    assert rig.machine.links[Lane.READ].deadline == sent + 7000
    rig.pass_time(7000, answering=False)
    assert [(drop.lane, drop.generation) for drop in rig.of(Disconnect)][-1] == (Lane.READ, 1)
    assert rig.machine.intake.over == rig.machine.intake.sent
    rig.answer_all()
    rig.pass_time(100)
    assert rig.blocked


def test_a_read_that_does_not_block_has_the_deadline_of_a_command() -> None:
    rig = ready(command_timeout_ms=2500)
    rig.answer(None, Lane.READ)
    assert not rig.blocked
    assert rig.machine.links[Lane.READ].deadline == rig.now + 2500


def test_a_lost_read_is_followed_by_a_look_at_once() -> None:
    rig = Rig()
    rig.open()
    rig.pend(b"77-0", task("t1"), owner=ME)
    rig.lose(Lane.READ)
    assert rig.purposes()[-1] == "leases.on_look"
    rig.answer_all()
    assert rig.started() == ["t1"]


def test_a_new_read_connection_has_another_number() -> None:
    rig = Rig()
    rig.open()
    rig.lose(Lane.READ)
    assert rig.machine.intake.client_number is None
    rig.reconnect(Lane.READ)
    rig.answer()
    assert rig.purposes(Lane.READ) == ("intake.on_identified",)


def test_a_held_entry_that_is_read_again_is_ignored() -> None:
    """The group was made again, at its beginning."""
    rig = Rig(concurrency=2, prefetch=0)
    rig.open()
    (entry_id,) = rig.deliver(task("t1"))
    reply: RawReply = [[rig.q.keys.stream, [[entry_id, list(task("t1"))]]]]
    rig.answer({"intake.on_read": values(reply)}, Lane.READ)
    assert rig.started() == ["t1"]
    assert len(rig.machine.tasks.by_id) == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"?",
        5,
        [],
        [None],
        [[b"streamfleet:q"]],
        [[b"streamfleet:q", None]],
        [[b"streamfleet:q", [None, [b"1-0"], [b"1-0", None], [None, []], [5, [b"a", b"b"]]]]],
        [[b"streamfleet:unheard", [[b"1-0", [b"a", b"b"]]]]],
        [[None, [[b"1-0", [b"a", b"b"]]]]],
    ],
    ids=repr,
)
def test_garbage_is_read_as_nothing(reply: RawReply) -> None:
    rig = Rig()
    rig.open()
    rig.answer({"intake.on_read": values(reply)}, Lane.READ)
    assert rig.machine.tasks.by_id == {}
    assert rig.in_flight(Lane.READ)


def test_an_entry_that_is_no_task_is_taken_and_put_away() -> None:
    rig = Rig()
    rig.open()
    (entry_id,) = rig.deliver((b"some", b"thing"))
    rig.answer_all()
    assert entry_id not in rig.q.bodies
    assert len(rig.q.dead) == 1
    assert rig.started() == []


# --- Refused reads ----------------------------------------------------------------------------------------


def test_nogroup_names_the_queue_that_is_made_again() -> None:
    rig = Rig("a", "ab")
    rig.open()
    text = "NOGROUP No such key 'streamfleet:ab' or consumer group 'streamfleet-server' in XREADGROUP with GROUP option"
    rig.answer({"intake.on_read": refusal(text)}, Lane.READ)
    assert not rig.machine.setup.is_grouped(1)
    rig.pass_time(1000)
    assert rig.machine.setup.complete
    assert rig.blocked


def test_nogroup_without_a_name_is_found_out_by_reading_again() -> None:
    """Redis 7.2 does not name the key where the group of a blocked reader goes."""
    rig = Rig("a", "b")
    rig.open()
    rig.queue(1).grouped = False
    text = "NOGROUP the consumer group this client was blocked on no longer exists"
    rig.answer({"intake.on_read": refusal(text)}, Lane.READ)
    rig.pass_time(100, answering=False)
    rig.answer({"intake.on_read": refusal("NOGROUP No such key 'streamfleet:b' or consumer group")}, Lane.READ)
    rig.pass_time(1000)
    assert rig.queue(1).grouped
    assert rig.blocked


def test_nogroup_without_a_name_is_clear_where_there_is_one_queue() -> None:
    rig = Rig("a")
    rig.open()
    rig.answer({"intake.on_read": refusal("NOGROUP the consumer group is gone")}, Lane.READ)
    assert not rig.machine.setup.is_grouped(0)


@pytest.mark.parametrize("text", ["UNBLOCKED the stream key no longer exists", "READONLY no", "MASTERDOWN no"])
def test_another_server_is_looked_for(text: str) -> None:
    rig = Rig()
    rig.open()
    rig.answer({"intake.on_read": refusal(text)}, Lane.READ)
    assert [drop.lane for drop in rig.of(Disconnect)] == [Lane.READ]
    assert rig.machine.links[Lane.READ].state is LinkState.DOWN
    rig.pass_time(200)
    assert rig.blocked


@pytest.mark.parametrize("text", ["LOADING no", "BUSY no", "OOM no", "NOREPLICAS no", "MISCONF no", "ERR strange"])
def test_a_read_that_is_refused_for_now_is_repeated_with_backoff(text: str) -> None:
    rig = Rig()
    rig.open()
    times = []
    for _ in range(10):
        times.append(rig.now)
        rig.answer({"intake.on_read": refusal(text)}, Lane.READ)
        assert not rig.in_flight(Lane.READ)
        while not rig.in_flight(Lane.READ):
            if rig.in_flight():
                rig.answer()
            else:
                due = rig.machine.next_timeout()
                assert due is not None
                rig.tick(due - rig.now)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    spans = [min(5000, 50 << at) for at in range(9)]
    assert all(span // 2 <= gap <= span for gap, span in zip(gaps, spans, strict=True)), gaps
    rig.wait(5000)
    rig.answer(None, Lane.READ)
    assert rig.machine.intake.backoff.attempts == 0
    assert rig.of(Faulted) == []


@pytest.mark.parametrize("text", ["WRONGTYPE wrong kind of value", "NOPERM no", "NOAUTH no"])
def test_a_read_that_is_refused_for_good_stops_the_server(text: str) -> None:
    rig = Rig()
    rig.open()
    rig.answer({"intake.on_read": refusal(text)}, Lane.READ)
    assert [fault.error.code for fault in rig.of(Faulted)] == [text.split()[0]]
    assert rig.machine.closing.is_closing


def test_a_read_connection_that_is_refused_for_good_stops_the_server() -> None:
    rig = Rig()
    rig.open()
    rig.lose(Lane.READ, error("WRONGPASS invalid password"))
    assert [fault.error.code for fault in rig.of(Faulted)] == ["WRONGPASS"]
    assert rig.machine.closing.is_closing


def test_a_read_connection_that_does_not_come_is_tried_again() -> None:
    rig = Rig(connect_timeout_ms=5000)
    rig.start()
    rig.connect()
    rig.answer()
    while rig.in_flight():
        rig.answer()
    assert rig.machine.links[Lane.READ].state is LinkState.CONNECTING
    opened = rig.now
    rig.pass_time(5000, answering=False)
    assert rig.now - opened == 5000
    assert rig.machine.links[Lane.READ].state is LinkState.DOWN
    rig.pass_time(100)
    assert rig.blocked
    assert rig.now < START + LEASE


def test_one_read_goes_on_while_looks_come_and_go() -> None:
    rig = Rig(block_ms=60_000)
    rig.open()
    rig.pass_time(RENEW * 3)
    assert rig.blocked
    assert rig.machine.intake.sent == 2
