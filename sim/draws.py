"""Chance by stable names: a draw depends on the seed and on the names it is for, and on nothing that was drawn before.

So an item that is taken out of a plan, or a draw that is added to the simulator, moves no other draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")
_MASK = 0xFFFFFFFFFFFFFFFF


def base(seed: int, *names: str | int) -> int:
    """64 bits for these names."""
    text = "\x1f".join(map(str, (seed, *names)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def mix(start: int, number: int) -> int:
    """64 bits for a base and a number, a virtual time for example (the finisher of SplitMix64); cheap."""
    bits = (start + number * 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


class Draws:
    """Draws under a common name; every draw is named, too."""

    __slots__ = ("names", "seed")

    def __init__(self, seed: int, *names: str | int) -> None:
        self.seed = seed
        self.names = names

    def under(self, *names: str | int) -> Draws:
        """Draws under a longer name."""
        return Draws(self.seed, *self.names, *names)

    def below(self, bound: int, *names: str | int) -> int:
        """From 0 to `bound` - 1."""
        return base(self.seed, *self.names, *names) % bound

    def between(self, least: int, most: int, *names: str | int) -> int:
        """Both ends included."""
        return least + self.below(most - least + 1, *names)

    def happens(self, percent: float, *names: str | int) -> bool:
        """True in about `percent` of the draws."""
        return self.below(1_000_000, *names) < percent * 10_000

    def pick(self, choices: Sequence[T], *names: str | int) -> T:
        """One of them; what stands there twice comes twice as often."""
        return choices[self.below(len(choices), *names)]

    def some(self, choices: Sequence[T], percent: float, *names: str | int) -> list[T]:
        """Each with this probability, by its own text."""
        return [choice for choice in choices if self.happens(percent, *names, str(choice))]
