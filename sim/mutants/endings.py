"""Mutants of the fence around endings other than success: question, guard, outcome."""

from __future__ import annotations

from .patching import Edit, Mutant

_GUARDED = """\
                self.shared.guarded = transaction_section(
                    ("conclusions", "on_replaced"), replacement, (index, need, tuple(steps))
                )
"""
_NOT_OK = """\
        index, need, steps = context
        if not isinstance(outcome, Ok):
"""
_ADD = """\
        assert task.conclusion is not None
        self.endings"""


def _unfenced(kind: str, *, hand_back: bool) -> Edit:
    """An ending as plain commands, with no question and no WATCH."""
    first = "commands.append(stream, task.fields)," if hand_back else ""
    last = "" if hand_back else "*([] if word is None else [word]),"
    lines = (
        "        assert task.conclusion is not None",
        f"        if task.conclusion.kind is EndKind.{kind}:",
        "            stream, word = self.queues[task.queue].keys.stream, self._word(task, task.conclusion)",
        "            for command in (",
        f"                {first}",
        "                commands.acknowledge(stream, (task.entry_id,)),",
        "                commands.delete_entries(stream, (task.entry_id,)),",
        f"                {last}",
        "            ):",
        "                self.repair('ending a task', command)",
        "            self.tasks.move(task, Happening.SETTLED)",
        "            return",
        "        self.endings",
    )
    return Edit("server.conclusions", _ADD, "\n".join(lines))


ENDINGS = (
    Mutant(
        "ending-without-a-watch",
        "finding 10; finding 1; design 4.3",
        "An ending asks whose the entry is, and then ends it whatever happened since.",
        (
            Edit(
                "server.conclusions",
                "        question = [commands.watch(keys.fence)]\n",
                "        question = [commands.get(keys.fence)]\n",
            ),
        ),
    ),
    Mutant(
        "expiry-without-a-fence",
        "finding 10; design 4.7",
        "An expired task is ended without asking whose it is.",
        (_unfenced("EXPIRED", hand_back=False),),
    ),
    Mutant(
        "hand-back-without-a-fence",
        "design 4.12; finding 10",
        "At close a task is put back without asking whose it is, and put back again where the answer is lost.",
        (_unfenced("HAND_BACK", hand_back=True),),
    ),
    Mutant(
        "aborted-ending-taken-for-done",
        "finding 15; design 4.13",
        "EXEC nil is taken for an answer: the entry is still there, and is run again as it was.",
        (
            Edit(
                "server.conclusions",
                _NOT_OK,
                """\
        index, need, steps = context
        if isinstance(outcome, Aborted):
            for step in steps:
                self.tasks.move(step.task, Happening.SETTLED)
        elif not isinstance(outcome, Ok):
""",
            ),
            Edit("server.conclusions", "import ErrorReply, Ok,", "import Aborted, ErrorReply, Ok,"),
            Edit(
                "server.conclusions",
                """\
            return
        self.endings[index, need].backoff.succeeded()
""",
                """\
        if not isinstance(outcome, Ok):
            return
        self.endings[index, need].backoff.succeeded()
""",
            ),
        ),
    ),
    Mutant(
        "unanswered-ending-taken-for-done",
        "design 4.13",
        "An ending without an answer is taken for done: where it was never executed the task is run again as it was.",
        (
            Edit(
                "server.conclusions",
                _NOT_OK,
                """\
        index, need, steps = context
        if isinstance(outcome, Unknown):
            for step in steps:
                self.tasks.move(step.task, Happening.SETTLED)
            return
        if not isinstance(outcome, Ok):
""",
            ),
            Edit("server.conclusions", "RawReply, Refused\n", "RawReply, Refused, Unknown\n"),
        ),
    ),
    Mutant(
        "ending-without-multi",
        "design 4.1",
        "A retry is put in and its entry taken out by plain commands: where only the first are executed both stand.",
        (
            Edit(
                "server.conclusions",
                _GUARDED,
                """\
                self.shared.guarded = Section(
                    ("conclusions", "on_replaced"), tuple(replacement), (index, need, tuple(steps))
                )
""",
            ),
        ),
    ),
    Mutant(
        "word-before-the-fence",
        "finding 9; design 4.8",
        "A final failure is told together with the question whether it counts: another's success makes it a lie.",
        (
            Edit(
                "server.conclusions",
                '        return Section(("conclusions", "on_answer"), tuple(question),',
                """\
        words = [self._word(task, task.conclusion) for task in tasks if task.conclusion is not None]
        question += [word for word in words if word is not None]
        return Section(("conclusions", "on_answer"), tuple(question),""",
            ),
            Edit(
                "server.conclusions",
                """\
        if word is not None:
            replacing.append(word)
""",
                "",
            ),
        ),
    ),
)
