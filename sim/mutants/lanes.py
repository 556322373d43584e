"""Mutants of what all parts use: errors, outcomes, connections, the order of a write, clocks, commands."""

from __future__ import annotations

from .patching import Edit, Mutant

LANES = (
    Mutant(
        "no-back-off",
        "go N11; style M2; design 4.13",
        "What failed is tried again without a pause.",
        (
            Edit(
                "timing",
                "        self.until = now + max(1, entropy.upper_half(span))\n",
                "        self.until = now + min(0, entropy.upper_half(span))\n",
            ),
        ),
    ),
    Mutant(
        "readonly-is-waited-out",
        "design 4.13",
        "READONLY does not lead to a new connection: a demoted primary is asked for ever.",
        (Edit("replies", 'frozenset({"LOADING", ', 'frozenset({"READONLY", "LOADING", '),),
    ),
    Mutant(
        "lost-group-is-waited-out",
        "design 4.13",
        "NOGROUP is taken for a passing error: the group is never made again.",
        (Edit("replies", "        return Remedy.NEW_GROUP\n", "        return Remedy.WAIT\n"),),
    ),
    Mutant(
        "lost-group-ends-the-worker",
        "go h; design 4.13",
        "NOGROUP ends the worker.",
        (Edit("replies", "        return Remedy.NEW_GROUP\n", "        return Remedy.RAISE\n"),),
    ),
    Mutant(
        "passing-error-is-fatal",
        "go g; design 4.13",
        "LOADING, OOM and the like are raised instead of waited out.",
        (Edit("replies", "    if code in _RAISE:\n", "    if code in _RAISE or code in _WAIT:\n"),),
    ),
    Mutant(
        "first-connection-must-stand",
        "go g; go N18",
        "A server that is away at the start, or cuts the first connection, is taken for a fault.",
        (
            Edit(
                "machine",
                "                if remedy_for(event.error) is Remedy.RAISE:\n",
                "                if remedy_for(event.error) is Remedy.RAISE or event.generation == 1:\n",
            ),
        ),
    ),
    Mutant(
        "commands-without-a-deadline",
        "go N6",
        "The command lane waits for an answer for ever: on a half-open connection nothing goes any more.",
        (
            Edit(
                "machine",
                "link.send(now, write.sections, self.command_timeout_ms, self.slot)",
                "link.send(now, write.sections, NEVER - now, self.slot)",
            ),
        ),
    ),
    Mutant(
        "guarded-exec-not-first",
        "finding 15; finding 2.1; finding 2.3",
        "Another EXEC of the same write comes first and eats the WATCH: the guarded one passes whatever happened.",
        (
            Edit(
                "link",
                "        return (*self.first, *self.middle, *self.question)\n",
                "        return (*self.middle, *self.first, *self.question)\n",
            ),
        ),
    ),
    Mutant(
        "exec-sent-again-on-a-new-connection",
        "finding 15",
        "A guarded EXEC without an answer is sent again on the next connection, where nothing is watched.",
        (
            Edit(
                "machine",
                """\
            self.shared.guarded = None
            self._answer(now, guarded, Aborted())
""",
                "            pass\n",
            ),
            Edit("server.conclusions", "RawReply, Refused\n", "RawReply, Refused, Unknown\n"),
            Edit(
                "server.conclusions",
                """\
        index, need, steps = context
        if not isinstance(outcome, Ok):
""",
                """\
        index, need, steps = context
        if isinstance(outcome, Unknown):
            again = [self._replace(now, self.queues[index], step.task) for step in steps]
            replacement = [command for _, replacing in again for command in replacing]
            self.shared.guarded = transaction_section(
                ("conclusions", "on_replaced"), replacement, (index, need, tuple(step for step, _ in again))
            )
            return
        if not isinstance(outcome, Ok):
""",
            ),
        ),
    ),
    Mutant(
        "streams-and-ids-interleaved",
        "go N1",
        "A read of several queues names each stream with its id, which no server understands.",
        (
            Edit(
                "commands",
                """\
        *streams,
        *([b">"] * len(streams)),
""",
                """\
        *(word for stream in streams for word in (stream, b">")),
""",
            ),
        ),
    ),
    Mutant(
        "word-makes-the-stream-again",
        "go j; go n; design 4.8",
        "A notification to a client that is gone makes its stream again, which nobody lists and nobody collects.",
        (
            Edit(
                "commands",
                '    return (b"XADD", stream, b"NOMKSTREAM", b"*", *fields)\n',
                '    return (b"XADD", stream, b"*", *fields)\n',
            ),
        ),
    ),
    Mutant(
        "redis-clock-learned-once",
        "design 4.7",
        "Redis's clock is asked only once, and not after a step of it, or when the own clock has drifted.",
        (
            Edit(
                "timing",
                "        self.offset_ms = redis_ms - answered_at\n",
                """\
        if self.offset_ms is None:
            self.offset_ms = redis_ms - answered_at
""",
            ),
        ),
    ),
    Mutant(
        "one-retry-too-many",
        "contract 4",
        "A task is tried once more than it may be.",
        (Edit("wire", "self.retries < self.max_retries)\n", "self.retries <= self.max_retries)\n"),),
    ),
    Mutant(
        "shared-consumer-name",
        "finding 16",
        "Workers with one server id share a consumer name, and adopt each other's tasks.",
        (
            Edit(
                "settings",
                "        self._check_relations()\n",
                """\
        object.__setattr__(self, "consumer", "node")
        self._check_relations()
""",
            ),
        ),
    ),
)
