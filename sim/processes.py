"""Processes: each runs one machine of the protocol, on a clock of its own, and can be killed, frozen, slowed, closed.

`Process.feed` and `perform` are the simulator's driver, as thin as those of asyncio: one input in, effects out.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from streamfleet_protocol import ClientMachine, ServerMachine
from streamfleet_protocol.effects import (
    Accepted,
    Batch,
    CancelHandler,
    ClientClosed,
    Confirmed,
    Connect,
    Disconnect,
    Effect,
    Faulted,
    Flushed,
    Lane,
    Noted,
    Rejected,
    ServerStopped,
    Settled,
    StartHandler,
)
from streamfleet_protocol.inputs import CloseClient, CloseServer, StartServer, Timeout

from .draws import base
from .plan import ProcessPlan
from .settings import client_settings, worker_settings
from .verdict import Failure

if TYPE_CHECKING:
    from .handlers import Run
    from .network import Wire
    from .world import World

_SPIN = 200
"""More steps than this within one virtual ms are a loop without end."""


class Process:
    """A program with one machine. Started again, it has another incarnation: a new machine, a new identity."""

    def __init__(self, world: World, plan: ProcessPlan, *, is_worker: bool) -> None:
        self.world = world
        self.plan = plan
        self.name = plan.name
        self.is_worker = is_worker
        self.incarnation = 0
        self.machine: ClientMachine | ServerMachine | None = None
        self.wires: dict[Lane, Wire] = {}
        self.runs: dict[int, Run] = {}
        self.frozen = False
        self.thaws_at = 0
        self.slow_ms = 0
        self.slow_until = 0
        self.queued = 0
        """Inputs that a slow loop has not come to."""
        self.queued_until = 0
        """When the slow loop comes to the last input that waits."""
        self.closing = False
        self.done = False
        """It was closed, and is not started again."""
        self.inbox: deque[tuple[str, Any]] = deque()
        """What came while it was frozen."""
        self.timer_at = -1
        """World time of the timer that is set; -1 = none."""
        self.wall_ms = plan.wall_ms
        self.steps_at = (-1, 0)

    @property
    def alive(self) -> bool:
        """Whether it runs, frozen or not."""
        return self.machine is not None

    @property
    def identity(self) -> str:
        """Name and incarnation; the id of a client, the consumer name of a worker."""
        return f"{self.name}:{self.incarnation}"

    # Clocks.

    def clock(self) -> int:
        """What its monotonic clock shows."""
        now = self.world.now
        return self.plan.origin_ms + now + now * self.plan.drift_ppm // 1_000_000

    def world_time(self, own: int) -> int:
        """The first virtual ms at which its clock shows `own`."""
        elapsed = own - self.plan.origin_ms
        guess = elapsed * 1_000_000 // (1_000_000 + self.plan.drift_ppm) - 1
        while guess + guess * self.plan.drift_ppm // 1_000_000 < elapsed:
            guess += 1
        return guess

    # Life.

    def start(self) -> None:
        """Start, or start again."""
        if self.machine is not None or self.done:
            return
        self.incarnation += 1
        self.closing = False
        self.queued = self.queued_until = 0
        seed = base(self.world.plan.seed, "entropy", self.identity)
        self.world.trace(self.name, "start", self.incarnation)
        if self.is_worker:
            self.machine = ServerMachine(worker_settings(self.world.plan, self.plan, self.identity, seed))
            self.world.ledger.started(self)
            self.feed(StartServer())
        else:
            self.machine = ClientMachine(client_settings(self.world.plan, self.plan, self.identity, seed))
            self.world.ledger.started(self)

    def kill(self) -> None:
        """The operating system ends it: what is in the sockets still arrives, nothing else is left."""
        if self.machine is None:
            return
        self.world.trace(self.name, "killed", self.incarnation)
        self._end("killed")

    def _end(self, why: str) -> None:
        self.machine = None
        self.frozen = False
        self.inbox.clear()
        self.timer_at = -1
        for run in self.runs.values():
            run.end(self.world.now, why)
        self.runs.clear()
        for wire in list(self.wires.values()):
            self.world.network.abandon(wire)
        self.wires.clear()
        self.world.ledger.ended(self, why)

    def freeze(self, for_ms: int) -> None:
        """It does nothing for a while; its sockets stay, and fill. Negative: for good."""
        if self.machine is None:
            return
        thaws_at = 1 << 60 if for_ms < 0 else self.world.now + for_ms
        self.thaws_at = max(thaws_at, self.thaws_at) if self.frozen else thaws_at
        self.frozen = True
        self.world.ledger.out_of_touch(self)
        self.world.trace(self.name, "frozen", for_ms)
        if for_ms >= 0:
            self.world.agenda.at(self.thaws_at, self, "thaw", self.incarnation)

    def thaw(self, incarnation: int) -> None:
        """It goes on, with all that came meanwhile."""
        if not self.frozen or self.incarnation != incarnation or self.world.now < self.thaws_at:
            return
        self.frozen = False
        self.world.trace(self.name, "thawed", None)
        while self.inbox and not self.frozen and self.machine is not None:
            kind, what = self.inbox.popleft()
            if kind == "send":
                self._send(*what)
            elif kind == "enqueue":
                self.world.enqueue(what)
            else:
                self.feed(what)
        if not self.frozen and self.machine is not None:
            self._set_timer()

    def close(self, ms: int) -> None:
        """Close it in an orderly way: the grace of a worker, the timeout of a client."""
        if self.machine is None or self.closing:
            return
        self.closing = True
        self.world.ledger.closing(self, ms)
        self.feed(CloseServer(ms) if self.is_worker else CloseClient(ms))

    # The driver.

    def feed(self, event: Any) -> None:
        """Give an input to the machine, and do what it wants."""
        machine = self.machine
        world = self.world
        if machine is None:
            return
        if self.frozen:
            if type(event) is not Timeout:
                self.inbox.append(("feed", event))
            return
        if world.tracing:
            world.trace(self.name, "input", event)
        at, steps = self.steps_at
        steps = steps + 1 if at == world.now else 1
        self.steps_at = (world.now, steps)
        if steps > _SPIN:
            world.fail(
                "busy loop", Failure.LIVENESS, f"{self.name} takes its {steps}th step within one ms, on {event!r}"
            )
        world.steps += 1
        incarnation = self.incarnation
        for effect in machine.step(self.clock(), event):
            if world.tracing:
                world.trace(self.name, "effect", effect)
            perform = _PERFORM.get(type(effect))
            if perform is not None:
                perform(self, effect)
            if self.incarnation != incarnation or self.machine is None:
                return
        world.oracles.after_step(self)
        self._set_timer()

    def feed_later(self, event: Any, incarnation: int) -> None:
        """An input that a slow loop comes to only now."""
        if self.incarnation == incarnation:
            self.queued -= 1
            self.world.ledger.out_of_touch(self)
            self.feed(event)

    def deliver(self, event: Any, incarnation: int) -> None:
        """An input from outside: it waits for a slow loop."""
        if self.incarnation != incarnation or self.machine is None:
            return
        now = self.world.now
        at = now + self.slow_ms if now < self.slow_until and not self.frozen else now
        if at > now or self.queued:
            # Nothing overtakes what waits already.
            self.queued += 1
            self.queued_until = max(at, self.queued_until)
            self.world.agenda.at(self.queued_until, self, "feed_later", event, incarnation)
        else:
            self.feed(event)

    def _set_timer(self) -> None:
        machine = self.machine
        assert machine is not None
        due = machine.next_timeout()
        if due is None:
            return
        at = max(self.world.now, self.world_time(due))
        if self.timer_at < 0 or at < self.timer_at:
            self.timer_at = at
            self.world.agenda.at(at, self, "wake", at, self.incarnation)

    def wake(self, at: int, incarnation: int) -> None:
        """The timer is over."""
        if incarnation != self.incarnation or at != self.timer_at or self.machine is None:
            return
        self.timer_at = -1
        if self.frozen:
            return
        due = self.machine.next_timeout()
        if due is not None and due <= self.clock():
            self.deliver(Timeout(), incarnation)
        else:
            self._set_timer()

    def _connect(self, effect: Connect) -> None:
        self.world.network.dial(self, effect.lane, effect.generation)

    def _disconnect(self, effect: Disconnect) -> None:
        wire = self.wires.pop(effect.lane, None)
        if wire is not None:
            self.world.network.hang_up(wire)

    def _batch(self, batch: Batch) -> None:
        faults = self.world.faults
        if faults.armed:
            faults.before_send(self, batch)
        self._send(batch, self.incarnation)

    def _send(self, batch: Batch, incarnation: int) -> None:
        if self.machine is None or incarnation != self.incarnation:
            return
        if self.frozen:
            self.inbox.append(("send", (batch, incarnation)))
            return
        wire = self.wires.get(batch.lane)
        if wire is not None:
            self.world.network.send(wire, batch)

    def _noted(self, effect: Noted) -> None:
        self.world.ledger.noted(self, effect.note)

    def _start_handler(self, effect: StartHandler) -> None:
        self.world.handlers.start(self, effect)

    def _cancel_handler(self, effect: CancelHandler) -> None:
        run = self.runs.get(effect.run)
        if run is not None:
            self.world.handlers.cancel(self, run, effect.reason)

    def _accepted(self, effect: Accepted | Rejected) -> None:
        self.world.ledger.answered(self, effect)

    def _flushed(self, effect: Flushed) -> None:
        self.world.ledger.flushed(self, effect)

    def _confirmed(self, effect: Confirmed) -> None:
        self.world.ledger.told_confirmed(self, effect)

    def _settled(self, effect: Settled) -> None:
        self.world.ledger.settled(self, effect)

    def _faulted(self, effect: Faulted) -> None:
        self.world.ledger.faulted(self, effect.error)

    def _stopped(self, effect: ServerStopped | ClientClosed) -> None:
        self.world.ledger.stopped(self, effect)
        supervised = self.is_worker and not self.closing
        self._end("stopped")
        if supervised:
            # A person cures the cause, a supervisor starts it again.
            self.world.agenda.at(self.world.now + 1_000, self, "start")


_PERFORM: dict[type[Effect], Any] = {
    Connect: Process._connect,
    Disconnect: Process._disconnect,
    Batch: Process._batch,
    Noted: Process._noted,
    StartHandler: Process._start_handler,
    CancelHandler: Process._cancel_handler,
    Accepted: Process._accepted,
    Rejected: Process._accepted,
    Confirmed: Process._confirmed,
    Flushed: Process._flushed,
    Settled: Process._settled,
    Faulted: Process._faulted,
    ServerStopped: Process._stopped,
    ClientClosed: Process._stopped,
}
