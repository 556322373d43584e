"""Collection of dead clients, by clients and servers alike: suspect by the own clock, confirm under a WATCH.

A client is suspect where its score and its time field have not changed for the whole limit of *my own* time, with no
outage and no refused write of mine in between: clocks of other machines are not compared. First its receiver stream
goes, then its place in the set, so that a crash in between leaves it listed for the next collector. Its producer's
entry is kept for a day: without it a client that was only frozen would send again what it holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from . import commands
from .errors import check
from .keys import QueueKeys, receiver_key
from .link import Section, Write, transaction_section
from .machine import Shared
from .notes import GarbageCollected
from .replies import Ok, Outcome, RawReply, Refused
from .timing import Backoff

_PAGE = 200


@dataclass(slots=True)
class Signs:
    """What a client last showed, and since when it has shown nothing else."""

    shown: tuple[bytes, ...]
    since: int


class Garbage:
    """Looks at the clients of one queue at a time."""

    def __init__(
        self,
        shared: Shared,
        queues: Sequence[QueueKeys],
        own_client: bytes,
        *,
        silence_ms: int,
        producer_silence_ms: int,
        interval_ms: int,
        backoff: Backoff,
    ) -> None:
        self.shared = shared
        self.queues = tuple(queues)
        self.own_client = own_client
        self.silence_ms = silence_ms
        self.producer_silence_ms = producer_silence_ms
        self.interval_ms = interval_ms
        self.backoff = backoff
        self.turn = 0
        self.look_at = interval_ms
        self.clients: list[dict[bytes, Signs]] = [{} for _ in self.queues]
        self.producers: list[dict[bytes, Signs]] = [{} for _ in self.queues]
        self.suspects: deque[tuple[int, bytes]] = deque()
        """Clients to collect."""
        self.silent: deque[tuple[int, bytes]] = deque()
        """Producers to collect."""

    def forget(self) -> None:
        """An outage, or a refused write: what was silent meanwhile may have had no chance to speak."""
        for signs in (*self.clients, *self.producers):
            signs.clear()
        self.suspects.clear()
        self.silent.clear()

    def due_at(self) -> int:
        """When to look, or to confirm a suspect."""
        return self.backoff.until if self.suspects or self.silent else max(self.look_at, self.backoff.until)

    def compose(self, now: int, write: Write) -> None:
        """Add a look at one queue's clients, or the question about a suspect."""
        if now < self.due_at():
            return
        if self.silent:
            queue, client = self.silent.popleft()
            keys = self.queues[queue]
            removal = (
                commands.hash_delete(keys.producers, (client, client + b":t")),
                commands.delete(keys.connection(client.decode())),
            )
            write.middle.append(Section(("garbage", "on_producer_removed"), removal, (queue, client)))
        elif not self.suspects:
            keys = self.queues[self.turn]
            look = (commands.sorted_first(keys.receivers, _PAGE), commands.hash_get_all(keys.producers))
            write.middle.append(Section(("garbage", "on_look"), look, self.turn))
            self.turn = (self.turn + 1) % len(self.queues)
            self.look_at = now + max(1, self.interval_ms // len(self.queues))
        elif not write.question:
            queue, client = self.suspects[0]
            receivers = self.queues[queue].receivers
            write.middle.append(
                Section(("garbage", "on_deleted"), (commands.delete(receiver_key(client.decode())),), queue)
            )
            question = (commands.watch(receivers), commands.sorted_score(receivers, client))
            write.question.append(Section(("garbage", "on_score"), question, (queue, client)))

    def on_look(self, now: int, outcome: Outcome, queue: int) -> None:
        """Compare with what the clients showed before."""
        if not isinstance(outcome, Ok):
            self._failed(now, outcome)
            return
        self.shared.works("collecting")
        self.backoff.succeeded()
        members, fields = (value if isinstance(value, list | tuple) else () for value in outcome.values)
        scores = _pairs(members)
        produced = _pairs(fields)
        clients: dict[bytes, tuple[bytes, ...]] = {
            client: (score, produced.get(client + b":t", b""))
            for client, score in scores.items()
            if client != self.own_client and _is_text(client)
        }
        self.clients[queue] = _compare(now, self.clients[queue], clients)
        self.suspects.extend(
            (queue, client) for client, signs in self.clients[queue].items() if now - signs.since >= self.silence_ms
        )
        names = {name.removesuffix(b":t") for name in produced} - {self.own_client}
        producers: dict[bytes, tuple[bytes, ...]] = {
            client: (produced.get(client, b""), produced.get(client + b":t", b""), scores.get(client, b""))
            for client in sorted(names)
            if _is_text(client)
        }
        self.producers[queue] = _compare(now, self.producers[queue], producers)
        self._collect_producers(now, queue)

    def on_deleted(self, now: int, outcome: Outcome, _queue: int) -> None:
        """The receiver stream is gone, or it is tried again with the next look."""
        if isinstance(outcome, Refused):
            self._failed(now, outcome)

    def on_score(self, now: int, outcome: Outcome, context: tuple[int, bytes]) -> None:
        """Still as silent as before: then take it out of the set, unless it speaks in between."""
        queue, client = context
        if not isinstance(outcome, Ok):
            self._failed(now, outcome)
            return
        if self.suspects and self.suspects[0] == context:
            self.suspects.popleft()
        signs = self.clients[queue].pop(client, None)
        if signs is None or outcome.values[1] != signs.shown[0]:
            return
        check(self.shared.guarded is None, "one question at a time", context)
        removal = (commands.sorted_remove(self.queues[queue].receivers, (client,)),)
        self.shared.guarded = transaction_section(("garbage", "on_removed"), removal, context)

    def on_removed(self, now: int, outcome: Outcome, context: tuple[int, bytes]) -> None:
        """Collected; or it has spoken after all, and makes its stream again with its next heartbeat."""
        queue, client = context
        if isinstance(outcome, Ok):
            self.shared.note(GarbageCollected(self.queues[queue].name, "client", client.decode()))
        elif isinstance(outcome, Refused):
            self._failed(now, outcome)

    def on_producer_removed(self, now: int, outcome: Outcome, context: tuple[int, bytes]) -> None:
        """Gone, or found again by a later look."""
        queue, client = context
        if isinstance(outcome, Ok):
            self.shared.note(GarbageCollected(self.queues[queue].name, "producer", client.decode()))
        elif isinstance(outcome, Refused):
            self._failed(now, outcome)

    def _collect_producers(self, now: int, queue: int) -> None:
        for client, signs in list(self.producers[queue].items()):
            if now - signs.since >= self.producer_silence_ms:
                del self.producers[queue][client]
                self.silent.append((queue, client))

    def _failed(self, now: int, outcome: Outcome) -> None:
        if isinstance(outcome, Refused):
            self.shared.refused("collecting", outcome.error)
            self.forget()
        self.backoff.failed(now, self.shared.entropy)


def _compare(now: int, before: dict[bytes, Signs], shown: dict[bytes, tuple[bytes, ...]]) -> dict[bytes, Signs]:
    """Signs that have not changed keep their age."""
    after = {}
    for client, signs in shown.items():
        known = before.get(client)
        after[client] = known if known is not None and known.shown == signs else Signs(signs, now)
    return after


def _pairs(flat: Sequence[RawReply]) -> dict[bytes, bytes]:
    """A flat reply of names and values as a dict."""
    return {
        name: value
        for name, value in zip(flat[::2], flat[1::2], strict=False)
        if isinstance(name, bytes) and isinstance(value, bytes)
    }


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
