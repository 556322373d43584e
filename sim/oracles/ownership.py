"""G3, at its root: an entry changes its owner only when nobody has touched it for a whole lease."""

from __future__ import annotations

from typing import ClassVar

from .base import Oracle
from .duplicates import lapse_needed_ms

_STAMP_TOLERANCE_MS = 50


class Ownership(Oracle):
    """Looks at each XCLAIM that changes an owner, as the server executes it."""

    name: ClassVar[str] = "G3 ownership"

    def taken(self, key: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None) -> None:
        """Was the owner silent for a lease?"""
        self.checks += 1
        if previous is None:
            self._adopted(key, entry_id, consumer)
        else:
            self._claimed(key, entry_id, consumer, previous)

    def _claimed(self, key: bytes, entry_id: bytes, consumer: bytes, previous: bytes) -> None:
        ledger = self.world.ledger
        touched = ledger.touched.get((key, entry_id), 0)
        if ledger.lost_since(touched):
            return
        lease = self.world.plan.worker_settings.get("lease_ms", 60_000)
        age = self.world.now - touched
        text = f"{consumer.decode()} takes {entry_id.decode()} of {ledger.streams[key]} from {previous.decode()}"
        if age < lease * 998 // 1000 - _STAMP_TOLERANCE_MS - 1:
            self.broken(f"{text} {age} ms after its last renewal; the lease is {lease} ms")
        lapse = ledger.lapse_ms(previous.decode(), touched)
        needed = lapse_needed_ms(self.world.plan.worker_settings)
        if previous.decode() in ledger.presences and lapse < needed:
            self.broken(f"{text}, which was out of touch for {lapse} ms at most, where {needed} ms would explain it")

    def acknowledged(self, key: bytes, entry_id: bytes, owner: bytes) -> None:
        """A success may be settled by whoever had it first; every other ending is for the owner alone."""
        ledger = self.world.ledger
        wire = ledger.acting
        record = ledger.entries.get((key, entry_id))
        if wire is None or wire.batch is None or record is None or "conclusions.on_replaced" not in wire.batch.purposes:
            return
        self.checks += 1
        own = f"{wire.process.name}:{wire.incarnation}"
        if owner.decode() == own or ledger.lost_since(record.asked_at):
            return
        if not any(run.identity == own and run.outcome == "succeeded" for run in record.runs):
            self.broken(f"{own} ends {record.plan.name}, whose entry {entry_id.decode()} is {owner.decode()}'s")

    def _adopted(self, key: bytes, entry_id: bytes, consumer: bytes) -> None:
        """It was in no list. Nobody else who is well may be at work on it."""
        ledger = self.world.ledger
        needed = lapse_needed_ms(self.world.plan.worker_settings)
        for process in self.world.workers:
            if process.identity.encode() == consumer:
                continue
            for run in process.runs.values():
                if run.entry_id != entry_id or run.queue != ledger.streams[key] or ledger.lost_since(run.started_at):
                    continue
                if ledger.lapse_ms(process.identity, run.started_at) < needed:
                    self.broken(f"{consumer.decode()} adopts {entry_id.decode()}, at work on {process.identity}")

    def consumer_deleted(self, key: bytes, consumer: bytes, entry_ids: list[bytes]) -> None:
        """A machine deletes a consumer only where nothing is pending for it."""
        self.checks += 1
        if entry_ids:
            self.broken(f"the consumer {consumer.decode()} was deleted with {len(entry_ids)} entries pending")
