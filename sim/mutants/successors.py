"""Mutants of what takes the place of a task that did not succeed: retry, dead letter."""

from __future__ import annotations

from .patching import Edit, Mutant

_NO_TYPES = Edit(
    "server.conclusions",
    """\
        if need is Need.DELAYED:
            question.append(commands.sorted_length(keys.delayed))
        elif need is Need.DEAD:
            question.append(commands.length(keys.dead))
""",
    "",
)
_SUCCESSOR_STAYS = Edit(
    "server.conclusions",
    """\
        elif deleted == 0 and step.member:
            self.repair("taking a successor out", commands.sorted_remove(step.key, (step.member,)))
        elif deleted == 0 and isinstance(successor, bytes):
            self.repair("taking a successor out", commands.delete_entries(step.key, (successor,)))
""",
    "",
)

SUCCESSORS = (
    Mutant(
        "deleted-entry-is-retried",
        "finding 3; finding 6",
        "A failure sees neither that the entry is gone nor that its XDEL deletes nothing: the successor of a worker "
        "that was late with its success runs the task once more.",
        (
            Edit("server.conclusions", "        if mine and bodies(entry):\n", "        if mine:\n"),
            _SUCCESSOR_STAYS,
        ),
    ),
    Mutant(
        "successor-of-a-success-stays",
        "finding 2.3b; finding 3",
        "A success that came between question and EXEC is not seen: what was put in the entry's place stays there.",
        (_SUCCESSOR_STAYS,),
    ),
    Mutant(
        "ending-asks-for-no-types",
        "finding 2.1a",
        "A key of a wrong type is not seen before the entry is touched: the body is only in the worker's hand then.",
        (_NO_TYPES,),
    ),
    Mutant(
        "elements-of-an-ending-not-looked-at",
        "finding 7; design 4.1",
        "EXEC is taken for all or nothing: where the successor could not be written the task is gone.",
        (
            _NO_TYPES,
            Edit(
                "server.conclusions",
                """\
            if deleted == 1:
                self.repair("putting a task back", commands.append(keys.stream, body))
""",
                "",
            ),
        ),
    ),
    Mutant(
        "retries-not-counted",
        "design 4.1",
        "A retry has the number of the attempt before it: it never ends.",
        (
            Edit(
                "server.conclusions",
                "with_retries(body, task.entry.retries + 1)",
                "with_retries(body, task.entry.retries)",
            ),
        ),
    ),
    Mutant(
        "deletes-the-new-copy",
        "go N2",
        "The retry's own entry is deleted instead of the one that it follows.",
        (
            Edit(
                "server.conclusions",
                "        replacing.append(commands.delete_entries(keys.stream, (task.entry_id,)))\n",
                "        replacing.append(commands.length(keys.stream))\n",
            ),
            Edit(
                "server.conclusions",
                "        deleted = replies[2 if step.key else 1]\n",
                """\
        deleted = 1
        new = successor if isinstance(successor, bytes) and step.key == keys.stream else task.entry_id
        self.repair("deleting", commands.delete_entries(keys.stream, (new,)))
""",
            ),
        ),
    ),
    Mutant(
        "retry-only-in-memory",
        "go d; style M3; design 4.6",
        "A retry's entry is taken out at once, and put in after the delay, from the worker's memory.",
        (
            Edit(
                "server.conclusions",
                """\
                key, member = keys.delayed, pack_member(body)
                self.promotion.expect(queue.index, now + conclusion.delay_ms)
                due = self.shared.clock.read(now) + conclusion.delay_ms
                replacing.append(commands.sorted_add(key, due, member))
""",
                "                self.repair_backoff.until = now + conclusion.delay_ms\n",
            ),
            Edit(
                "server.conclusions",
                """\
        self.tasks.move(task, Happening.SETTLED)
        if deleted == 0:
""",
                """\
        if conclusion.kind is EndKind.RETRY and not step.key:
            self.repair("adding a retry", commands.append(keys.stream, step.body))
        self.tasks.move(task, Happening.SETTLED)
        if deleted == 0:
""",
            ),
        ),
    ),
    Mutant(
        "retry-added-only-once",
        "go N3; design 4.1",
        "A retry is put in after its entry was taken out, and only tried once.",
        (
            Edit(
                "server.conclusions",
                """\
                key = keys.stream
                replacing.append(commands.append(key, body))
        elif conclusion.kind is EndKind.DEAD:
""",
                """\
                pass
        elif conclusion.kind is EndKind.DEAD:
""",
            ),
            Edit(
                "server.conclusions",
                """\
        self.tasks.move(task, Happening.SETTLED)
        if deleted == 0:
""",
                """\
        if conclusion.kind is EndKind.RETRY and not step.key:
            self.repair("adding a retry", commands.append(keys.stream, step.body))
        self.tasks.move(task, Happening.SETTLED)
        if deleted == 0:
""",
            ),
            Edit(
                "server.conclusions",
                """\
        if isinstance(outcome, Ok):
            self.repair_backoff.succeeded()
""",
                """\
        if isinstance(outcome, Ok) or context[0] == "adding a retry":
            self.repair_backoff.succeeded()
""",
            ),
        ),
    ),
)
