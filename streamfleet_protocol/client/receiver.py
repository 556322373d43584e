"""The receiver stream: made before the first tracked task leaves, read from a cursor, emptied by what was read.

The cursor goes back to 0 on every new connection and whenever the stream had to be made again, since after a failover
new ids may be lower than old ones; what was read is deleted, so nothing is read twice for long. A stream that had to be
made again was gone, and words with it: the handles are then audited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import commands
from ..effects import Lane
from ..errors import DecodeError
from ..keys import receiver_key
from ..link import Section, Write
from ..machine import Shared
from ..notes import BadNotification, DataLossSeen
from ..replies import Ok, Outcome, RawReply, Refused, Unknown
from ..settings import ClientSettings
from ..timing import NEVER, Backoff
from ..wire import decode_notification

if TYPE_CHECKING:
    from .tracker import Tracker

_COUNT = 500
_DELETE_AT_ONCE = 1000


class Receiver:
    """Making, reading and emptying the stream of notifications."""

    def __init__(self, shared: Shared, settings: ClientSettings, tracker: Tracker) -> None:
        self.shared = shared
        self.settings = settings
        self.tracker = tracker
        self.key = receiver_key(settings.client_id)
        self.wanted = False
        """A task was tracked; from then on the stream is kept."""
        self.stands = False
        self.made_before = False
        self.unsure = False
        """Its creation was sent and not answered: it may stand, and it may be made later."""
        self.check = False
        """Make sure that it stands, at once."""
        self.cursor = b"0"
        self.resets = 0
        """How often the cursor went back to 0; a read that was begun before must not move it on."""
        self.unwanted: list[bytes] = []
        """Ids that were read and are to be deleted."""
        self.peeks_wanted = 0
        self.peeks_begun = 0
        self.peeks_done = 0
        self.make_backoff = Backoff(settings.backoff_least_ms, settings.backoff_most_ms)
        self.peek_backoff = Backoff(settings.backoff_least_ms, settings.backoff_most_ms)
        self.delete_backoff = Backoff(settings.backoff_least_ms, settings.backoff_most_ms)
        self.read_backoff = Backoff(settings.backoff_least_ms, settings.backoff_most_ms)

    def want(self) -> None:
        """A task is tracked."""
        if not self.wanted:
            self.wanted = self.check = True

    def peek(self) -> int:
        """Ask for one read of the whole stream that begins after now; `peeks_done` reaches the result when it is."""
        self.peeks_wanted = self.peeks_begun + 1
        return self.peeks_wanted

    def command_lane_lost(self) -> None:
        """Read again what could not be deleted, and see at once whether the stream still stands."""
        self.unwanted.clear()
        self.reset_cursor()
        self.check = self.wanted

    def reset_cursor(self) -> None:
        """Read from the head of the stream: a new connection, or a new stream."""
        self.cursor = b"0"
        self.resets += 1

    # On the command lane.

    def due_at(self) -> int:
        """When there is something to delete or to peek at."""
        due = self.peek_backoff.until if self.peeks_wanted > self.peeks_done else NEVER
        return min(due, self.delete_backoff.until) if self.unwanted else due

    def make_at(self) -> int:
        """When the stream is to be made, before the regular heartbeat that makes sure of it."""
        return self.make_backoff.until if self.check else NEVER

    def compose(self, now: int, write: Write) -> None:
        """Add the deletion of what was read, and a peek."""
        if self.unwanted and now >= self.delete_backoff.until:
            ids, self.unwanted = self.unwanted[:_DELETE_AT_ONCE], self.unwanted[_DELETE_AT_ONCE:]
            section = Section(("receiver", "on_deleted"), (commands.delete_entries(self.key, ids),), tuple(ids))
            write.middle.append(section)
        if self.peeks_wanted > self.peeks_done and now >= self.peek_backoff.until:
            self.peeks_begun += 1
            write.middle.append(self.whole_read(self.peeks_begun, _COUNT))

    def creation(self) -> Section:
        """The command that makes the stream where it is missing."""
        self.check = False
        return Section(("receiver", "on_made"), (commands.create_receiver(self.key),))

    def last_read(self) -> Section:
        """The last look at the stream, before it is deleted: a word for each open handle may be in it."""
        return self.whole_read(self.peeks_begun + 1, _COUNT + len(self.tracker.handles))

    def whole_read(self, number: int, count: int) -> Section:
        """A read of what is in the stream, on the command lane."""
        command = commands.read_receiver(self.key, b"0", count, None)
        return Section(("receiver", "on_peeked"), (command,), number)

    def on_made(self, now: int, outcome: Outcome, _context: None) -> None:
        """It stands. Where it had to be made again, or where that is not known, words may be lost."""
        if isinstance(outcome, Unknown):
            self.unsure = self.check = True
            return
        existed = isinstance(outcome, Refused) and outcome.error.code == "BUSYGROUP"
        if isinstance(outcome, Refused) and not existed:
            self.shared.refused("making the receiver stream", outcome.error)
            self.check = True
            self.make_backoff.failed(now, self.shared.entropy)
            return
        self.shared.works("making the receiver stream")
        self.make_backoff.succeeded()
        if self.made_before and (not existed or self.unsure):
            if not existed:
                self.shared.note(DataLossSeen(self.tracker.queue_names, "the stream of notifications", 0))
            self.tracker.audit_soon(now)
        if not existed:
            self.reset_cursor()
        self.stands = self.made_before = True
        self.unsure = False

    def on_deleted(self, now: int, outcome: Outcome, ids: tuple[bytes, ...]) -> None:
        """What could not be deleted is deleted another time; after a lost connection it is read again instead."""
        if isinstance(outcome, Refused):
            self.unwanted[:0] = ids
            self.shared.refused("deleting notifications", outcome.error)
            self.delete_backoff.failed(now, self.shared.entropy)
        elif isinstance(outcome, Ok):
            self.shared.works("deleting notifications")
            self.delete_backoff.succeeded()

    def on_peeked(self, now: int, outcome: Outcome, number: int) -> None:
        """A whole read is over, unless there is more."""
        if isinstance(outcome, Ok):
            self.shared.works("reading notifications")
            self.peek_backoff.succeeded()
            if self._take_words(now, outcome.values[0]) < _COUNT:
                self.peeks_done = max(self.peeks_done, number)
            else:
                self.peeks_wanted = max(self.peeks_wanted, number + 1)
        else:
            if isinstance(outcome, Refused):
                self.shared.refused("reading notifications", outcome.error)
            self.peek_backoff.failed(now, self.shared.entropy)

    # On the read lane.

    def read(self, now: int) -> Section | None:
        """The next blocking read, where one can go."""
        if not self.stands or now < self.read_backoff.until:
            return None
        command = commands.read_receiver(self.key, self.cursor, _COUNT, self.settings.block_ms)
        return Section(("receiver", "on_read"), (command,), self.resets)

    def on_read(self, now: int, outcome: Outcome, resets: int) -> None:
        """Words have come, or none."""
        if isinstance(outcome, Ok):
            self.shared.works("reading notifications")
            self.read_backoff.succeeded()
            self._take_words(now, outcome.values[0], moves_cursor=resets == self.resets)
        elif isinstance(outcome, Refused):
            self.reset_cursor()
            self.shared.refused("reading notifications", outcome.error, Lane.READ)
            self.read_backoff.failed(now, self.shared.entropy)

    def _take_words(self, now: int, reply: RawReply, *, moves_cursor: bool = False) -> int:
        entries = _entries(reply)
        for entry in entries:
            if not isinstance(entry, list | tuple) or len(entry) != 2:
                continue
            entry_id, fields = entry
            if not isinstance(entry_id, bytes):
                continue
            if moves_cursor:
                self.cursor = entry_id
            self.unwanted.append(entry_id)
            try:
                notification = decode_notification(fields if isinstance(fields, list | tuple) else ())
            except DecodeError as error:
                self.shared.note(BadNotification(str(error)))
            else:
                self.tracker.word(now, notification)
        return len(entries)


def _entries(reply: RawReply) -> list[RawReply]:
    """The entries in an XREAD reply of a single stream."""
    if not isinstance(reply, list | tuple) or not reply:
        return []
    stream = reply[0]
    if not isinstance(stream, list | tuple) or len(stream) != 2 or not isinstance(stream[1], list | tuple):
        return []
    return list(stream[1])
