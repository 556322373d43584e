"""Time and chance as values: random bits from a seed, back-off, and Redis's clock as an offset to the own one.

All times are whole milliseconds. `now` is the machine's own monotonic clock, which comes in with each input.
"""

from __future__ import annotations

from dataclasses import dataclass

from .replies import RawReply

NEVER = 2**62
"""A time that does not come."""
_TIME_DIGITS = 18


@dataclass(slots=True)
class Entropy:
    """A small generator (SplitMix64: Steele, Lea, Flood 2014); its whole state is one number."""

    state: int

    def below(self, bound: int) -> int:
        """A whole number from 0 to `bound` - 1; 0 where there is no room for chance."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        bits = self.state
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        return (bits ^ (bits >> 31)) % max(1, bound)

    def upper_half(self, span_ms: int) -> int:
        """`span_ms` with full jitter on its upper half."""
        half = span_ms // 2
        return half + self.below(span_ms - half + 1)


@dataclass(slots=True)
class Backoff:
    """Jittered exponential back-off of one kind of operation."""

    least_ms: int
    most_ms: int
    attempts: int = 0
    until: int = 0
    """Not before this time."""

    def failed(self, now: int, entropy: Entropy) -> int:
        """Count a failure; the time of the next attempt."""
        span = min(self.most_ms, self.least_ms << min(self.attempts, 20))
        self.attempts += 1
        self.until = now + max(1, entropy.upper_half(span))
        return self.until

    def succeeded(self) -> None:
        """Begin anew."""
        self.attempts = 0
        self.until = 0


@dataclass(slots=True)
class RedisClock:
    """Redis's wall clock, kept as an offset to the own one; no other wall clock is ever looked at."""

    offset_ms: int | None = None

    def learn(self, redis_ms: int, answered_at: int) -> None:
        """Take a TIME reply. It was executed before `answered_at`, so the offset is a lower bound."""
        self.offset_ms = redis_ms - answered_at

    def read(self, now: int) -> int:
        """Redis's time at `now`, at the least. Only after the first `learn`."""
        assert self.offset_ms is not None
        return now + self.offset_ms

    def own(self, redis_ms: int) -> int:
        """The own time at which Redis's clock has surely reached `redis_ms`; NEVER while it is not known."""
        return NEVER if self.offset_ms is None else redis_ms - self.offset_ms


def milliseconds(reply: RawReply) -> int | None:
    """A TIME reply in Unix ms; None where it is something else."""
    if not isinstance(reply, list | tuple) or len(reply) != 2:
        return None
    seconds, micros = reply
    if not isinstance(seconds, bytes) or not isinstance(micros, bytes):
        return None
    if not (seconds.isdigit() and micros.isdigit()) or len(seconds) + len(micros) > _TIME_DIGITS:
        return None
    return int(seconds) * 1000 + int(micros) // 1000
