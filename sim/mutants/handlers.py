"""Mutants of handlers, and of the settlement of their successes."""

from __future__ import annotations

from .patching import Edit, Mutant

HANDLERS = (
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
)
