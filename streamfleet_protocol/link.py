"""One lane's connection as a state: down, connecting, up; one batch in flight; deadlines on the own clock.

Owns when to connect, when to give a batch up, and how long to back off. Does not know what the batches mean. A batch
is made of sections; each section has an outcome of its own, and goes back to the part of the machine that asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .commands import EXEC, MULTI, Command
from .effects import Batch, Connect, Disconnect, Effect, Lane, Noted
from .errors import check
from .notes import ConnectionDown, Reconnected
from .replies import ErrorReply, Outcome, RawReply, plain_outcome, transaction_outcome
from .timing import NEVER, Backoff, Entropy


@dataclass(frozen=True, slots=True)
class Section:
    """Commands of a batch that belong together: either one transaction, or plain commands.

    `handler` names the part of the machine and its method that takes the outcome; `context` is what it needs then.
    """

    handler: tuple[str, str]
    commands: tuple[Command, ...]
    context: Any = None

    def outcome(self, replies: Sequence[RawReply]) -> Outcome:
        """The outcome from this section's own replies."""
        return transaction_outcome(replies) if self.commands[0] == MULTI else plain_outcome(replies)


@dataclass(slots=True)
class Write:
    """A batch in the making. Any EXEC ends all WATCHes of its connection, so the order is fixed:

    `first`, the guarded EXEC whose question was asked one write earlier; `middle`, all that guards nothing;
    `question`, whose WATCH must stand after every EXEC of its own write.
    """

    first: list[Section] = field(default_factory=list)
    middle: list[Section] = field(default_factory=list)
    question: list[Section] = field(default_factory=list)

    @property
    def sections(self) -> tuple[Section, ...]:
        """All sections, in the order in which they are written."""
        return (*self.first, *self.middle, *self.question)


class LinkState(Enum):
    """Where a lane's connection is."""

    IDLE = "idle"
    """Not wanted."""
    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"


@dataclass(slots=True)
class Link:
    """The state of one lane."""

    lane: Lane
    connect_timeout_ms: int
    backoff: Backoff
    state: LinkState = LinkState.IDLE
    generation: int = 0
    deadline: int = NEVER
    """DOWN: time of the next attempt; CONNECTING, or UP with a batch in flight: when it is given up."""
    token: int = 0
    """Of the batch in flight, 0 = none."""
    batches: int = 0
    in_flight: tuple[Section, ...] = ()
    down_since: int = NEVER

    @property
    def ready(self) -> bool:
        """Whether a batch may be written."""
        return self.state is LinkState.UP and not self.token

    def open(self, now: int, effects: list[Effect]) -> None:
        """Begin to want a connection."""
        if self.state is LinkState.IDLE:
            self._connect(now, effects)

    def close(self, effects: list[Effect]) -> tuple[Section, ...]:
        """Want no connection any more. Returns the sections whose outcome is now Unknown."""
        if self.state in (LinkState.UP, LinkState.CONNECTING):
            effects.append(Disconnect(self.lane, self.generation))
        return self._reset(LinkState.IDLE, NEVER)

    def due(self, now: int, effects: list[Effect]) -> ErrorReply | None:
        """Time has passed: connect again where that is due. Returns the reason why the connection is to be dropped."""
        if now < self.deadline:
            return None
        if self.state is LinkState.DOWN:
            self._connect(now, effects)
            return None
        what = "to connect" if self.state is LinkState.CONNECTING else "for an answer"
        return ErrorReply(f"TIMEOUT waited too long {what}")

    def connected(self, now: int, generation: int, effects: list[Effect]) -> bool:
        """The connection stands; False where this is old news."""
        if self.state is not LinkState.CONNECTING or generation != self.generation:
            return False
        self.state = LinkState.UP
        self.deadline = NEVER
        if self.down_since != NEVER:
            effects.append(Noted(Reconnected(self.lane.value, now - self.down_since)))
        return True

    def concerns(self, generation: int) -> bool:
        """Whether news of this generation's connection still matter."""
        return generation == self.generation and self.state in (LinkState.UP, LinkState.CONNECTING)

    def drop(
        self, now: int, error: ErrorReply, entropy: Entropy, effects: list[Effect], *, closed: bool
    ) -> tuple[Section, ...]:
        """The connection is lost or no longer wanted (`closed`: the driver knows). Connect again after a back-off.

        Returns the sections whose outcome is now Unknown.
        """
        if not closed:
            effects.append(Disconnect(self.lane, self.generation))
        if self.down_since == NEVER:
            self.down_since = now
        retry_at = self.backoff.failed(now, entropy)
        effects.append(Noted(ConnectionDown(self.lane.value, error.text, retry_at - now)))
        return self._reset(LinkState.DOWN, retry_at)

    def send(self, now: int, sections: tuple[Section, ...], timeout_ms: int, slot: int) -> Batch:
        """Put a batch in flight."""
        check(self.ready, "a lane has one batch in flight", self.lane)
        check(bool(sections), "a batch is not empty", self.lane)
        self.batches += 1
        # One bit tells the lanes apart, so that a token is unique in its machine.
        self.token = self.batches * 2 + (self.lane is Lane.READ)
        self.in_flight = sections
        self.deadline = now + timeout_ms
        purposes = tuple(".".join(section.handler) for section in sections)
        commands = tuple(command for section in sections for command in section.commands)
        return Batch(self.token, self.lane, slot, purposes, commands)

    def take(self, token: int, replies: Sequence[RawReply]) -> list[tuple[Section, Outcome]]:
        """The batch is answered: its sections with their outcomes. Empty where the token is an old one."""
        if token != self.token or not token:
            return []
        sections = self.in_flight
        check(len(replies) == sum(len(section.commands) for section in sections), "one reply a command", len(replies))
        self.token = 0
        self.in_flight = ()
        self.deadline = NEVER
        answered: list[tuple[Section, Outcome]] = []
        at = 0
        for section in sections:
            end = at + len(section.commands)
            answered.append((section, section.outcome(replies[at:end])))
            at = end
        return answered

    def works(self) -> None:
        """An answer has shown that the connection is of use: the next loss backs off from the start."""
        self.backoff.succeeded()
        self.down_since = NEVER

    def _connect(self, now: int, effects: list[Effect]) -> None:
        self.generation += 1
        self.state = LinkState.CONNECTING
        self.deadline = now + self.connect_timeout_ms
        effects.append(Connect(self.lane, self.generation))

    def _reset(self, state: LinkState, deadline: int) -> tuple[Section, ...]:
        sections, self.in_flight = self.in_flight, ()
        self.token = 0
        self.state = state
        self.deadline = deadline
        return sections


def transaction_section(handler: tuple[str, str], commands: Sequence[Command], context: Any = None) -> Section:
    """A section of one MULTI/EXEC."""
    return Section(handler, (MULTI, *commands, EXEC), context)
