"""Entries that are held and were not listed as mine, and pending ids whose entry is gone (ghosts)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import commands
from ..keys import SERVER_GROUP
from ..link import Section, Write
from ..machine import Shared
from ..notes import TaskAdopted
from ..replies import Ok, Outcome, RawReply, Refused
from ..settings import ServerSettings
from ..timing import NEVER
from .intake import bodies
from .leases import pending_rows
from .lifecycle import LEASED, TaskState
from .tasks import ServedQueue, Tasks

if TYPE_CHECKING:
    from .handlers import Handlers

_ASK_AT_ONCE = 100


class Missing:
    """Asks about each of them, and acts on the answer. What gets no answer is found again by the next look."""

    handlers: Handlers

    def __init__(self, shared: Shared, settings: ServerSettings, queues: Sequence[ServedQueue], tasks: Tasks) -> None:
        self.shared = shared
        self.settings = settings
        self.queues = tuple(queues)
        self.tasks = tasks
        self.consumer = settings.consumer.encode()
        self.to_ask: list[tuple[int, bytes]] = []
        self.to_adopt: list[tuple[int, bytes]] = []
        """In the stream and in no pending entries list, though held here."""
        self.ghosts: list[tuple[int, bytes]] = []
        self.removing = 0
        """Ghosts whose removal is in flight."""

    def ask(self, queue: int, entry_ids: Sequence[bytes]) -> None:
        """These are held here and were not listed."""
        self.to_ask = [(other, entry_id) for other, entry_id in self.to_ask if other != queue]
        self.to_ask += [(queue, entry_id) for entry_id in entry_ids]

    def ghost(self, queue: int, entry_id: bytes) -> None:
        """This is pending here, and its entry is gone."""
        self.ghosts.append((queue, entry_id))

    def connection_lost(self) -> None:
        """The next look finds all of it again."""
        self.to_ask.clear()
        self.to_adopt.clear()
        self.ghosts.clear()

    def due_at(self) -> int:
        """When there is something to ask or to do: at once."""
        return 0 if self.to_ask or self.to_adopt or self.ghosts else NEVER

    def compose(self, _now: int, write: Write) -> None:
        """Add questions, forced claims, and the removal of ghosts."""
        self.removing += len(self.ghosts)
        for queue, entry_id in self.ghosts:
            acknowledge = (commands.acknowledge(self.queues[queue].keys.stream, (entry_id,)),)
            write.middle.append(Section(("missing", "on_acknowledged"), acknowledge))
        self.ghosts.clear()
        for queue, entry_id in self.to_adopt:
            stream = self.queues[queue].keys.stream
            adoption = (commands.adopt(stream, self.consumer, self.settings.lease_ms, entry_id),)
            write.middle.append(Section(("missing", "on_adopted"), adoption, (queue, entry_id)))
        self.to_adopt.clear()
        asked, self.to_ask = self.to_ask[:_ASK_AT_ONCE], self.to_ask[_ASK_AT_ONCE:]
        for queue, entry_id in asked:
            stream = self.queues[queue].keys.stream
            question = (
                commands.pending_entry(stream, entry_id),
                commands.entry(stream, entry_id),
                commands.groups(stream),
            )
            write.middle.append(Section(("missing", "on_answer"), question, (queue, entry_id)))

    def on_answer(self, _now: int, outcome: Outcome, context: tuple[int, bytes]) -> None:
        """Another's: the lease is lost. In no list: take it back, if it was ever delivered. Gone: lost as well."""
        if isinstance(outcome, Refused):
            self.shared.refused("asking about a held entry", outcome.error)
        task = self.tasks.by_id.get(context)
        if not isinstance(outcome, Ok) or task is None or task.state not in LEASED:
            return
        listing, entry, groups = outcome.values
        rows = pending_rows(listing)
        if rows and rows[0].owner != self.consumer:
            owner = rows[0].owner.decode("utf-8", "replace")
            self.handlers.lease_lost(task, f"{owner} has taken it over")
        elif rows:
            task.doubtful = False
        elif not bodies(entry):
            self.handlers.lease_lost(task, "the entry is gone: another has settled it, or it was deleted")
        elif id_parts(task.entry_id) <= id_parts(last_delivered(groups)):
            self.to_adopt.append(context)
        elif task.state is TaskState.HELD:
            # The read brings it again, to whoever is first; kept here, it would only take the room to read it.
            self.handlers.lease_lost(task, "the group was made again, and will give the entry out anew")

    def on_adopted(self, _now: int, outcome: Outcome, context: tuple[int, bytes]) -> None:
        """Ours again, counted as the second delivery; an empty reply means that somebody else was faster."""
        task = self.tasks.by_id.get(context)
        if isinstance(outcome, Ok) and bodies(outcome.values[0]) and task is not None:
            task.deliveries = max(task.deliveries, 2)
            task.doubtful = False
            text = task.entry_id.decode("ascii", "replace")
            self.shared.note(TaskAdopted(self.queues[task.queue].name, text, "it had dropped out of all pending lists"))
        elif isinstance(outcome, Refused):
            self.shared.refused("adopting", outcome.error)

    def on_acknowledged(self, _now: int, outcome: Outcome, _context: None) -> None:
        """A ghost that is left is found again."""
        self.removing -= 1
        if isinstance(outcome, Refused):
            self.shared.refused("removing a ghost", outcome.error)


def last_delivered(groups: RawReply) -> bytes:
    """last-delivered-id of the workers' group in an XINFO GROUPS reply; `0-0` where there is none."""
    for group in groups if isinstance(groups, list | tuple) else ():
        if isinstance(group, list | tuple):
            facts = dict(zip((name for name in group[::2] if isinstance(name, bytes)), group[1::2], strict=False))
            last = facts.get(b"last-delivered-id")
            if facts.get(b"name") == SERVER_GROUP and isinstance(last, bytes):
                return last
    return b"0-0"


def id_parts(entry_id: bytes) -> tuple[int, int]:
    """An entry id as two numbers, which compare as ids do."""
    milliseconds, _, sequence = entry_id.partition(b"-")
    if not milliseconds.isdigit() or not sequence.isdigit():
        return 0, 0
    return int(milliseconds), int(sequence)
