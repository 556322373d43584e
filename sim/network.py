"""Connections between processes and servers: latency, and every way in which they fail.

Each lane has one batch in flight, so a direction carries one message at a time. A cut has four forms: the batch is lost
(`before`), its reply is (`lost`), only its first commands are executed (`prefix`), or all of it is executed later, once
the next connection stands (`late`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamfleet_protocol.effects import Batch, Lane
from streamfleet_protocol.inputs import Connected, Disconnected, Reply
from streamfleet_protocol.replies import ErrorReply

from .draws import base, mix
from .site import Host

if TYPE_CHECKING:
    from streamfleet_protocol.commands import Command

    from .ledger import Loss, TaskRecord
    from .plan import FaultPlan
    from .processes import Process
    from .redis_model import Connection
    from .world import World

REFUSED = ErrorReply("CONNECTION refused")
RESET = ErrorReply("CONNECTION reset by peer")
_LATE_AT_LAST_MS = 20_000
_EXEC = (b"EXEC",)


class Wire:
    """One connection: the process's end, and the server's."""

    __slots__ = (
        "batch",
        "blocked",
        "expected",
        "failed",
        "generation",
        "host",
        "incarnation",
        "lane",
        "late",
        "late_letters",
        "late_purpose",
        "late_successors",
        "lose_reply",
        "open",
        "process",
        "replies",
        "rest",
        "seed",
        "session",
        "silent",
        "stored",
    )

    def __init__(self, process: Process, lane: Lane, generation: int, host: Host, session: Connection, seed: int):
        self.process = process
        self.lane = lane
        self.generation = generation
        self.incarnation = process.incarnation
        self.host = host
        self.session = session
        self.seed = seed
        self.open = True
        """The process has not closed it, and does not know of its end."""
        self.silent = False
        """Half open: nothing arrives any more, in either direction, and nobody is told."""
        self.batch: Batch | None = None
        self.replies: list[Any] = []
        self.expected = 0
        self.rest: tuple[Command, ...] = ()
        """What waits behind a blocked command, or is in the pipe."""
        self.blocked = False
        self.lose_reply = False
        self.late_purpose = ""
        """With a purpose: perhaps only when the process writes the same again."""
        self.late: tuple[Command, ...] = ()
        """To be executed when the next connection of the lane stands."""
        self.failed: list[Loss] = []
        """Tasks that a transaction of the batch in flight has failed to put where they go."""
        self.late_successors: list[tuple[str, int]] = []
        """Successors that the batch in flight has put in behind a success that had been settled."""
        self.late_letters: list[tuple[TaskRecord, tuple[int, str]]] = []
        """Dead letters that it has put in behind one."""
        self.stored: list[tuple[str, int]] = []
        """Tasks that the batch in flight has put into Redis."""


class Network:
    """All wires."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.by_session: dict[tuple[int, int], Wire] = {}
        self.late: dict[tuple[str, Lane], list[Wire]] = {}
        """Cut off, with bytes that are executed once the lane's next connection stands."""
        self.late_with: dict[tuple[str, Lane], list[Wire]] = {}
        """Of these, those that wait until the process writes the same again, and come just before it or just after."""
        self.seeds: dict[tuple[str, Lane], int] = {}

    def latency(self, wire_seed: int, process: Process) -> int:
        """Of one message now: ms."""
        plan = self.world.plan
        now = self.world.now
        extra = self.world.faults.extra_latency(process)
        if plan.jitter_ms:
            extra += mix(wire_seed, now) % (plan.jitter_ms + 1)
        return plan.latency_ms + extra

    def _seed(self, process: Process, lane: Lane) -> int:
        key = (process.name, lane)
        seed = self.seeds.get(key)
        if seed is None:
            seed = self.seeds[key] = base(self.world.plan.seed, "wire", process.name, lane.value)
        return seed

    # Opening.

    def dial(self, process: Process, lane: Lane, generation: int) -> None:
        """The process wants a connection."""
        latency = self.latency(self._seed(process, lane), process)
        self.world.agenda.at(self.world.now + latency, self, "arrive", process, lane, generation, process.incarnation)

    def arrive(self, process: Process, lane: Lane, generation: int, incarnation: int) -> None:
        """The attempt reaches the server, or does not."""
        world = self.world
        if process.incarnation != incarnation or process.machine is None:
            return
        faults = world.faults
        if faults.is_silent(process) or world.now < world.site.primary.paused_until:
            # Nobody answers, and the machine's own deadline ends it. (A stopped server's kernel would accept.)
            return
        refusal = REFUSED if world.site.primary.down else faults.refusal(process)
        seed = self._seed(process, lane)
        back = world.now + self.latency(seed, process)
        if refusal is not None:
            world.ledger.out_of_touch(process)
            world.agenda.at(back, process, "deliver", Disconnected(lane, generation, refusal), incarnation)
            return
        world.agenda.at(back, self, "stand", process, lane, generation, incarnation, world.site.primary)

    def stand(self, process: Process, lane: Lane, generation: int, incarnation: int, host: Host) -> None:
        """The connection stands, if it is still wanted."""
        if process.incarnation != incarnation or process.machine is None:
            return
        link = process.machine.links[lane]
        if link.generation != generation or not link.concerns(generation):
            return
        if host.down:
            process.deliver(Disconnected(lane, generation, REFUSED), incarnation)
            return
        wire = Wire(process, lane, generation, host, host.server.connect(), self._seed(process, lane))
        self.by_session[host.number, wire.session.id] = wire
        process.wires[lane] = wire
        process.deliver(Connected(lane, generation), incarnation)
        for late in self.late.pop((process.name, lane), ()):
            if late.late_purpose and mix(late.seed, self.world.now * 8 + 6) % 4:
                self.late_with.setdefault((process.name, lane), []).append(late)
                continue
            # Behind the first commands of the new connection.
            spread = (20, 80, 300)[mix(late.seed, self.world.now * 8 + 5) % 3]
            after = 2 * self.world.plan.latency_ms + 1 + mix(late.seed, self.world.now) % spread
            self.world.agenda.at(self.world.now + after, self, "execute_late", late)

    # Sending.

    def send(self, wire: Wire, batch: Batch) -> None:
        """The process writes a batch."""
        world = self.world
        process = wire.process
        wire.batch = batch
        wire.expected = len(batch.commands)
        wire.replies = []
        wire.stored = []
        wire.failed = []
        wire.late_successors = []
        wire.late_letters = []
        wire.lose_reply = False
        cut = world.faults.cut_for(process, batch) if world.faults.cuts else None
        if wire.silent or world.faults.is_mute(process):
            # It gets lost on the way, and nobody is told.
            wire.silent = True
            world.ledger.out_of_touch(process)
            return
        if cut is not None:
            world.ledger.out_of_touch(process)
            self._cut(wire, batch, cut)
            return
        if world.faults.extra_latency(process):
            world.ledger.out_of_touch(process)
        world.oracles.before_batch(process, batch)
        arrival = world.now + self.latency(wire.seed, process)
        if self.late_with:
            self._bring_late(process, batch, arrival)
        plan = world.plan
        if plan.split_percent and mix(wire.seed, world.now * 8 + 1) % 100 < plan.split_percent and wire.expected > 1:
            where = mix(wire.seed, world.now * 8 + 2)
            first = 1 + where % (wire.expected - 1)
            if where & 64 and _EXEC in batch.commands[:-1]:
                # Behind a transaction is where most depends on it.
                first = batch.commands.index(_EXEC) + 1
            wire.rest = batch.commands[first:]
            world.agenda.at(arrival, self, "execute", wire, batch.token, batch.commands[:first])
            apart = mix(wire.seed, world.now * 8 + 3)
            later = arrival + 1 + apart % (plan.latency_ms + plan.jitter_ms + (30 if apart & 64 else 1))
            world.agenda.at(later, self, "execute_rest", wire, batch.token)
        else:
            world.agenda.at(arrival, self, "execute", wire, batch.token, batch.commands)

    def _bring_late(self, process: Process, batch: Batch, arrival: int) -> None:
        waiting = self.late_with.get((process.name, batch.lane), [])
        for late in [late for late in waiting if late.late_purpose in batch.purposes]:
            waiting.remove(late)
            at = (self.world.now, arrival + 1, arrival + 30)[mix(late.seed, self.world.now * 8 + 7) % 3]
            self.world.agenda.at(at, self, "execute_late", late)

    def _cut(self, wire: Wire, batch: Batch, fault: FaultPlan) -> None:
        world = self.world
        form = str(fault.values["form"])
        commands = batch.commands
        latency = self.latency(wire.seed, wire.process)
        if form == "before":
            self.break_off(wire)
        elif form == "lost":
            wire.lose_reply = True
            world.agenda.at(world.now + latency, self, "execute", wire, batch.token, commands)
        elif form == "prefix":
            length = mix(wire.seed, world.now * 8 + 4) % max(1, len(commands))
            wire.lose_reply = True
            wire.expected = length
            world.agenda.at(world.now + latency, self, "execute", wire, batch.token, commands[:length])
        else:
            wire.late = commands
            wire.late_purpose = fault.purpose
            self.late.setdefault((wire.process.name, wire.lane), []).append(wire)
            world.agenda.at(world.now + _LATE_AT_LAST_MS, self, "execute_late", wire)
            self._tell(wire)

    def _held(self, wire: Wire, method: str, *args: Any) -> bool:
        """Whether a stopped server, or a stalled network, keeps what arrives until later."""
        world = self.world
        until = wire.host.paused_until
        if world.faults.stalls:
            until = max(until, world.faults.stalled_until(wire.process))
        if world.now < until:
            world.ledger.out_of_touch(wire.process)
            world.agenda.at(until, self, method, wire, *args)
            return True
        return False

    def execute(self, wire: Wire, token: int, commands: tuple[Command, ...]) -> None:
        """Commands have arrived."""
        if wire.session.closed or self._held(wire, "execute", token, commands):
            return
        batch = wire.batch
        assert batch is not None
        done = self.world.site.execute(wire, commands)
        if wire.blocked:
            wire.rest = commands[done:] + wire.rest
        else:
            self._finish(wire)

    def execute_rest(self, wire: Wire, token: int) -> None:
        """The second part of a batch has arrived."""
        if wire.session.closed or self._held(wire, "execute_rest", token):
            return
        if wire.batch is None or wire.batch.token != token or wire.blocked:
            # Behind a blocked command it is executed as soon as that is answered.
            return
        self._go_on(wire)

    def _go_on(self, wire: Wire) -> None:
        commands, wire.rest = wire.rest, ()
        done = self.world.site.execute(wire, commands)
        if wire.blocked:
            wire.rest = commands[done:]
        else:
            self._finish(wire)

    def unblocked(self, host: Host, number: int, reply: Any) -> None:
        """A blocked command is answered."""
        wire = self.by_session.get((host.number, number))
        if wire is None:
            return
        wire.blocked = False
        wire.replies.append(reply)
        if wire.session.closed:
            self._finish(wire)
        elif wire.rest:
            self._go_on(wire)
        else:
            self._finish(wire)

    def _finish(self, wire: Wire) -> None:
        """If the batch is answered in full, the replies go back."""
        if len(wire.replies) < wire.expected:
            return
        if wire.lose_reply:
            self.break_off(wire)
            return
        batch = wire.batch
        if batch is None or not wire.open:
            return
        reply = Reply(batch.token, wire.replies)
        at = self.world.now + self.latency(wire.seed, wire.process)
        self.world.agenda.at(at, self, "reply", wire, reply)

    def reply(self, wire: Wire, reply: Reply) -> None:
        """The replies reach the process."""
        process = wire.process
        if not wire.open or process.incarnation != wire.incarnation:
            return
        if self.world.faults.stalls and self._held(wire, "reply", reply):
            return
        if wire.silent or self.world.faults.is_deaf(process):
            wire.silent = True
            self.world.ledger.out_of_touch(process)
            return
        batch, wire.batch = wire.batch, None
        assert batch is not None
        self.world.ledger.replied(wire, batch.purposes, reply.replies)
        process.deliver(reply, wire.incarnation)

    def execute_late(self, wire: Wire) -> None:
        """What was still in the pipes of a connection that was cut."""
        commands, wire.late = wire.late, ()
        if not commands or wire.session.closed:
            return
        self.world.trace("network", "late", (wire.process.identity, commands))
        wire.replies = []
        self.world.site.execute(wire, commands)
        self._close_session(wire)

    # Ending.

    def break_off(self, wire: Wire) -> None:
        """The connection ends on both sides; what is in its pipes is lost."""
        self._close_session(wire)
        self._tell(wire)

    def _tell(self, wire: Wire) -> None:
        """The process learns that its connection is gone."""
        if not wire.open:
            return
        wire.open = False
        process = wire.process
        if process.wires.get(wire.lane) is wire:
            del process.wires[wire.lane]
        event = Disconnected(wire.lane, wire.generation, RESET)
        at = self.world.now + self.latency(wire.seed, process)
        self.world.agenda.at(at, process, "deliver", event, wire.incarnation)

    def hang_up(self, wire: Wire) -> None:
        """The process closes its end. What it has written still arrives; a half-open server side lingers."""
        wire.open = False
        after = 30_000 if wire.silent else self.world.plan.latency_ms + 1
        self.world.agenda.at(self.world.now + after + self.world.plan.jitter_ms, self, "hung_up", wire)

    def hung_up(self, wire: Wire) -> None:
        """The end of the stream reaches the server, behind all that was written."""
        if not wire.session.closed and not self._held(wire, "hung_up"):
            self._close_session(wire)

    def abandon(self, wire: Wire) -> None:
        """The process has died: its kernel closes the socket, what was written still arrives."""
        self.hang_up(wire)

    def _close_session(self, wire: Wire) -> None:
        if not wire.session.closed:
            wire.session.close()
        wire.blocked = False
        self.by_session.pop((wire.host.number, wire.session.id), None)

    def cut_all(self, host: Host) -> None:
        """The server process ends: so do its connections."""
        for wire in [wire for wire in self.by_session.values() if wire.host is host]:
            self.world.ledger.out_of_touch(wire.process)
            self.break_off(wire)

    def leave(self, host: Host) -> None:
        """A server has become a replica: it ends blocked reads, and refuses writes on the connections of clients.

        Workers lose theirs: the model's replica does not follow its primary, and would answer them with what is over.
        """
        for wire in [wire for wire in self.by_session.values() if wire.host is host]:
            self.world.ledger.out_of_touch(wire.process)
            if wire.session.closed or wire.lane is Lane.READ or wire.process.is_worker:
                self.break_off(wire)

    def drop_closed(self, host: Host) -> None:
        """The server has closed connections by itself."""
        for wire in [wire for wire in self.by_session.values() if wire.host is host and wire.session.closed]:
            self.world.ledger.out_of_touch(wire.process)
            self.break_off(wire)

    def cut_process(self, process: Process, lane: str) -> None:
        """Break the connections of a process, of one lane or of both."""
        for wire in list(process.wires.values()):
            if not lane or wire.lane.value == lane:
                self.world.ledger.out_of_touch(process)
                self.break_off(wire)
