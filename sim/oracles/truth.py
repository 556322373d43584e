"""G2: every handle settles once, with the true outcome, or with `unknown` where it cannot be known."""

from __future__ import annotations

from typing import ClassVar

from streamfleet_protocol.effects import ClientClosed, Confirmed, End, Lane, Settled
from streamfleet_protocol.replies import ErrorReply

from ..ledger import REFUSED_ELEMENT, TaskRecord
from ..processes import Process
from .base import Oracle

_AUDIT_MS = 3_000
"""So long an audit may take."""


class Truth(Oracle):
    """What a client is told is what happened."""

    name: ClassVar[str] = "G2 truth"

    def told_confirmed(self, process: Process, effect: Confirmed) -> None:
        """Only what was stored is confirmed."""
        for task_id in effect.task_ids:
            record = self.world.ledger.tasks.get(task_id)
            self.checks += 1
            # Where another program has replaced the queue's key, nobody can tell whether a batch was applied.
            unknowable = any(loss.kind == REFUSED_ELEMENT for loss in self.world.ledger.losses)
            if (record is None or not record.stored) and not unknowable:
                self.broken(f"{task_id} is said to be confirmed, and never was in Redis")

    def settled(self, process: Process, record: TaskRecord, effect: Settled) -> None:
        """Look at the word as it comes."""
        self.checks += 1
        name = record.plan.name
        if record.rejected:
            self.broken(f"the handle of {name} settled, and the task was refused: {record.rejected}")
        if len(record.settled) > 1:
            self.broken(f"the handle of {name} settled twice: {[word.end.value for _, word in record.settled]}")
        if effect.end is End.COMPLETED:
            if not record.succeeded:
                self.broken(f"{name} is said to be completed, and no handler returned")
            if effect.result != b"done":
                self.broken(f"{name} is said to have returned {effect.result!r}, not b'done'")
        elif effect.end is End.FAILED:
            # The word goes in one transaction with the dead letter, whose key may change its type in that round trip.
            replaced = any(fault.kind == "wrong type" for fault in self.world.plan.faults)
            if not record.dead and not replaced:
                self.broken(f"{name} is said to have failed ({effect.text}), and is no dead letter")
        elif effect.end is End.CANCELED:
            if record.stored or record.runs:
                self.broken(f"{name} is said to be canceled unsent, and was in Redis")
        elif effect.end is End.UNKNOWN:
            self._unknown(process, record)
        elif effect.confirmed and record.stored and record.ended_at < 0:
            self.broken(f"{name} is said to have expired by a worker's word, and no worker has ended it")
        if effect.end in (End.FAILED, End.EXPIRED) and record.finished_at >= 0:
            self._after_success(record, effect)

    def _unknown(self, process: Process, record: TaskRecord) -> None:
        if process.closing:
            self._unknown_at_close(process, record)
            return
        name = record.plan.name
        ledger = self.world.ledger
        if not ledger.losses:
            self.broken(f"the outcome of {name} is said to be unknown, and nothing was lost")
        # While an old primary answers, the client may look there; and a rollback may bring back what it has not found.
        moving = ledger.lost_since(self.world.now - _AUDIT_MS)
        if not moving and name in ledger.present(self.world.site.primary.server.keys.data):
            self.broken(f"the outcome of {name} is said to be unknown, and it is in Redis, to be run")

    def _unknown_at_close(self, process: Process, record: TaskRecord) -> None:
        """A word that lies in the receiver stream is read before the end, where the connection stands."""
        presence = self.world.ledger.presences[process.identity]
        # Sooner than its last batch can have timed out it ends only by the answer to it, or with its connection.
        patience = self.world.plan.client_settings.get("command_timeout_ms", 3_000) * 99 // 100 - 2
        stands = Lane.COMMAND in process.wires and self.world.now < presence.closing_at + patience
        if stands and 0 <= record.word_at < presence.closing_at and not self.world.ledger.losses:
            self.broken(f"the outcome of {record.plan.name} is said to be unknown, and the word about it lies unread")

    def _after_success(self, record: TaskRecord, effect: Settled) -> None:
        """A success had been settled in Redis when the word came: then the word must be older than it."""
        said_at = record.dead[-1][0] if effect.end is End.FAILED and record.dead else record.ended_at
        if not effect.confirmed:
            # Nobody's word: the clock's.
            return
        if said_at > record.finished_at and not self.world.ledger.lost_since(record.asked_at):
            self.broken(
                f"{record.plan.name} is said to be {effect.end.value}, and its success was settled in Redis at "
                f"{record.finished_at} ms, before that end, at {said_at} ms"
            )

    def flushed(self, process: Process, asked_at: int) -> None:
        """What was accepted before is in Redis, or was; or its deadline was over."""
        for record in self.world.ledger.tasks.values():
            if record.plan.client != process.name or record.incarnation != process.incarnation:
                continue
            self.checks += 1
            missing = 0 <= record.accepted_at < asked_at and not record.stored and not self._is_over(record)
            if missing and not any(record.plan.name in loss.tasks for loss in self.world.ledger.losses):
                self.broken(f"a flush was answered, and {record.plan.name} never was in Redis")

    def faulted(self, process: Process, error: ErrorReply) -> None:
        """A person is asked to act only about what a person has done."""
        self.checks += 1
        kinds = {fault.kind for fault in self.world.plan.faults}
        causes = {"WRONGPASS": "credentials", "NOAUTH": "credentials", "WRONGTYPE": "wrong type"}
        if causes.get(error.code) not in kinds:
            self.broken(f"{process.identity} says that a person must act, and nobody need: {error.text}")

    def client_closed(self, process: Process, effect: ClientClosed) -> None:
        """Every task that was accepted is confirmed, or told of as unsent, or as unknown; and what is told is true."""
        told = {*effect.unsent, *effect.unknown}
        presence = self.world.ledger.presences[process.identity]
        in_time = self.world.now < presence.closing_at + presence.close_ms * 99 // 100 - 2
        for record in self.world.ledger.tasks.values():
            if record.plan.client != process.name or record.incarnation != process.incarnation:
                continue
            name = record.plan.name
            self.checks += 1
            if name in effect.unsent and record.stored:
                self.broken(f"{name} is said to be unsent at the close of its client, and was in Redis")
            lost = any(name in loss.tasks for loss in self.world.ledger.losses)
            untold = record.accepted_at >= 0 and not record.stored and name not in told
            if untold and not lost and not self._is_over(record):
                self.broken(f"{name} was accepted and never sent, and the close of its client does not tell")
            if name in told and in_time:
                self.broken(f"{name} was given up at the close of its client, with time left")

    def _is_over(self, record: TaskRecord) -> bool:
        """Whether its deadline ended it before it was sent; or nobody can tell."""
        plan = record.plan
        return bool(record.settled or plan.expires_at_ms or plan.options.get("expires_in_ms"))

    def all_ended(self) -> None:
        """A word that takes everything to be over, and a success settled before."""
        for record in self.world.ledger.tasks.values():
            for at, effect in record.settled:
                if effect.end is End.COMPLETED and record.dead and not self.world.ledger.lost_since(record.asked_at):
                    self.checks += 1
                    if any(letter not in record.withdrawn for letter in record.known_late):
                        self.broken(f"{record.plan.name} was completed, and became a dead letter afterwards")
                elif effect.end is End.UNKNOWN and not effect.confirmed:
                    self.broken(f"{record.plan.name} settled as unknown by the clock at {at} ms")
