"""Mutants of the ends of a task: success, retry, expiry, dead letter; and of the handlers that lead to them."""

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
            self._repair("taking a successor out", commands.sorted_remove(step.key, (step.member,)))
        elif deleted == 0 and isinstance(successor, bytes):
            self._repair("taking a successor out", commands.delete_entries(step.key, (successor,)))
""",
    "",
)
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
        "                self._repair('ending a task', command)",
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
        "aborted-ending-sent-again",
        "finding 2.3; finding 15",
        "An ending that was aborted is repeated as it was, with no WATCH and no question.",
        (
            Edit(
                "server.conclusions",
                _NOT_OK,
                """\
        index, need, steps = context
        if isinstance(outcome, Aborted):
            again = [self._replace(now, self.queues[index], step.task) for step in steps]
            replacement = [command for _, replacing in again for command in replacing]
            self.shared.guarded = transaction_section(
                ("conclusions", "on_replaced"), replacement, (index, need, tuple(step for step, _ in again))
            )
            return
        if not isinstance(outcome, Ok):
""",
            ),
            Edit("server.conclusions", "import ErrorReply, Ok,", "import Aborted, ErrorReply, Ok,"),
        ),
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
                self._repair("putting a task back", commands.append(keys.stream, body))
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
        self._repair("deleting", commands.delete_entries(keys.stream, (new,)))
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
            self._repair("adding a retry", commands.append(keys.stream, step.body))
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
            self._repair("adding a retry", commands.append(keys.stream, step.body))
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
    Mutant(
        "settled-then-told",
        "finding 9; design 4.8",
        "A success is settled, and told in the next write: a worker that dies or is cut off in between never tells.",
        (
            Edit(
                "server.settlement",
                "        self.successes = [",
                """\
        self.words: list[tuple[commands.Command, ...]] = []
        self.successes = [""",
            ),
            Edit(
                "server.settlement",
                """\
        due = NEVER
        for successes""",
                """\
        due = 0 if self.words else NEVER
        for successes""",
            ),
            Edit(
                "server.settlement",
                """\
        \"\"\"Add what can be settled.\"\"\"
""",
                """\
        for words in self.words:
            write.middle.append(Section(("settlement", "on_told"), words))
        self.words.clear()
""",
            ),
            Edit(
                "server.settlement",
                """\
            settle.append(commands.append_to_existing(receiver_key(entry.client_id), encode_notification(word)))
""",
                """\
            words.append(commands.append_to_existing(receiver_key(entry.client_id), encode_notification(word)))
""",
            ),
            Edit(
                "server.settlement",
                """\
        settle = [commands.delete_entries(stream, ids), commands.acknowledge(stream, ids)]
""",
                """\
        settle = [commands.delete_entries(stream, ids), commands.acknowledge(stream, ids)]
        words: list[commands.Command] = []
""",
            ),
            Edit(
                "server.settlement",
                """\
        context = (queue.index, tuple(tasks))
""",
                """\
        context = (queue.index, tuple(tasks), tuple(words))
""",
            ),
            Edit(
                "server.settlement",
                """\
    def on_tracked(self, now: int, outcome: Outcome, context: tuple[int, tuple[HeldTask, ...]]) -> None:
""",
                """\
    def on_told(self, now: int, outcome: Outcome, _context: None) -> None:
        pass

    def on_tracked(self, now: int, outcome: Outcome, context: tuple[int, tuple[HeldTask, ...], object]) -> None:
        if isinstance(outcome, Ok):
            self.words.append(context[2])
        context = context[:2]
""",
            ),
        ),
    ),
    Mutant(
        "success-in-a-transaction",
        "finding 6",
        "A success that nobody is told of is settled in a transaction, which a full Redis 7.0 refuses.",
        (
            Edit(
                "server.settlement",
                'Section(("settlement", "on_plain"), settle, (queue.index, tuple(tasks)))',
                'transaction_section(("settlement", "on_plain"), settle, (queue.index, tuple(tasks)))',
            ),
        ),
    ),
    Mutant(
        "refused-settlement-taken-for-done",
        "go g; design 4.13",
        "A refusal is taken for an answer: the entry is still pending, and is run again.",
        (
            Edit(
                "server.settlement",
                """\
        if isinstance(outcome, Ok):
            successes.plain_backoff.succeeded()
""",
                """\
        if isinstance(outcome, Ok | Refused):
            successes.plain_backoff.succeeded()
""",
            ),
        ),
    ),
    Mutant(
        "unanswered-settlement-taken-for-done",
        "go g; design 4.13",
        "A settlement without an answer is taken for done: where it was never executed the task is run again.",
        (
            Edit(
                "server.settlement",
                """\
        if isinstance(outcome, Ok):
            successes.plain_backoff.succeeded()
""",
                """\
        if not isinstance(outcome, Refused):
            successes.plain_backoff.succeeded()
""",
            ),
        ),
    ),
    Mutant(
        "aborted-settlement-taken-for-done",
        "finding 15; design 4.13",
        "EXEC nil is taken for an answer also where nothing was to be guarded: a left-over WATCH loses a success.",
        (
            Edit("server.settlement", "import ErrorReply, Ok,", "import Aborted, ErrorReply, Ok,"),
            Edit(
                "server.settlement",
                "        # Unknown, Aborted, refused: again.",
                """\
        if isinstance(outcome, Aborted):
            self._settled(tasks)
            return
        # Unknown, Aborted, refused: again.""",
            ),
        ),
    ),
    Mutant(
        "remembers-what-has-ended",
        "finding 8",
        "A task id that has ended here before is settled without being run: a retry's is the same.",
        (
            Edit(
                "server.tasks",
                "        self.by_id: dict[tuple[int, bytes], HeldTask] = {}\n",
                """\
        self.by_id: dict[tuple[int, bytes], HeldTask] = {}
        self.ended: dict[str, bool] = {}
""",
            ),
            Edit(
                "server.tasks",
                "            del self.by_id[task.queue, task.entry_id]\n",
                """\
            del self.by_id[task.queue, task.entry_id]
            self.ended[task.task_id] = True
""",
            ),
            Edit(
                "server.handlers",
                "            unfit = self._unfit(now, task)\n",
                """\
            if task.task_id in self.tasks.ended:
                self.tasks.move(task, _START)
                self.tasks.move(task, _SUCCESS)
                self.settlement.add(task)
                continue
            unfit = self._unfit(now, task)
""",
            ),
        ),
    ),
    Mutant(
        "retry-without-delay",
        "go N13",
        "A failed task is tried again at once, without end.",
        (
            Edit(
                "server.handlers",
                "            delay_ms = self.shared.entropy.upper_half(retry_delay(entry))\n",
                "            delay_ms = 0\n",
            ),
        ),
    ),
    Mutant(
        "expiry-not-checked",
        "design 4.7",
        "A task's deadline is compared with the own clock, which counts from another origin: it is never over.",
        (
            Edit(
                "server.handlers",
                "        if entry.expires_ts and self.shared.clock.read(now) >= entry.expires_ts:\n",
                "        if entry.expires_ts and now >= entry.expires_ts:\n",
            ),
        ),
    ),
    Mutant(
        "expired-task-stays-pending",
        "go e; style M6",
        "An expired task is dropped here, and stays in Redis for ever.",
        (
            Edit(
                "server.handlers",
                """\
            if unfit is not None:
                self.conclude""",
                """\
            if unfit is not None and unfit.kind is EndKind.EXPIRED:
                self.tasks.move(task, Happening.LEASE_LOST)
            elif unfit is not None:
                self.conclude""",
            ),
        ),
    ),
    Mutant(
        "bad-message-stays-pending",
        "go f; style M7; design 4.11",
        "What cannot be decoded is dropped here, and stays in Redis for ever.",
        (
            Edit(
                "server.handlers",
                """\
            if unfit is not None:
                self.conclude""",
                """\
            if unfit is not None and task.entry is None:
                self.tasks.move(task, Happening.LEASE_LOST)
            elif unfit is not None:
                self.conclude""",
            ),
        ),
    ),
    Mutant(
        "bad-message-ends-the-worker",
        "go f; design 4.11",
        "What cannot be decoded raises.",
        (Edit("server.tasks", "            problem = str(error)\n", "            raise DecodeError(str(error))\n"),),
    ),
    Mutant(
        "handler-timeout-ignored",
        "contract 4",
        "A handler that hangs is never stopped.",
        (
            Edit(
                "server.handlers",
                "            if task is not None and task.state is TaskState.RUNNING:\n",
                "            if task is not None and task.state is TaskState.HELD:\n",
            ),
        ),
    ),
)
