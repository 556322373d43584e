"""The one door: what holds for any input, on the machine of a client."""

from __future__ import annotations

from typing import Any

import pytest

from streamfleet_protocol import ClientMachine
from streamfleet_protocol.effects import Accepted, Connect, Disconnect, FaultCleared, Faulted, Lane
from streamfleet_protocol.errors import InvariantBroken
from streamfleet_protocol.inputs import (
    CloseClient,
    Connected,
    Disconnected,
    Enqueue,
    Reply,
    Several,
    TaskOptions,
    Timeout,
)
from streamfleet_protocol.link import LinkState
from streamfleet_protocol.machine import Machine
from streamfleet_protocol.notes import ConnectionDown
from streamfleet_protocol.replies import Ok, RawReply
from streamfleet_protocol.timing import Backoff

from .support import CUT, START, But, ClientScript, Script, error, events, notes, of, settings


def test_a_new_machine_wants_nothing() -> None:
    machine = ClientMachine(settings())
    assert machine.next_timeout() is None
    assert machine.step(START, Timeout()) == []
    assert machine.next_timeout() is None


def test_time_does_not_go_back() -> None:
    machine = ClientMachine(settings())
    machine.step(10, Timeout())
    machine.step(10, Timeout())
    with pytest.raises(InvariantBroken, match="time does not go back"):
        machine.step(9, Timeout())


def test_a_broken_machine_refuses_every_further_step() -> None:
    script = ClientScript()
    script.flush()
    script.enqueue(b"a")
    script.connect()
    token = script.machine.command.token
    with pytest.raises(InvariantBroken, match="one reply a command"):
        script.feed(Reply(token, []))
    with pytest.raises(InvariantBroken, match="broken by an earlier error"):
        script.feed(Timeout())


def test_old_news_change_nothing() -> None:
    """Answers and connections of another generation, of another token, of a lane that nobody wants."""
    script = ClientScript()
    script.start()
    script.enqueue(b"a")
    before = script.machine.snapshot()
    token = script.machine.command.token
    for event in (
        *(Reply(0, [b"OK"]), Reply(token + 2, [b"OK"]), Reply(-1, []), Connected(Lane.COMMAND, 1)),
        *(Connected(Lane.COMMAND, 2), Connected(Lane.READ, 0), Connected(Lane.READ, 1)),
        *(Disconnected(Lane.COMMAND, 0, CUT), Disconnected(Lane.COMMAND, 2, CUT), Disconnected(Lane.READ, 0, CUT)),
    ):
        assert script.feed(event) == [], event
        assert script.machine.snapshot() == before, event


def test_needless_timeouts_change_nothing() -> None:
    script = ClientScript()
    script.track(b"a", expires_in_ms=60_000)
    for act in (script.connect, script.answer, script.answer, script.answer, script.answer_all):
        act()
        before = script.machine.snapshot()
        for _ in range(3):
            assert script.feed(Timeout()) == []
        assert script.machine.snapshot() == before


def test_equal_histories_have_equal_effects_and_snapshots() -> None:
    one, other = ClientScript(), ClientScript()
    for script in (one, other):
        script.track(b"a", b"b")
        script.start()
        script.lose(Lane.READ)
        script.live(45_000)
    assert one.effects == other.effects
    assert one.machine.snapshot() == other.machine.snapshot()
    assert hash(one.machine.snapshot()) == hash(other.machine.snapshot())


def test_another_seed_waits_for_other_times() -> None:
    def wait(seed: int) -> int:
        script = ClientScript(seed=seed)
        script.start()
        (down,) = notes(script.lose(), ConnectionDown)
        return down.retry_in_ms

    assert len({wait(seed) for seed in range(10)}) > 1


def test_a_restored_machine_goes_on_as_the_first_and_apart_from_it() -> None:
    script = ClientScript()
    script.track(b"a")
    script.start()
    snapshot = script.machine.snapshot()
    twin = Script(Machine.restore(snapshot), now=script.now)
    assert isinstance(twin.machine, ClientMachine)
    script.enqueue(b"b")
    assert script.machine.snapshot() != snapshot
    assert twin.machine.snapshot() == snapshot
    expected = of(script.effects, Accepted)[-1]
    assert twin.feed(Enqueue(expected.call, "jobs", ("t2",), (b"b",), TaskOptions(), False, True)) != []
    assert twin.machine.snapshot() == script.machine.snapshot()


def test_several_inputs_are_one_step() -> None:
    script = ClientScript()
    effects = script.feed(
        Several(
            (
                Enqueue(1, "jobs", ("t1",), (b"a",), TaskOptions(), False, True),
                Enqueue(2, "jobs", ("t2",), (b"b",), TaskOptions(), False, True),
                CloseClient(0),
            )
        )
    )
    assert [type(effect) for effect in effects[:3]] == [Connect, Accepted, Accepted]
    assert type(effects[-1]).__name__ == "ClientClosed"


def test_a_connection_that_does_not_come_up_in_time_is_given_up() -> None:
    script = ClientScript(connect_timeout_ms=5_000)
    script.enqueue(b"a")
    assert script.machine.next_timeout() == START + 5_000
    effects = script.pass_time(5_000)
    assert effects[0] == Disconnect(Lane.COMMAND, 1)
    effects = script.pass_time(100)
    assert of(effects, Connect) == [Connect(Lane.COMMAND, 2)]


def test_a_batch_that_is_not_answered_in_time_costs_the_connection() -> None:
    script = ClientScript(command_timeout_ms=3_000)
    script.enqueue(b"a")
    script.connect()
    assert script.machine.next_timeout() == START + 3_000
    effects = script.pass_time(3_000)
    assert effects[0] == Disconnect(Lane.COMMAND, 1)
    assert notes(effects, ConnectionDown)[0].reason.startswith("TIMEOUT")
    script.pass_time(100)
    script.connect()
    script.answer_all()
    assert script.in_stream() == ["t1"]


def test_an_answer_that_no_server_gives_costs_the_connection() -> None:
    """What was applied is not known; the next connection's sequence tells."""
    answers: list[list[RawReply]] = [[], [b"1-0", 1, 5]]
    for values in answers:
        script = ClientScript()
        script.start()
        script.enqueue(b"a")
        effects = script.answer({"outbox.on_batch": Ok(values)})
        assert effects[0] == Disconnect(Lane.COMMAND, 1)
        script.pass_time(100)
        script.connect()
        script.answer_all()
        assert script.in_stream() == ["t1"], "the script's peer had not applied it"


def test_a_refused_connection_is_a_fault_until_one_stands() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    refused = error("WRONGPASS invalid username-password pair")
    effects = script.lose(reason=refused)
    assert events(effects) == [Faulted(refused)]
    script.pass_time(100)
    assert events(script.lose(reason=refused)) == [], "told once"
    script.pass_time(200)
    assert of(script.connect(), FaultCleared)
    script.answer_all()
    assert script.in_stream() == ["t1"]


def test_a_refused_answer_that_points_elsewhere_costs_the_connection() -> None:
    script = ClientScript()
    script.start()
    script.enqueue(b"a")
    effects = script.answer({"outbox.on_batch": But({0: error("READONLY")})})
    assert Disconnect(Lane.COMMAND, 1) in effects
    assert script.machine.command.state is LinkState.DOWN


def test_both_lanes_can_fall_together() -> None:
    script = ClientScript()
    script.track(b"a")
    script.start()
    script.track(b"b")
    effects = script.pass_time(60_000)
    assert {effect.lane for effect in of(effects, Disconnect)} == {Lane.COMMAND, Lane.READ}


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        *(("_on_input", (0, None)), ("_on_time", (0,)), ("_on_up", (0, Lane.READ)), ("_on_lost", (0, Lane.READ))),
        *(("_due_at", ()), ("_compose_due_at", ()), ("_compose", (0, None)), ("_pump_reads", (0,))),
    ],
)
def test_a_machine_fills_in_its_hooks(hook: str, arguments: tuple[Any, ...]) -> None:
    bare: Machine[Any] = Machine(1, 1, {Lane.COMMAND: Backoff(1, 1)})
    with pytest.raises(NotImplementedError):
        getattr(bare, hook)(*arguments)
    assert not bare._take_lightly(0, None)


def test_a_restored_snapshot_is_a_machine() -> None:
    with pytest.raises(AssertionError):
        Machine.restore(b"something else")
