"""G4: at rest nothing is left: no entry, no pending record, no dead consumer, no orphan receiver stream, no key."""

from __future__ import annotations

from typing import Any, ClassVar

from streamfleet_protocol.effects import ClientClosed
from streamfleet_protocol.keys import SERVER_GROUP, queue_keys, receiver_key

from ..processes import Process
from .base import Oracle


class Rest(Oracle):
    """What is in Redis when all is over, after a time for collection, and when all is closed."""

    name: ClassVar[str] = "G4 rest"

    def bound_ms(self) -> int:
        """How long it may take until nothing is left: silence seen, confirmed and collected, on anybody's clock."""
        plan = self.world.plan
        worker, client = plan.worker_settings, plan.client_settings
        silence = max(
            worker.get("silence_ms", 600_000),
            client.get("silence_ms", 600_000),
            worker.get("producer_silence_ms", 86_400_000),
            client.get("producer_silence_ms", 86_400_000),
            worker.get("consumer_silence_ms", 86_400_000),
        )
        collect = max(worker.get("collect_interval_ms", 60_000), client.get("collect_interval_ms", 60_000))
        progress = self.world.oracles.progress
        # While Redis's clock has not caught up after a step back, idle times are 0, and tell nothing.
        return 2 * silence + 10 * collect + progress.recovery_ms() + progress.steps_ms()

    def closing_bound_ms(self) -> int:
        """How long closing may take, as its timeouts say."""
        worker, client = self.world.plan.worker_settings, self.world.plan.client_settings
        return (
            5_000
            + worker.get("cancel_wait_ms", 5_000)
            + worker.get("finish_timeout_ms", 5_000)
            + 3 * max(worker.get("command_timeout_ms", 3_000), client.get("command_timeout_ms", 3_000))
            + 2_000
        )

    def left_over(self) -> str | None:
        """What is still there that must go, as text."""
        for name in self.world.plan.queues:
            left = self._queue_left(name)
            if left is not None:
                return f"{left} of {name}"
        return self._clients_left()

    def _queue_left(self, name: str) -> str | None:
        data = self.world.site.primary.server.keys.data
        keys = queue_keys(name)
        stream: Any = data.get(keys.stream)
        if stream is not None:
            if stream.entries:
                return f"{len(stream.entries)} entries are in the stream"
            group = stream.groups.get(SERVER_GROUP)
            if group is not None and group.pending:
                return f"{len(group.pending)} entries are pending"
            if group is not None:
                dead = sorted(set(group.consumers) - self._alive(self.world.workers))
                if dead:
                    return f"the dead consumers {dead} are in the group"
        delayed: Any = data.get(keys.delayed)
        if delayed is not None and delayed.scores:
            return f"{len(delayed.scores)} tasks are delayed"
        return None

    def _alive(self, processes: list[Any]) -> set[bytes]:
        return {process.identity.encode() for process in processes if process.alive and not process.frozen}

    def _clients_left(self) -> str | None:
        data = self.world.site.primary.server.keys.data
        alive = self._alive(self.world.clients)
        # Whoever deletes the list of the clients leaves streams that nobody can find.
        unlisted = any(fault.values.get("key") == "receivers" for fault in self.world.plan.faults)
        for identity in self.world.ledger.presences if not unlisted else ():
            if identity.encode() not in alive and receiver_key(identity) in data:
                return f"the receiver stream of the dead client {identity} is there"
            stream: Any = data.get(receiver_key(identity))
            # A word that a rollback has brought back lies there until the next connection.
            if stream is not None and stream.entries and not self.world.ledger.losses:
                return f"{len(stream.entries)} words are in the receiver stream of {identity}, and were read"
        for name in self.world.plan.queues:
            keys = queue_keys(name)
            members: Any = data.get(keys.receivers)
            dead = sorted(set(members.scores) - alive) if members is not None else []
            if dead:
                return f"the dead clients {dead} are in the receivers of {name}"
            producers: Any = data.get(keys.producers) or {}
            dead = sorted({field.removesuffix(b":t") for field in producers} - alive)
            if dead:
                return f"the dead clients {dead} are in the producers of {name}"
        return None

    def client_closed(self, process: Process, effect: ClientClosed) -> None:
        """With nothing in the way it takes away what was its own, by itself."""
        world = self.world
        presence = world.ledger.presences[process.identity]
        if presence.troubles or world.site.old is not None:
            return
        self.checks += 1
        data = world.site.primary.server.keys.data
        own = process.identity.encode()
        left = [receiver_key(process.identity)] if receiver_key(process.identity) in data else []
        for name in world.plan.queues:
            keys = queue_keys(name)
            members: Any = data.get(keys.receivers)
            left += [keys.receivers] if members is not None and own in members.scores else []
            fields: Any = data.get(keys.producers) or {}
            left += [keys.producers] if own in fields or own + b":t" in fields else []
            left += [keys.connection(process.identity)] if keys.connection(process.identity) in data else []
        if left:
            self.broken(f"{process.identity} has closed, and has left something in {left}")

    def at_rest(self) -> None:
        """All that was looked at."""
        self.checks += 1

    def all_closed(self) -> None:
        """Closed processes leave nothing behind, apart from what collection has to do."""
        self.checks += 1
        left = self.left_over()
        network_was_calm = not self.world.plan.faults
        # What an old connection brings after the end is listed, and collected by whoever comes next.
        collectable = left is not None and any(word in left for word in ("consumers", "client"))
        if left is not None and (network_was_calm or not collectable):
            self.broken(f"after closing, {left}")
        data = self.world.site.primary.server.keys.data
        for process in self.world.clients:
            for name in self.world.plan.queues:
                key = queue_keys(name).connection(process.identity)
                if process.name not in self.world.plan.gone and key in data and network_was_calm:
                    self.broken(f"after closing, the key {key.decode()} is there")
