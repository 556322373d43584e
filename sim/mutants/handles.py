"""Mutants of the client's handles: receiver stream, deadlines, audit; and of its close."""

from __future__ import annotations

from .patching import Edit, Mutant

_RESET = """\
        self.cursor = b"0"
        self.resets += 1
"""

HANDLES = (
    Mutant(
        "tracked-task-before-its-receiver",
        "finding 19",
        "A tracked task leaves before there is a stream for the word about it: a fast worker's word is lost.",
        (
            Edit(
                "client.outbox",
                "        return bool(queue.waiting) and (not queue.waiting[0].tracked or self.receiver.stands)\n",
                "        return bool(queue.waiting)\n",
            ),
        ),
    ),
    Mutant(
        "lost-creation-taken-for-nothing",
        "finding 19",
        "A receiver stream whose re-creation had no answer is found standing, and nobody audits what it lost.",
        (
            Edit(
                "client.receiver",
                "            self.unsure = self.check = True\n",
                "            self.check = True\n",
            ),
            # Nor does a reconnect, which comes with each lost answer.
            Edit(
                "client.audit",
                """\
            self.tracker.audit_at = min(self.tracker.audit_at, soon) if self.tracker.audit_at > now else soon
""",
                "",
            ),
        ),
    ),
    Mutant(
        "lost-words-not-looked-into",
        "design 4.9",
        "The receiver stream had to be made again, and nobody audits the handles whose words went with it.",
        (Edit("client.receiver", "            self.tracker.audit_soon(now)\n", ""),),
    ),
    Mutant(
        "cursor-outlives-the-stream",
        "finding 20",
        "The cursor stays where it was when the stream was made again: after a step back of the clock new words lie "
        "below it.",
        (Edit("client.receiver", _RESET, "        self.resets += 1\n"),),
    ),
    Mutant(
        "words-of-an-outage-not-read",
        "go N5",
        "A new connection reads only what comes from now on, and no look starts at the stream's head: words that came "
        "meanwhile are never read.",
        (
            Edit("client.receiver", _RESET, _RESET.replace('b"0"', 'b"$"')),
            Edit(
                "client.receiver",
                'commands.read_receiver(self.key, b"0", count, None)',
                "commands.read_receiver(self.key, self.cursor, count, None)",
            ),
        ),
    ),
    Mutant(
        "receiver-never-emptied",
        "go N10; style M8; finding 20",
        "What was read stays in the receiver stream, which grows for the client's whole life.",
        (Edit("client.receiver", "            self.unwanted.append(entry_id)\n", ""),),
    ),
    Mutant(
        "expired-without-another-read",
        "finding 2.5",
        "A handle expires at its deadline although the word about its success may lie unread.",
        (
            Edit(
                "client.tracker",
                "        self.overdue.append(Overdue(task_id, self.receiver.peek(), "
                "now + self.settings.deadline_wait_ms))\n",
                "        self.settle(task_id, End.EXPIRED, confirmed=False)\n",
            ),
        ),
    ),
    Mutant(
        "deadline-estimated-once",
        "finding 10; design 4.7",
        "A handle expires on its own clock, by what Redis's clock showed long ago.",
        (
            Edit(
                "client.tracker",
                """\
        due = self.shared.clock.own(redis_due) if redis_due else now
        if due > now:
""",
                """\
        due = now if redis_due else now
        if due > now:
""",
            ),
        ),
    ),
    Mutant(
        "guess-told-as-certain",
        "design 4.7",
        "A handle that expired without a word says that no handler has run.",
        (
            Edit(
                "client.tracker",
                "self.settle(overdue.task_id, End.EXPIRED, confirmed=False)",
                "self.settle(overdue.task_id, End.EXPIRED)",
            ),
        ),
    ),
    Mutant(
        "audit-by-entry-id-alone",
        "finding 18",
        "A task whose own entry is gone is taken for gone, though its retry stands in the stream under another id.",
        (
            Edit(
                "client.audit",
                """\
        for task_id in _task_ids(entries):
            run.doubtful.pop(task_id, None)
""",
                "",
            ),
        ),
    ),
    Mutant(
        "audit-forgets-the-delayed",
        "finding 18; finding 2.1c",
        "A task that waits in the delayed set is taken for gone.",
        (
            Edit(
                "client.audit",
                "                run.doubtful.pop(member_task_id(member), None)\n",
                "                pass\n",
            ),
        ),
    ),
    Mutant(
        "audit-without-the-counter",
        "finding 2.1c",
        "A task that was promoted between the scan of the stream and that of the delayed set is taken for gone.",
        (Edit("client.audit", "        if values[0] == run.counter:\n", "        if run.tries < _TRIES:\n"),),
    ),
    Mutant(
        "audit-without-a-last-read",
        "finding 18",
        "A task is taken for gone although the word about its end lies unread.",
        (
            Edit(
                "client.audit",
                "            run.peek = self.receiver.peek()\n",
                "            run.peek = self.receiver.peeks_done\n",
            ),
        ),
    ),
    Mutant(
        "handles-never-audited",
        "design 4.9",
        "A handle about which no word can come any more waits for ever.",
        (
            Edit(
                "client.audit",
                "        return min(self.tracker.audit_at, self.regular_at) if self.tracker.handles else NEVER\n",
                "        return NEVER\n",
            ),
        ),
    ),
    Mutant(
        "close-without-a-last-read",
        "finding 2.5",
        "A handle ends as OutcomeUnknown at close although the word about it lies unread.",
        (Edit("client.closing", "            write.middle.append(receiver.last_read())\n", ""),),
    ),
    Mutant(
        "canceled-although-written",
        "finding 2.5; design 4.12",
        "At close a task that is not confirmed is called canceled, though it was sent and may run.",
        (
            Edit(
                "client.closing",
                "            if handle.task.written:\n",
                "            if handle.number:\n",
            ),
        ),
    ),
    Mutant(
        "unlisted-with-a-creation-under-way",
        "finding 2.5",
        "At close the client is unlisted although a creation of its stream may still be executed: nobody finds it.",
        (Edit("client.closing", "        if not receiver.unsure:\n", "        if receiver.key:\n"),),
    ),
    Mutant(
        "close-does-not-flush",
        "go N16; design 4.12",
        "A close gives up at once what is not yet sent, with time left and a server that answers.",
        (Edit("client.closing", "            elif now >= self.due_at:\n", "            else:\n"),),
    ),
    Mutant(
        "close-stops-half-way",
        "go N14; design 4.12",
        "A close leaves the client listed.",
        (
            Edit(
                "client.closing",
                "tidying += [commands.sorted_remove(queue.keys.receivers, (client,)) for queue in queues]",
                "tidying += []",
            ),
        ),
    ),
    Mutant(
        "notification-read-without-a-deadline",
        "go N6; design 4.13",
        "A blocking read of the client ends only by an answer: on a half-open connection it is deaf for ever.",
        (
            Edit(
                "client.machine",
                "                timeout = self.settings.block_ms + self.settings.read_margin_ms\n",
                "                timeout = NEVER - now\n",
            ),
        ),
    ),
)
