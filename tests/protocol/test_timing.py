"""Chance, back-off and Redis's clock, as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfleet_protocol.replies import ErrorReply, RawReply
from streamfleet_protocol.timing import NEVER, Backoff, Entropy, RedisClock, milliseconds

seeds = st.integers(0, 2**64 - 1)


def test_entropy_is_splitmix64() -> None:
    """The reference implementation's first numbers for the seed 1234567."""
    entropy = Entropy(1234567)
    drawn = [entropy.below(2**64) for _ in range(3)]
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seeds, st.lists(st.integers(-5, 10**6), max_size=20))
def test_equal_seeds_draw_equally(seed: int, bounds: list[int]) -> None:
    one, other = Entropy(seed), Entropy(seed)
    assert [one.below(bound) for bound in bounds] == [other.below(bound) for bound in bounds]
    assert one == other


@given(seeds, st.integers(1, 10**9))
def test_draws_are_below_the_bound(seed: int, bound: int) -> None:
    assert 0 <= Entropy(seed).below(bound) < bound


def test_without_room_for_chance_there_is_none() -> None:
    assert Entropy(1).below(0) == Entropy(1).below(-3) == Entropy(1).below(1) == 0


@given(seeds, st.integers(0, 10**9))
def test_jitter_is_on_the_upper_half(seed: int, span: int) -> None:
    assert span // 2 <= Entropy(seed).upper_half(span) <= span


@given(seeds, st.integers(1, 1000), st.integers(1, 100_000), st.integers(0, 10**12))
def test_backoff_is_bounded(seed: int, least: int, most: int, now: int) -> None:
    """Each wait is in the upper half of the span, which doubles up to the most; never 0, or the driver would spin."""
    entropy, backoff = Entropy(seed), Backoff(least, most)
    for attempt in range(30):
        span = min(most, least * 2**attempt)
        until = backoff.failed(now, entropy)
        assert backoff.until == until
        assert max(1, span // 2) <= until - now <= max(1, span)


def test_backoff_begins_anew_after_a_success() -> None:
    entropy, backoff = Entropy(3), Backoff(100, 10_000)
    for _ in range(10):
        backoff.failed(0, entropy)
    assert backoff.until > 4_000
    backoff.succeeded()
    assert backoff.until == 0
    assert backoff.failed(0, entropy) <= 100


def test_redis_clock_is_an_offset() -> None:
    clock = RedisClock()
    assert clock.own(5_000) == NEVER
    clock.learn(1_000_000, 400)
    assert clock.read(400) == 1_000_000
    assert clock.read(500) == 1_000_100
    assert clock.own(1_000_100) == 500
    clock.learn(900_000, 600)
    assert clock.read(600) == 900_000


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ([b"1700000000", b"123456"], 1_700_000_000_123),
        ((b"0", b"999"), 0),
        ([b"5", b"1000"], 5_001),
    ],
)
def test_a_time_reply_in_milliseconds(reply: RawReply, expected: int) -> None:
    assert milliseconds(reply) == expected


@pytest.mark.parametrize(
    "reply",
    [
        *(None, 5, b"17", [], [b"1"], [b"1", b"2", b"3"], [1, 2], [b"1", None], [b"x", b"1"], [b"1", b""]),
        *([b"-1", b"0"], [b"1.5", b"0"], [b"9" * 5000, b"0"], ErrorReply("ERR no"), [[b"1"], [b"2"]]),
    ],
    ids=repr,
)
def test_what_is_no_time_is_none(reply: RawReply) -> None:
    assert milliseconds(reply) is None
