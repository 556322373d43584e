"""What all oracles share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..verdict import Failure

if TYPE_CHECKING:
    from streamfleet_protocol.effects import ClientClosed, Confirmed, Settled
    from streamfleet_protocol.notes import Note
    from streamfleet_protocol.replies import ErrorReply
    from streamfleet_protocol.wire import TaskEntry

    from ..handlers import Run
    from ..ledger import TaskRecord
    from ..network import Wire
    from ..processes import Process
    from ..world import World


class Oracle:
    """Base of the oracles: every method does nothing; an oracle has those that concern it."""

    name: ClassVar[str]
    failure: ClassVar[Failure] = Failure.SAFETY

    def __init__(self, world: World) -> None:
        self.world = world
        self.checks = 0

    def broken(self, text: str) -> None:
        """It does not hold."""
        self.world.fail(self.name, self.failure, text)

    # While it runs.

    def after_step(self, process: Process) -> None:
        """A machine has taken an input, and its effects are done."""

    def before_batch(self, process: Process, batch: Any) -> None:
        """A machine writes a batch."""

    def handler_started(self, process: Process, record: TaskRecord | None, run: Run, entry: TaskEntry) -> None:
        """A handler starts; `record.runs` holds the earlier ones."""

    def told_confirmed(self, process: Process, effect: Confirmed) -> None:
        """A client says that tasks are in Redis."""

    def settled(self, process: Process, record: TaskRecord, effect: Settled) -> None:
        """A handle has ended; `record.settled` holds this word, too."""

    def noted(self, process: Process, note: Note) -> None:
        """A machine tells a person something."""

    def faulted(self, process: Process, error: ErrorReply) -> None:
        """A machine says that a person must act."""

    def rejected(self, process: Process, record: TaskRecord) -> None:
        """A task was not accepted; `record.rejected` says why."""

    def flushed(self, process: Process, asked_at: int) -> None:
        """All that was accepted before a flush call is said to be confirmed."""

    def client_closed(self, process: Process, effect: ClientClosed) -> None:
        """A client has closed, and tells what became of its tasks."""

    def stored(self, wire: Wire, record: TaskRecord) -> None:
        """A client's command has put a task into Redis."""

    def appended(self, key: bytes, entry_id: bytes, record: TaskRecord, retries: int) -> None:
        """An entry of a task is in a stream."""

    def dead_lettered(self, record: TaskRecord | None, reason: str) -> None:
        """An entry is among the dead letters."""

    def taken(self, key: bytes, entry_id: bytes, consumer: bytes, previous: bytes | None) -> None:
        """XCLAIM gave an entry to another consumer, or took one that was in no list."""

    def acknowledged(self, key: bytes, entry_id: bytes, owner: bytes) -> None:
        """XACK took an entry out of the pending entries list."""

    def consumer_deleted(self, key: bytes, consumer: bytes, entry_ids: list[bytes]) -> None:
        """A machine has deleted a consumer, and what was pending for it."""

    # At the ends of the phases.

    def calm_begins(self) -> None:
        """No fault strikes any more."""

    def all_ended(self) -> None:
        """Every accepted task has come to its end."""

    def at_rest(self) -> None:
        """Nothing is left to be done."""

    def all_closed(self) -> None:
        """All processes are closed."""
