"""The collector by itself; see client/test_collection.py for what it does."""

from __future__ import annotations

from streamfleet_protocol.commands import watch
from streamfleet_protocol.garbage import Garbage
from streamfleet_protocol.keys import queue_keys
from streamfleet_protocol.link import Section, Write
from streamfleet_protocol.machine import Shared
from streamfleet_protocol.timing import Backoff, Entropy, RedisClock


def test_a_write_that_asks_already_is_not_asked_for_more() -> None:
    """Two questions would share one EXEC; the suspect waits for the next write."""
    shared = Shared(Entropy(1), RedisClock())
    garbage = Garbage(
        shared, [queue_keys("jobs")], b"me", silence_ms=1, producer_silence_ms=1, interval_ms=1, backoff=Backoff(1, 1)
    )
    garbage.suspects.append((0, b"dead"))
    asking = Section(("reclaim", "on_question"), (watch(b"fence"),))
    write = Write(question=[asking])
    garbage.compose(5, write)
    assert write.sections == (asking,)
    assert garbage.due_at() <= 5
    write = Write()
    garbage.compose(5, write)
    assert [section.handler[1] for section in write.sections] == ["on_deleted", "on_score"]
