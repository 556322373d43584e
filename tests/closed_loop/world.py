"""Machines of clients and servers against the model of Redis, in virtual time, with faults drawn from a seed.

Small on purpose: one network delay, a handful of faults, everything in one process. It closes the loop that unit tests
leave open: what the machines send is executed, and what they are told is what a server would have said.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sim.redis_model import BLOCKED, Connection, ModelServer
from streamfleet_protocol import ClientMachine, ClientSettings, QueueSettings, ServerMachine, ServerSettings
from streamfleet_protocol.effects import (
    Batch,
    CancelHandler,
    Connect,
    Disconnect,
    Effect,
    Faulted,
    Lane,
    Noted,
    Settled,
    StartHandler,
)
from streamfleet_protocol.inputs import (
    CloseServer,
    Connected,
    Disconnected,
    Enqueue,
    HandlerCanceled,
    HandlerFailed,
    HandlerSucceeded,
    Reply,
    StartServer,
    TaskOptions,
    Timeout,
)
from streamfleet_protocol.notes import Note
from streamfleet_protocol.replies import ErrorReply

CONNECTION_LOST = ErrorReply("CONNECTION lost")


@dataclass
class Faults:
    """Probabilities, for each batch or each second."""

    lost_reply: float = 0.0
    lost_request: float = 0.0
    late: float = 0.0
    """The connection is cut, and what was sent is executed some time later."""
    prefix: float = 0.0
    kill: float = 0.0
    freeze: float = 0.0
    restart: float = 0.0
    """The server is restarted with all its data."""
    rollback: float = 0.0
    """The data go back to an earlier state, under the living connections or with a restart."""
    oom: float = 0.0
    clock: float = 0.0
    """The server's clock steps."""
    close: float = 0.0
    """A worker is closed, another starts."""
    operator: float = 0.0
    """Somebody deletes a consumer, or the group."""

    @property
    def lose_data(self) -> bool:
        return self.rollback > 0

    @property
    def leave_connections(self) -> bool:
        return not any(
            (
                self.lost_reply,
                self.lost_request,
                self.late,
                self.prefix,
                self.kill,
                self.freeze,
                self.restart,
                self.rollback,
            )
        )

    @property
    def excuse_duplicates(self) -> bool:
        return self.lose_data or any((self.kill, self.freeze, self.close, self.operator))


@dataclass
class Wire:
    """One connection of a node."""

    node: Node
    lane: Lane
    generation: int
    server_side: Connection
    token: int = 0
    replies: list[Any] = field(default_factory=list)
    expected: int = 0
    open: bool = True


class Node:
    """A process with one machine."""

    def __init__(self, world: World, name: str, machine: Any) -> None:
        self.world = world
        self.name = name
        self.machine = machine
        self.alive = True
        self.frozen_until = 0
        self.wires: dict[Lane, Wire] = {}
        self.runs: dict[int, StartHandler] = {}

    def feed(self, event: Any) -> None:
        if not self.alive:
            return
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, lambda: self.feed(event))
            return
        for effect in self.machine.step(self.world.now, event):
            self.do(effect)
        due = self.machine.next_timeout()
        if due is not None:
            self.world.at(max(due, self.world.now), lambda: self.wake(due))

    def wake(self, due: int) -> None:
        if self.alive and self.machine.next_timeout() == due:
            self.world.idle_steps[self.name, self.world.now] += 1
            assert self.world.idle_steps[self.name, self.world.now] < 50, f"{self.name} spins at {self.world.now}"
            self.feed(Timeout())

    def do(self, effect: Effect) -> None:
        world = self.world
        if isinstance(effect, Connect):
            world.after(world.delay(), lambda: world.connect(self, effect.lane, effect.generation))
        elif isinstance(effect, Disconnect):
            wire = self.wires.pop(effect.lane, None)
            if wire is not None:
                world.cut(wire, tell=False)
        elif isinstance(effect, Batch):
            wire = self.wires.get(effect.lane)
            if wire is not None:
                world.send(wire, effect)
        elif isinstance(effect, Noted):
            world.notes.append((world.now, self.name, effect.note))
        elif isinstance(effect, StartHandler):
            self.runs[effect.run] = effect
            world.run_handler(self, effect)
        elif isinstance(effect, CancelHandler):
            world.after(1, lambda: self.finish(effect.run, HandlerCanceled(effect.run)))
        elif isinstance(effect, Settled):
            world.settled.setdefault(effect.task_id, []).append(effect)
        elif isinstance(effect, Faulted):
            raise AssertionError(f"{self.name} faulted: {effect.error}")

    def finish(self, run: int, answer: Any) -> None:
        if self.alive and self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, lambda: self.finish(run, answer))
        elif self.alive and run in self.runs:
            start = self.runs.pop(run)
            if isinstance(answer, HandlerSucceeded):
                self.world.succeeded[start.entry.task_id] += 1
            self.feed(answer)


class World:
    """The event loop, the network, the server, and the accounts."""

    def __init__(self, seed: int, faults: Faults, *, version: Any = "valkey9", queues: int = 1) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 1_000_000
        self.heap: list[tuple[int, int, Callable[[], object]]] = []
        self.count = 0
        self.redis = ModelServer(version, clock_ms=1_700_000_000_000)
        self.clock_step = 0
        self.down_until = 0
        self.calm = False
        self.queues = [f"q{index}" for index in range(queues)]
        self.wires: dict[int, Wire] = {}
        self.nodes: list[Node] = []
        self.notes: list[tuple[int, str, Note]] = []
        self.settled: dict[str, list[Settled]] = {}
        self.started: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()
        self.idle_steps: Counter[tuple[str, int]] = Counter()
        self.failures: dict[str, int] = {}
        self.accepted: dict[str, bool] = {}
        self.snapshots: list[Any] = []
        self.serial = 0

    # Time.

    def at(self, time: int, action: Callable[[], object]) -> None:
        self.count += 1
        heapq.heappush(self.heap, (time, self.count, action))

    def after(self, delay: int, action: Callable[[], object]) -> None:
        self.at(self.now + delay, action)

    def delay(self) -> int:
        return self.random.choice((0, 1, 1, 2, 5))

    def run(self, until: int, condition: Callable[[], bool] = lambda: False) -> bool:
        while self.heap and self.heap[0][0] <= until:
            time, _, action = heapq.heappop(self.heap)
            self.now = max(self.now, time)
            self.tick_server()
            action()
            self.deliver_unblocked()
            if condition():
                return True
        self.now = max(self.now, until)
        return condition()

    def tick_server(self) -> None:
        self.redis.set_time(1_700_000_000_000 + self.now + self.clock_step)
        for number, reply in self.redis.timeouts_due():
            self.answer_blocked(number, reply)

    # Nodes.

    def add_server(self, concurrency: int = 2, **settings: Any) -> Node:
        self.serial += 1
        queues = tuple(QueueSettings(name) for name in self.queues)
        values = {
            "lease_ms": 8_000,
            "renew_interval_ms": 2_000,
            "command_timeout_ms": 600,
            "sweep_interval_ms": 20_000,
            **settings,
        }
        name = f"w{self.serial}"
        machine = ServerMachine(
            ServerSettings(queues, f"{name}:x", seed=self.random.getrandbits(64), concurrency=concurrency, **values)
        )
        node = Node(self, name, machine)
        self.nodes.append(node)
        node.feed(StartServer())
        return node

    def add_client(self, **settings: Any) -> Node:
        self.serial += 1
        name = f"c{self.serial}"
        machine = ClientMachine(ClientSettings(tuple(self.queues), name, seed=self.random.getrandbits(64), **settings))
        node = Node(self, name, machine)
        self.nodes.append(node)
        return node

    def enqueue(self, client: Node, *, tracked: bool, failures: int = 0, **options: Any) -> str:
        self.serial += 1
        task_id = f"t{self.serial}"
        self.failures[task_id] = failures
        self.accepted[task_id] = tracked
        queue = self.random.choice(self.queues)
        client.feed(Enqueue(self.serial, queue, (task_id,), (b"data",), TaskOptions(**options), tracked, True))
        return task_id

    def run_handler(self, node: Node, start: StartHandler) -> None:
        task_id = start.entry.task_id
        self.started[task_id] += 1
        duration = self.random.choice((0, 1, 5, 50, 500, 3000))
        answer: Any = HandlerSucceeded(start.run, b"done")
        if start.entry.retries < self.failures[task_id]:
            answer = HandlerFailed(start.run, "as planned")
        self.after(duration, lambda: node.finish(start.run, answer))

    # Network.

    def connect(self, node: Node, lane: Lane, generation: int) -> None:
        if not node.alive:
            return
        if self.now < self.down_until:
            node.feed(Disconnected(lane, generation, ErrorReply("CONNECTION refused")))
            return
        link = node.machine.links[lane]
        if link.generation != generation:
            return
        wire = Wire(node, lane, generation, self.redis.connect())
        node.wires[lane] = wire
        self.wires[wire.server_side.id] = wire
        node.feed(Connected(lane, generation))

    def cut(self, wire: Wire, *, tell: bool, close_server_side: bool = True) -> None:
        if not wire.open:
            return
        wire.open = False
        if close_server_side and not wire.server_side.closed:
            wire.server_side.close()
        if wire.node.wires.get(wire.lane) is wire:
            del wire.node.wires[wire.lane]
        if tell:
            event = Disconnected(wire.lane, wire.generation, CONNECTION_LOST)
            self.after(self.delay(), lambda: wire.node.feed(event))

    def happens(self, probability: float) -> bool:
        return not self.calm and self.random.random() < probability

    def send(self, wire: Wire, batch: Batch) -> None:
        wire.token, wire.expected, wire.replies = batch.token, len(batch.commands), []
        faults = self.faults
        if self.happens(faults.lost_request):
            self.cut(wire, tell=True)
        elif self.happens(faults.late):
            self.cut(wire, tell=True, close_server_side=False)
            self.after(self.random.choice((1, 5, 200, 3000)), lambda: self.execute_late(wire, batch))
        else:
            lose = self.happens(faults.lost_reply)
            length = (
                self.random.randrange(len(batch.commands) + 1) if self.happens(faults.prefix) else len(batch.commands)
            )
            self.after(self.delay(), lambda: self.execute(wire, batch, length, lose))

    def execute_late(self, wire: Wire, batch: Batch) -> None:
        if wire.server_side.closed:
            return
        for command in batch.commands:
            if wire.server_side.closed or wire.server_side.execute(command) is BLOCKED:
                break
        if not wire.server_side.closed:
            wire.server_side.close()

    def execute(self, wire: Wire, batch: Batch, length: int, lose: bool) -> None:
        if not wire.open or wire.server_side.closed:
            return
        for command in batch.commands[:length]:
            reply = wire.server_side.execute(command)
            if reply is BLOCKED:
                break
            wire.replies.append(reply)
        if lose or length < len(batch.commands):
            self.cut(wire, tell=True)
        elif len(wire.replies) == wire.expected:
            self.reply(wire)

    def reply(self, wire: Wire) -> None:
        event = Reply(wire.token, wire.replies)
        wire.replies = []
        self.after(self.delay(), lambda: wire.node.feed(event) if wire.open else None)

    def deliver_unblocked(self) -> None:
        for number, reply in self.redis.take_unblocked():
            self.answer_blocked(number, reply)

    def answer_blocked(self, number: int, reply: Any) -> None:
        wire = self.wires.get(number)
        if wire is None or not wire.open:
            return
        if self.happens(self.faults.lost_reply):
            self.cut(wire, tell=True)
            return
        wire.replies.append(reply)
        self.reply(wire)

    # Faults of nodes and of the server.

    def each_second(self) -> None:
        if self.calm:
            return
        faults = self.faults
        servers = [node for node in self.nodes if isinstance(node.machine, ServerMachine) and node.alive]
        if servers and self.happens(faults.kill):
            self.kill(self.random.choice(servers))
            self.after(self.random.choice((0, 1000)), self.add_server)
        if servers and self.happens(faults.freeze):
            node = self.random.choice(servers)
            node.frozen_until = self.now + self.random.choice((1_000, 5_000, 12_000, 30_000))
        if servers and self.happens(faults.close):
            self.random.choice(servers).feed(CloseServer(self.random.choice((0, 1_000, 10_000))))
            self.after(self.random.choice((0, 1000)), self.add_server)
        if self.happens(faults.operator):
            self.operate()
        if self.happens(faults.restart):
            self.restart(None)
        self.snapshots = [*self.snapshots[-5:], self.redis.snapshot()]
        if self.happens(faults.rollback):
            if self.random.random() < 0.5:
                self.redis.restore(self.random.choice(self.snapshots))
            else:
                self.restart(self.random.choice(self.snapshots))
        if self.happens(faults.clock):
            self.clock_step += self.random.choice((-120_000, -20_000, -3_000, 3_000, 20_000, 120_000))
        self.redis.oom = self.happens(faults.oom)
        self.after(1_000, self.each_second)

    def operate(self) -> None:
        connection = self.redis.connect()
        stream = f"streamfleet:{self.random.choice(self.queues)}"
        if self.random.random() < 0.7:
            node = self.random.choice(self.nodes)
            connection.execute(["XGROUP", "DELCONSUMER", stream, "streamfleet-server", f"{node.name}:x"])
        else:
            connection.execute(["XGROUP", "DESTROY", stream, "streamfleet-server"])
        connection.close()

    def kill(self, node: Node) -> None:
        node.alive = False
        for wire in list(node.wires.values()):
            self.cut(wire, tell=False)

    def restart(self, data: Any) -> None:
        kept = self.redis.snapshot() if data is None else data
        self.redis.restart(kept)
        self.down_until = self.now + self.random.choice((0, 200, 3_000))
        for wire in list(self.wires.values()):
            self.cut(wire, tell=True, close_server_side=False)

    def heal(self) -> None:
        self.calm = True
        self.redis.oom = False
        for node in self.nodes:
            node.frozen_until = min(node.frozen_until, self.now)

    def close_servers(self) -> None:
        for node in self.nodes:
            if isinstance(node.machine, ServerMachine) and node.alive:
                node.feed(CloseServer(5_000))
