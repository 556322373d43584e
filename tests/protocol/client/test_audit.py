"""Audits: is the task of a doubtful handle still anywhere? Found: wait. Found nowhere: OutcomeUnknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamfleet_protocol.effects import Batch, Confirmed, End, FaultCleared, Faulted, Lane, Settled
from streamfleet_protocol.members import pack_member
from streamfleet_protocol.replies import Ok, RawReply, Refused
from streamfleet_protocol.timing import NEVER
from streamfleet_protocol.wire import decode_task, encode_task

from ..support import DELAYED, PROMOTIONS, RECEIVER, STREAM, ClientScript, error, of

ENTRIES, COUNTER, PAGE, DELAYS, AGAIN = (
    f"audit.on_{phase}" for phase in ("entries", "counter", "stream", "delayed", "counter_again")
)
PEEKED, BEAT, BATCH = "receiver.on_peeked", "heartbeat.on_beat", "outbox.on_batch"


def tracking(tasks: int = 1, **changes: Any) -> ClientScript:
    """A client with tracked tasks in Redis."""
    script = ClientScript(collect_interval_ms=10**9, **changes)
    script.track(*[b"x"] * tasks)
    script.start()
    return script


def audited(tasks: int = 1, **changes: Any) -> ClientScript:
    """The same, with an audit's first question in flight."""
    script = tracking(tasks, **changes)
    script.machine.tracker.audit_soon(script.now - 30_000)
    script.pass_time(0)
    script.enqueue(b"wakes it")
    script.advance_to(ENTRIES)
    return script


def settled(script: ClientScript) -> dict[str, End]:
    """How the tasks have ended so far."""
    return {effect.task_id: effect.end for effect in of(script.effects, Settled)}


def phases(script: ClientScript) -> list[str]:
    """The audit's questions so far, in order."""
    batches = of(script.effects, Batch)
    return [purpose.removeprefix("audit.") for batch in batches for purpose in batch.purposes if "audit." in purpose]


# The phases.


def test_a_task_whose_own_entry_is_there_is_alive() -> None:
    script = audited()
    assert script.flight()[ENTRIES] == ((b"XRANGE", STREAM, b"1-0", b"1-0"),)
    script.answer_all()
    assert phases(script) == ["on_entries"]
    assert settled(script) == {}


def test_the_whole_search_in_order() -> None:
    """The entry, the counter of promotions, the stream, the delayed set, the counter again, the words once more."""
    script = audited()
    script.take("t1")
    script.answer()
    assert script.flight()[COUNTER] == ((b"GET", PROMOTIONS),)
    script.answer()
    assert script.flight()[PAGE] == ((b"XRANGE", STREAM, b"-", b"+", b"COUNT", 50),)
    script.answer()
    assert script.flight()[DELAYS] == ((b"ZSCAN", DELAYED, b"0", b"COUNT", 200),)
    script.answer()
    assert script.flight()[AGAIN] == ((b"GET", PROMOTIONS),)
    script.answer()
    assert script.flight()[PEEKED] == ((b"XREAD", b"COUNT", 500, b"STREAMS", RECEIVER, b"0"),)
    assert BEAT in script.flight(), "and is all else that was confirmed still there?"
    assert settled(script) == {}
    (end,) = of(script.answer(), Settled)
    assert (end.task_id, end.end, end.confirmed) == ("t1", End.UNKNOWN, True)
    assert "no word about its end" in end.text


def test_another_entry_under_the_same_id_is_not_the_task() -> None:
    """After FLUSHALL and a clock set back, ids come again."""
    script = audited()
    other = encode_task(decode_task(script.peer.streams[STREAM][0][1])._replace(task_id="other"))
    script.peer.streams[STREAM][0] = (b"1-0", other)
    script.answer_all()
    assert settled(script) == {"t1": End.UNKNOWN}


def test_alive_as_a_retry_copy_further_on() -> None:
    """Finding 18: a retried task has another entry."""
    script = audited()
    copy = encode_task(decode_task(script.peer.streams[STREAM][0][1])._replace(retries=1))
    script.take("t1")
    script.peer.append(STREAM, copy)
    script.answer_all()
    assert phases(script) == ["on_entries", "on_counter", "on_stream"]
    assert settled(script) == {}


def test_alive_in_the_delayed_set() -> None:
    """A retry with a delay is there."""
    script = audited()
    fields = script.peer.streams[STREAM][0][1]
    script.take("t1")
    script.peer.sorted_sets[DELAYED] = {pack_member(fields): 5, b"garbage": 6}
    script.answer_all()
    assert phases(script) == ["on_entries", "on_counter", "on_stream", "on_delayed"]
    assert settled(script) == {}


def test_a_delayed_task_has_no_entry_to_ask_for() -> None:
    script = ClientScript(collect_interval_ms=10**9)
    script.track(b"a", delay_ms=10**6)
    script.start()
    script.machine.tracker.audit_soon(script.now - 30_000)
    script.enqueue(b"wakes it")
    script.live(1)
    assert phases(script) == ["on_counter", "on_stream", "on_delayed"]
    assert settled(script) == {}


def test_a_task_of_a_lost_reply_has_no_known_entry_either() -> None:
    """Its batch was confirmed by the sequence alone."""
    script = tracking()
    script.track(b"b")
    script.reconnect(applied=True)
    script.answer_all()
    script.live(31_000)
    assert phases(script) == ["on_entries", "on_counter", "on_stream"]
    assert settled(script) == {}


def test_a_long_stream_is_scanned_page_by_page() -> None:
    script = audited()
    fields = script.peer.streams[STREAM][0][1]
    script.take("t1")
    for at in range(120):
        script.peer.append(STREAM, encode_task(decode_task(fields)._replace(task_id=f"other{at}")))
    script.peer.append(STREAM, fields)
    script.advance_to(PAGE)
    script.answer()
    last = script.peer.streams[STREAM][49][0]
    assert script.flight()[PAGE] == ((b"XRANGE", STREAM, b"(" + last, b"+", b"COUNT", 50),)
    script.answer_all()
    assert phases(script).count("on_stream") == 3
    assert settled(script) == {}


def test_a_long_delayed_set_is_scanned_page_by_page() -> None:
    script = audited()
    fields = script.peer.streams[STREAM][0][1]
    script.take("t1")
    script.advance_to(DELAYS)
    script.answer({DELAYS: Ok([[b"17", [b"5:other,", b"1"]]])})
    assert script.flight()[DELAYS][0][2] == b"17"
    script.answer({DELAYS: Ok([[b"0", [pack_member(fields), b"1"]]])})
    script.answer_all()
    assert settled(script) == {}


def test_many_handles_are_asked_for_in_bounded_batches() -> None:
    script = audited(230)
    sizes = []
    while ENTRIES in script.flight():
        sizes.append(len(script.flight()[ENTRIES]))
        script.answer()
    assert sizes == [100, 100, 30]
    assert settled(script) == {}


def test_one_scan_for_all_doubtful_handles() -> None:
    script = audited(5)
    for task in ("t2", "t4"):
        script.take(task)
    script.answer_all()
    assert phases(script) == ["on_entries", "on_counter", "on_stream", "on_delayed", "on_counter_again"]
    assert settled(script) == {"t2": End.UNKNOWN, "t4": End.UNKNOWN}


def test_queues_are_audited_one_after_the_other() -> None:
    script = ClientScript(queues=("a", "b"), collect_interval_ms=10**9)
    script.track(b"x", queue="a")
    script.track(b"x", queue="b")
    script.start()
    script.peer.streams.update({b"streamfleet:a": [], b"streamfleet:b": []})
    script.machine.tracker.audit_soon(script.now - 30_000)
    script.live(20_000)
    assert phases(script) == 2 * ["on_entries", "on_counter", "on_stream", "on_delayed", "on_counter_again"]
    assert settled(script) == {"t1": End.UNKNOWN, "t2": End.UNKNOWN}


# The counter of promotions (finding 2.1c).


def test_where_tasks_were_promoted_during_the_scan_it_is_made_again() -> None:
    """One may have moved from the set, ahead of its scan, to the stream, behind its scan."""
    script = audited()
    fields = script.peer.streams[STREAM][0][1]
    script.take("t1")
    script.peer.strings[PROMOTIONS] = b"7"
    script.advance_to(DELAYS)
    script.peer.strings[PROMOTIONS] = b"8"
    script.peer.append(STREAM, fields)
    script.answer_all()
    assert phases(script)[1:] == [
        *("on_counter", "on_stream", "on_delayed", "on_counter_again"),
        *("on_counter", "on_stream"),
    ]
    assert settled(script) == {}


def test_where_tasks_are_always_promoted_it_gives_up_for_now() -> None:
    """After some disturbed tries: later, not OutcomeUnknown."""
    script = audited()
    script.take("t1")
    for at in range(3):
        script.advance_to(AGAIN)
        script.peer.strings[PROMOTIONS] = b"%d" % at
        script.answer()
    assert script.flight() == {}
    assert settled(script) == {}
    assert script.machine.tracker.audit_at == script.now + 30_000
    script.live(45_000)
    assert settled(script) == {"t1": End.UNKNOWN}


# Words meanwhile.


def test_a_word_in_the_receiver_stream_is_found_last() -> None:
    """The task was settled and its word is there, only not read yet."""
    script = audited()
    script.take("t1")
    script.say("t1", result=b"found")
    script.answer_all()
    assert settled(script) == {"t1": End.COMPLETED}
    assert script.peer.streams[RECEIVER] == []


@pytest.mark.parametrize("phase", [ENTRIES, COUNTER, PAGE, DELAYS, AGAIN, PEEKED])
def test_a_word_that_arrives_meanwhile_ends_the_search(phase: str) -> None:
    script = audited()
    script.take("t1")
    script.advance_to(phase)
    script.say("t1", "error", "no")
    script.answer(lane=Lane.READ)
    assert settled(script) == {"t1": End.FAILED}
    script.answer_all()
    assert len(of(script.effects, Settled)) == 1
    assert script.machine.audit.run is None


def test_a_task_that_was_lost_and_sent_again_meanwhile_is_alive() -> None:
    """The search saw too little: the task came back behind it."""
    script = audited()
    script.take("t1")
    script.advance_to(PEEKED)
    script.peer.flush()
    script.answer({PEEKED: Refused(error("LOADING"))})
    script.live_to(PEEKED)
    assert of(script.effects, Confirmed)[-1] == Confirmed(("t1",))
    assert script.in_stream()[0] == "t1"
    script.answer_all()
    assert script.machine.audit.run is None
    assert settled(script) == {}


@pytest.mark.parametrize("phase", [ENTRIES, COUNTER, PAGE, DELAYS, AGAIN, PEEKED])
def test_a_flush_that_nobody_has_noticed_yet_is_no_end(phase: str) -> None:
    """Found nowhere, since Redis was flushed under the live connection: the task is held here, and goes out again."""
    script = audited()
    script.take("t1")
    script.advance_to(phase)
    script.peer.flush()
    script.live(5_000)
    assert script.in_stream()[0] == "t1"
    assert settled(script) == {}


def test_a_flush_before_the_search_is_no_end_either() -> None:
    script = tracking()
    script.peer.flush()
    script.machine.tracker.audit_soon(script.now - 30_000)
    script.say("nobody")
    script.answer(lane=Lane.READ)
    script.live(60_000)
    assert script.in_stream() == ["t1"]
    assert settled(script) == {}


# Outcomes other than Ok: later.


@pytest.mark.parametrize("phase", [ENTRIES, COUNTER, PAGE, DELAYS, AGAIN])
@pytest.mark.parametrize("code", ["LOADING", "NOPERM"])
def test_a_refused_question_is_asked_again_later(phase: str, code: str) -> None:
    script = audited()
    script.take("t1")
    script.advance_to(phase)
    effects = script.answer({phase: Refused(error(code))})
    assert bool(of(effects, Faulted)) is (code == "NOPERM")
    assert script.machine.tracker.audit_at == script.now + 30_000
    assert settled(script) == {}
    script.live(45_000)
    assert settled(script) == {"t1": End.UNKNOWN}
    assert bool(of(script.effects, FaultCleared)) is (code == "NOPERM")


@pytest.mark.parametrize("phase", [ENTRIES, COUNTER, PAGE, DELAYS, AGAIN, PEEKED])
def test_a_question_that_is_never_answered_is_asked_again_later(phase: str) -> None:
    script = audited()
    script.take("t1")
    script.advance_to(phase)
    script.reconnect()
    script.answer_all()
    assert settled(script) == {}
    assert script.machine.audit.run is None
    script.live(45_000)
    assert settled(script) == {"t1": End.UNKNOWN}


STRANGE: dict[str, list[RawReply]] = {
    ENTRIES: [None, 7, [7], [[b"1-0"]], [[b"1-0", 7]]],
    COUNTER: [7, [b"x"]],
    PAGE: [None, 7, [[]] * 50, [7] * 50, [[7, []]] * 50, [[b"1-0"]]],
    DELAYS: [None, 7, [], [b"0"], [0, []], [b"0", 7], [b"0", [7, 8]]],
}


@pytest.mark.parametrize(
    ("phase", "reply"), [(phase, reply) for phase, replies in STRANGE.items() for reply in replies], ids=repr
)
def test_strange_replies_break_nothing(phase: str, reply: RawReply) -> None:
    """What they are taken for: nothing found here, or ask again later."""
    script = audited()
    script.take("t1")
    script.advance_to(phase)
    script.answer({phase: Ok([reply])})
    script.live(60_000)
    assert settled(script) == {"t1": End.UNKNOWN}


# When.


def test_after_a_loss_there_is_a_grace() -> None:
    """For words that are under way."""
    script = tracking(audit_grace_ms=20_000)
    script.take("t1")
    del script.peer.streams[RECEIVER]
    script.peer.groups.clear()
    script.live(10_000)
    began = script.now
    while not settled(script):
        script.live(100)
    assert 20_000 <= script.now - began <= 25_000


@pytest.mark.parametrize("outage", [0, 20_000, 300_000])
@pytest.mark.parametrize("lane", [Lane.COMMAND, Lane.READ])
def test_30_s_after_a_reconnect(lane: Lane, outage: int) -> None:
    """However long the outage was: after the reconnect, words are given the time to arrive."""
    script = tracking(reconnect_audit_ms=30_000)
    script.take("t1")
    script.lose(lane)
    script.pass_time(outage)
    bring_up(script)
    began = script.now
    while not settled(script):
        script.live(100)
    assert 25_000 <= script.now - began <= 31_000, "the lanes may come back some seconds apart"


def test_a_search_that_was_due_during_an_outage_waits_for_the_words_too() -> None:
    script = tracking(reconnect_audit_ms=30_000, audit_grace_ms=20_000)
    script.take("t1")
    script.peer._del(RECEIVER)
    script.live(10_000)
    script.lose()
    script.pass_time(300_000)
    bring_up(script)
    began = script.now
    while not settled(script):
        script.live(100)
    assert 25_000 <= script.now - began <= 31_000


def bring_up(script: ClientScript) -> None:
    """Connect whatever is down, and answer all."""
    for _ in range(10_000):
        connecting = [lane for lane, link in script.machine.links.items() if link.state.value == "connecting"]
        for lane in connecting:
            script.connect(lane)
        if not any(link.state.value == "down" for link in script.machine.links.values()):
            break
        script.pass_time(1)
    script.answer_all()


def test_connections_that_come_and_go_do_not_put_it_off_for_ever() -> None:
    script = tracking(reconnect_audit_ms=30_000)
    script.take("t1")
    for _ in range(4):
        script.lose()
        bring_up(script)
        script.live(9_000)
    assert settled(script) == {"t1": End.UNKNOWN}


def test_a_first_connection_is_no_reconnect() -> None:
    script = tracking()
    assert script.machine.tracker.audit_at == NEVER


def test_handles_older_than_the_interval_are_audited_regularly() -> None:
    """An operator's deletion is visible to nobody."""
    script = tracking(audit_interval_ms=600_000)
    script.take("t1")
    script.live(500_000)
    script.track(b"young")
    script.answer_all()
    script.take("t2")
    script.live(99_000)
    assert settled(script) == {}
    script.live(700_000)
    assert settled(script)["t1"] is End.UNKNOWN
    script.live(600_000)
    assert settled(script) == {"t1": End.UNKNOWN, "t2": End.UNKNOWN}


def test_without_handles_there_is_nothing_to_audit() -> None:
    script = ClientScript()
    script.enqueue(b"a")
    script.start()
    script.reconnect()
    script.live(2_000_000)
    assert phases(script) == []


@pytest.mark.parametrize("change", [lambda script: script.peer.flush(), lambda script: None])
def test_tasks_that_were_never_confirmed_are_not_audited(change: Callable[[ClientScript], None]) -> None:
    """They are in the local queue, or in flight: nobody doubts them."""
    script = tracking()
    script.track(b"b")
    change(script)
    script.answer({BATCH: Refused(error("OOM"))})
    script.machine.tracker.audit_soon(script.now - 30_000)
    for _ in range(40):
        script.pass_time(100)
        if BATCH in script.flight():
            script.answer({BATCH: Refused(error("OOM"))})
        elif script.flight():
            script.answer()
    assert "t2" not in settled(script)
    assert script.held() != []
