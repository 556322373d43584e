"""What the client's and the server's machine share: the one door, the lanes, and the way of an outcome to its part.

A machine is composed of parts. A part offers `compose(now, write)`, which adds sections to the next batch of the
command lane, `due_at()`, the time from which it has something to add, and one method for each kind of outcome. The two
must agree: where a part is due, a batch must come out, else the driver would spin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .effects import Effect, FaultCleared, Faulted, Lane, Noted
from .errors import check
from .inputs import Connected, Disconnected, Reply, Several, Timeout
from .link import Link, LinkState, Section, Write
from .notes import Note, OperationRefused
from .replies import Aborted, ErrorReply, Outcome, Remedy, Unknown, remedy_for
from .snapshot import freeze, thaw
from .timing import NEVER, Backoff, Entropy, RedisClock

_CONNECTING = "connecting"
_NO_SENSE = ErrorReply("CONNECTION EXEC was answered with what no server answers")


@dataclass(slots=True)
class Shared:
    """What all parts of one machine use."""

    entropy: Entropy
    clock: RedisClock
    effects: list[Effect] = field(default_factory=list)
    fault: ErrorReply | None = None
    fault_of: str = ""
    """The operation that met the fault; its success ends it."""
    fault_is_fresh: bool = False
    """It was met again since the last heartbeat."""
    drop: list[tuple[Lane, ErrorReply]] = field(default_factory=list)
    """Connections that an answer has shown to be of no use."""
    guarded: Section | None = None
    """The guarded EXEC whose question was just answered; it must be the first EXEC of the very next write."""

    def note(self, note: Note) -> None:
        """Tell a person."""
        self.effects.append(Noted(note))

    def refused(self, operation: str, error: ErrorReply, lane: Lane = Lane.COMMAND) -> Remedy:
        """An operation was refused: do what every refusal of this kind leads to, and say which kind it is."""
        remedy = remedy_for(error)
        if remedy is Remedy.RAISE:
            self.faulted(operation, error)
            return remedy
        self.note(OperationRefused(operation, error.text))
        if remedy is Remedy.RECONNECT:
            self.drop.append((lane, error))
        return remedy

    def faulted(self, operation: str, error: ErrorReply) -> None:
        """A person must act."""
        self.fault_of = operation
        self.fault_is_fresh = True
        if self.fault != error:
            self.fault = error
            self.effects.append(Faulted(error))

    def works(self, operation: str) -> None:
        """The operation is not refused any more."""
        if self.fault is not None and self.fault_of == operation:
            self._clear()

    def outlive_fault(self) -> None:
        """A heartbeat worked: a fault that was not met since the last one is over, also where nobody tries again."""
        if self.fault is not None and not self.fault_is_fresh:
            self._clear()
        self.fault_is_fresh = False

    def _clear(self) -> None:
        self.fault = None
        self.effects.append(FaultCleared())


Input = TypeVar("Input")


class Part(Protocol):
    """What composes the batches of the command lane."""

    def due_at(self) -> int:
        """From when `compose` adds something, while the lane is free."""

    def compose(self, now: int, write: Write) -> None:
        """Add sections, if something is due."""


class Machine(Generic[Input]):
    """Base of the two machines; subclasses fill in the hooks below."""

    shared: Shared
    links: dict[Lane, Link]

    def __init__(self, seed: int, connect_timeout_ms: int, backoffs: dict[Lane, Backoff]) -> None:
        self.shared = Shared(Entropy(seed), RedisClock())
        self.links = {lane: Link(lane, connect_timeout_ms, backoff) for lane, backoff in backoffs.items()}
        self.command = self.links[Lane.COMMAND]
        self.now = 0
        self.due = NEVER
        self.broken = False
        self.command_timeout_ms = 0
        self.slot = 0
        self.compose_at: int | None = None
        """From when the parts have something for the free command lane, where this step has asked them already."""

    # The one door.

    def step(self, now: int, event: Input) -> list[Effect]:
        """Take one input at the time `now` (ms, monotonic, from any origin); what is to be done, in causal order.

        Raises InvariantBroken for a bug, and then at every further call.
        """
        if self.broken or now < self.now:
            check(not self.broken, "the machine is broken by an earlier error")
            check(False, "time does not go back", now, self.now)
        self.now = now
        try:
            if now > self.due:
                self._on_late(now, now - self.due)
            if now >= self.due or not self._take_lightly(now, event):
                self._dispatch(now, event)
                self._on_time(now)
                self._drop_useless(now)
                self._pump(now)
                self.due = max(now, self._earliest())
                self.compose_at = None
        except Exception:
            self.broken = True
            raise
        effects, self.shared.effects = self.shared.effects, []
        return effects

    def next_timeout(self) -> int | None:
        """When to call `step` with Timeout at the latest, in the time of `step`; None: not until another input."""
        return None if self.due >= NEVER else self.due

    def snapshot(self) -> object:
        """The whole state as a hashable value; equal states give equal values."""
        return freeze(self)

    @staticmethod
    def restore(snapshot: object) -> Machine[Input]:
        """A machine with the state of a snapshot."""
        machine = thaw(snapshot)
        assert isinstance(machine, Machine)
        return machine

    # Hooks.

    def _take_lightly(self, now: int, event: Input) -> bool:
        """Take an input after which nothing else can be done while nothing is due; False where there may be more.

        For the inputs that come most often: the rest of a step costs several times as much as they do.
        """
        return False

    def _on_input(self, now: int, event: Input) -> None:
        raise NotImplementedError

    def _on_time(self, now: int) -> None:
        """Something may be due that needs no lane."""
        raise NotImplementedError

    def _on_up(self, now: int, lane: Lane) -> None:
        raise NotImplementedError

    def _on_lost(self, now: int, lane: Lane) -> None:
        """The lane's connection is gone; its sections have been answered with Unknown already."""
        raise NotImplementedError

    def _on_late(self, now: int, late_ms: int) -> None:
        """The driver has called later than it was asked to."""

    def _due_at(self) -> int:
        """When something is due that needs no lane."""
        raise NotImplementedError

    def _compose_due_at(self) -> int:
        """When some part has something for the free command lane."""
        raise NotImplementedError

    def _compose(self, now: int, write: Write) -> None:
        """Let each part add to the next batch of the free command lane."""
        raise NotImplementedError

    def _pump_reads(self, now: int) -> None:
        """Use the read lane where it is free."""
        raise NotImplementedError

    # The way of an input.

    def _dispatch(self, now: int, event: Input | Timeout | Connected | Disconnected | Reply | Several) -> None:
        if isinstance(event, Reply):
            self._on_reply(now, event)
        elif isinstance(event, Several):
            for one in event.inputs:
                self._on_input(now, one)
        elif isinstance(event, Timeout):
            pass
        elif isinstance(event, Connected):
            if self.links[event.lane].connected(now, event.generation, self.shared.effects):
                self.shared.works(_CONNECTING)
                self._on_up(now, event.lane)
        elif isinstance(event, Disconnected):
            if self.links[event.lane].concerns(event.generation):
                if remedy_for(event.error) is Remedy.RAISE:
                    self.shared.faulted(_CONNECTING, event.error)
                self._drop(now, event.lane, event.error, closed=True)
        else:
            self._on_input(now, event)

    def _on_reply(self, now: int, reply: Reply) -> None:
        for lane, link in self.links.items():
            answered = link.take(reply.token, reply.replies)
            if answered:
                for section, outcome in answered:
                    if isinstance(outcome, Unknown):
                        self.shared.drop.append((lane, _NO_SENSE))
                    self._answer(now, section, outcome)
                if not any(dropped is lane for dropped, _ in self.shared.drop):
                    link.works()
                return

    def _answer(self, now: int, section: Section, outcome: Outcome) -> None:
        part, method = section.handler
        getattr(getattr(self, part), method)(now, outcome, section.context)

    def _drop(self, now: int, lane: Lane, error: ErrorReply, *, closed: bool) -> None:
        link = self.links[lane]
        for section in link.drop(now, error, self.shared.entropy, self.shared.effects, closed=closed):
            self._answer(now, section, Unknown())
        guarded = self.shared.guarded
        if lane is Lane.COMMAND and guarded is not None:
            # A guarded EXEC that was to be written next never will be: its part must know, or it waits for ever.
            self.shared.guarded = None
            self._answer(now, guarded, Aborted())
        self._on_lost(now, lane)

    def _drop_useless(self, now: int) -> None:
        for lane, link in self.links.items():
            if now >= link.deadline:
                error = link.due(now, self.shared.effects)
                if error is not None:
                    self._drop(now, lane, error, closed=False)
        while self.shared.drop:
            lane, error = self.shared.drop.pop(0)
            if self.links[lane].state is LinkState.UP:
                self._drop(now, lane, error, closed=False)

    def _pump(self, now: int) -> None:
        shared = self.shared
        link = self.command
        self.compose_at = None
        if link.ready:
            due = 0 if shared.guarded is not None else self._compose_due_at()
            if now >= due:
                write = Write()
                if shared.guarded is not None:
                    write.first.append(shared.guarded)
                    shared.guarded = None
                self._compose(now, write)
                if write.sections:
                    shared.effects.append(link.send(now, write.sections, self.command_timeout_ms, self.slot))
            else:
                self.compose_at = due
        effects = len(shared.effects)
        self._pump_reads(now)
        if len(shared.effects) != effects:
            self.compose_at = None

    def _earliest(self) -> int:
        due = self._due_at()
        for link in self.links.values():
            if link.deadline < due:
                due = link.deadline
        if self.command.ready:
            due = min(due, self._compose_due_at() if self.compose_at is None else self.compose_at)
        return due
