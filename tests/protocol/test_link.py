"""One lane's connection: its states, its deadlines, and news that come too late."""

from __future__ import annotations

import pytest

from streamfleet_protocol.commands import EXEC, MULTI, TIME, get
from streamfleet_protocol.effects import Batch, Connect, Disconnect, Effect, Lane, Noted
from streamfleet_protocol.errors import InvariantBroken
from streamfleet_protocol.link import Link, LinkState, Section, Write, transaction_section
from streamfleet_protocol.notes import ConnectionDown, Reconnected
from streamfleet_protocol.replies import Aborted, ErrorReply, Ok, RawReply, Refused, Unknown
from streamfleet_protocol.timing import NEVER, Backoff, Entropy

CUT = ErrorReply("CONNECTION gone")
ASK = Section(("part", "on_answer"), (get(b"a"), get(b"b")), "context")


def link(lane: Lane = Lane.COMMAND) -> Link:
    return Link(lane, connect_timeout_ms=5_000, backoff=Backoff(100, 1_000))


def up(lane: Lane = Lane.COMMAND) -> Link:
    made = link(lane)
    made.open(0, [])
    assert made.connected(0, 1, [])
    return made


def drop(made: Link, now: int = 0, *, closed: bool = True) -> tuple[list[Effect], tuple[Section, ...]]:
    effects: list[Effect] = []
    sections = made.drop(now, CUT, Entropy(1), effects, closed=closed)
    return effects, sections


def test_it_connects_when_it_is_wanted() -> None:
    made, effects = link(), list[Effect]()
    assert (made.state, made.deadline) == (LinkState.IDLE, NEVER)
    made.open(7, effects)
    made.open(8, effects)
    assert effects == [Connect(Lane.COMMAND, 1)]
    assert (made.state, made.deadline) == (LinkState.CONNECTING, 5_007)
    assert not made.ready
    assert made.connected(9, 1, effects)
    assert made.state is LinkState.UP
    assert made.deadline == NEVER
    assert made.ready
    assert len(effects) == 1, "a first connection is no reconnection"


@pytest.mark.parametrize("generation", [0, 2])
def test_news_of_another_generation_are_old(generation: int) -> None:
    made = link()
    made.open(0, [])
    assert not made.connected(0, generation, [])
    assert not made.concerns(generation)
    assert made.state is LinkState.CONNECTING
    assert made.concerns(1)


def test_news_of_a_connection_that_is_not_wanted_are_old() -> None:
    made = up()
    assert not made.connected(1, 1, []), "it stands already"
    drop(made)
    assert not made.concerns(1)
    assert not made.connected(1, 1, [])
    made.close([])
    assert not made.connected(1, 1, [])


def test_connecting_takes_its_time() -> None:
    made, effects = link(), list[Effect]()
    made.open(0, effects)
    assert made.due(4_999, effects) is None
    reason = made.due(5_000, effects)
    assert reason is not None
    assert reason.code == "TIMEOUT"
    assert "to connect" in reason.text


def test_a_lost_connection_is_opened_again_after_a_back_off() -> None:
    made = up()
    effects, _ = drop(made, 50)
    assert made.state is LinkState.DOWN
    assert 100 <= made.deadline <= 150
    assert effects == [Noted(ConnectionDown("command", CUT.text, made.deadline - 50))]
    effects.clear()
    assert made.due(made.deadline - 1, effects) is None
    assert not effects
    assert made.due(made.deadline, effects) is None
    assert effects == [Connect(Lane.COMMAND, 2)]
    made.connected(400, 2, effects)
    assert effects[-1] == Noted(Reconnected("command", 350))


def test_the_back_off_grows_until_an_answer_shows_that_the_connection_is_of_use() -> None:
    made, waits = up(), []
    for _ in range(5):
        drop(made)
        waits.append(made.deadline)
        made.due(made.deadline, [])
        made.connected(made.deadline, made.generation, [])
    assert waits[0] <= 100
    assert waits[-1] >= 500
    made.works()
    drop(made)
    assert made.deadline <= 100


def test_the_length_of_an_outage_counts_from_its_beginning() -> None:
    """Connections that come and go without an answer are all one outage."""
    made = up()
    drop(made, 10)
    effects: list[Effect] = []
    for _ in range(3):
        made.due(made.deadline, effects)
        made.connected(made.deadline, made.generation, effects)
        drop(made, 1_000)
    made.due(made.deadline, [])
    effects.clear()
    made.connected(9_000, made.generation, effects)
    assert effects == [Noted(Reconnected("command", 8_990))]


def test_who_drops_a_connection_closes_it() -> None:
    assert [type(effect) for effect in drop(up(), closed=True)[0]] == [Noted]
    effects, _ = drop(up(), closed=False)
    assert effects[0] == Disconnect(Lane.COMMAND, 1)


def test_a_batch_is_in_flight_until_it_is_answered() -> None:
    made = up()
    batch = made.send(10, (ASK, transaction_section(("part", "on_exec"), [TIME])), 3_000, 77)
    assert batch == Batch(
        batch.token, Lane.COMMAND, 77, ("part.on_answer", "part.on_exec"), (get(b"a"), get(b"b"), MULTI, TIME, EXEC)
    )
    assert not made.ready
    assert made.deadline == 3_010
    assert made.take(batch.token + 2, [b"x"] * 5) == []
    assert made.take(0, []) == []
    answered = made.take(batch.token, [b"1", b"2", b"OK", b"QUEUED", [5]])
    assert [outcome for _, outcome in answered] == [Ok([b"1", b"2"]), Ok([5])]
    assert answered[0][0].context == "context"
    assert made.ready
    assert made.deadline == NEVER
    assert made.take(batch.token, [b"1", b"2", b"OK", b"QUEUED", [5]]) == [], "a second answer is an old one"


def test_each_section_has_its_own_outcome() -> None:
    made = up()
    exec_section = transaction_section(("part", "on_exec"), [TIME])
    batch = made.send(0, (ASK, exec_section, exec_section, exec_section), 1, 1)
    oom = ErrorReply("OOM no")
    replies: list[RawReply] = [b"1", oom, b"OK", b"QUEUED", None, b"OK", b"QUEUED", oom, b"OK", b"QUEUED", b"what?"]
    outcomes = [outcome for _, outcome in made.take(batch.token, replies)]
    assert outcomes == [Refused(oom, [b"1", oom]), Aborted(), Refused(oom), Unknown()]


def test_a_batch_that_is_not_answered_in_time_is_given_up() -> None:
    made = up()
    made.send(10, (ASK,), 3_000, 1)
    assert made.due(3_009, []) is None
    reason = made.due(3_010, [])
    assert reason is not None
    assert "for an answer" in reason.text
    _, sections = drop(made, 3_010, closed=False)
    assert sections == (ASK,), "its outcome is now unknown"
    assert made.in_flight == ()
    assert not made.token


def test_closing_gives_back_what_is_in_flight() -> None:
    made, effects = up(), list[Effect]()
    made.send(0, (ASK,), 1, 1)
    assert made.close(effects) == (ASK,)
    assert made.close(effects) == ()
    assert effects == [Disconnect(Lane.COMMAND, 1)]
    made.open(5, effects)
    made.close(effects)
    assert effects[1:] == [Connect(Lane.COMMAND, 2), Disconnect(Lane.COMMAND, 2)], "also while it is being opened"


def test_tokens_tell_lanes_and_batches_apart() -> None:
    tokens = set()
    for made in (up(Lane.COMMAND), up(Lane.READ)):
        for _ in range(5):
            batch = made.send(0, (ASK,), 1, 1)
            tokens.add(batch.token)
            made.take(batch.token, [1, 2])
    assert len(tokens) == 10
    assert 0 not in tokens


def test_rules_of_the_lane() -> None:
    made = up()
    with pytest.raises(InvariantBroken, match="not empty"):
        made.send(0, (), 1, 1)
    batch = made.send(0, (ASK,), 1, 1)
    with pytest.raises(InvariantBroken, match="one batch in flight"):
        made.send(0, (ASK,), 1, 1)
    with pytest.raises(InvariantBroken, match="one reply a command"):
        made.take(batch.token, [b"1"])
    with pytest.raises(InvariantBroken):
        link().send(0, (ASK,), 1, 1)


def test_sections_are_written_in_the_fixed_order() -> None:
    one, two, three = (Section((name, "on"), (TIME,)) for name in "abc")
    write = Write()
    write.question.append(three)
    write.middle.append(two)
    write.first.append(one)
    assert write.sections == (one, two, three)
