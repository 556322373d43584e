"""Mutants of delayed tasks, garbage, orphans, consumers, and of a worker's close."""

from __future__ import annotations

from .patching import Edit, Mutant

UPKEEP = (
    Mutant(
        "promotion-without-a-watch",
        "finding 2.1; design 4.6",
        "Of two workers that promote at the same time both do: the task is there twice.",
        (Edit("server.promotion", "commands.watch(keys.promotions),\n", "commands.get(keys.promotions),\n"),),
    ),
    Mutant(
        "promotion-without-multi",
        "design 4.6; design 4.1",
        "A delayed task is taken out and put in by plain commands: where only the first are executed it is gone.",
        (
            Edit(
                "server.promotion",
                'return transaction_section(("promotion", "on_moved"), move, (',
                'return Section(("promotion", "on_moved"), tuple(move), (',
            ),
        ),
    ),
    Mutant(
        "promotion-asks-for-no-type",
        "finding 2.1a",
        "A stream's key of a wrong type is not seen before the delayed task is taken out, which is then lost.",
        (
            Edit(
                "server.promotion",
                "                    commands.length(keys.stream),\n",
                "                    commands.get(keys.promotions),\n",
            ),
            Edit(
                "server.promotion",
                """\
                    self.conclusions.repair("putting a delayed task back", back)
""",
                "                    assert back\n",
            ),
        ),
    ),
    Mutant(
        "only-the-earliest-known",
        "finding 2.1d",
        "The next look is made when the earliest task known is due: an earlier one that was added since is late.",
        (
            Edit(
                "server.promotion",
                "                delayed.look_at = min(delayed.look_at, max(now, due_at))\n",
                "                delayed.look_at = max(now, due_at)\n",
            ),
        ),
    ),
    Mutant(
        "collects-at-once",
        "design 4.10",
        "A client is collected at first sight, whether or not it lives.",
        (Edit("garbage", "if now - signs.since >= self.silence_ms\n", "if now - signs.since >= 0\n"),),
    ),
    Mutant(
        "silence-runs-on-in-an-outage",
        "design 4.10",
        "The silence of a client goes on while it had no chance to speak.",
        (
            Edit(
                "garbage",
                """\
        for signs in (*self.clients, *self.producers):
            signs.clear()
""",
                "",
            ),
        ),
    ),
    Mutant(
        "producer-collected-too-soon",
        "finding 22; design 4.10",
        "The sequence of a client that stands still for a moment is collected: it takes that for a loss, and sends "
        "again what Redis has.",
        (
            Edit(
                "garbage",
                "            if now - signs.since >= self.producer_silence_ms:\n",
                "            if now - signs.since >= self.interval_ms:\n",
            ),
        ),
    ),
    Mutant(
        "collector-stops-at-a-missing-stream",
        "go j",
        "A dead client that has no receiver stream stops the collector at each pass.",
        (
            Edit(
                "garbage",
                """\
        if isinstance(outcome, Refused):
            self._failed(now, outcome)

    def on_score""",
                """\
        if isinstance(outcome, Refused):
            self._failed(now, outcome)
        elif isinstance(outcome, Ok) and not outcome.values[0]:
            self.forget()

    def on_score""",
            ),
        ),
    ),
    Mutant(
        "never-sweeps",
        "finding 4; design 4.10",
        "Entries that dropped out of all lists with a deleted consumer are lost for ever.",
        (Edit("server.sweep", "if now - since >= lease]\n", "if now - since >= NEVER]\n"),),
    ),
    Mutant(
        "sweeps-at-once",
        "finding 4; design 4.10",
        "An orphan is adopted at first sight, before its living owner has had the time to take it back.",
        (Edit("server.sweep", "if now - since >= lease]\n", "if now - since >= 0]\n"),),
    ),
    Mutant(
        "dead-consumers-never-collected",
        "go m; design 4.10",
        "The consumers of dead workers are kept for ever.",
        (
            Edit(
                "server.consumers",
                "        return 0 if self.silent else self.look_at\n",
                "        return 0 if self.silent else NEVER\n",
            ),
        ),
    ),
    Mutant(
        "collects-a-consumer-with-pending",
        "finding 4; design 4.10",
        "A dead worker's consumer is deleted with what is pending under it.",
        (
            Edit(
                "server.consumers",
                "            if name == self.own or pending:\n",
                "            if name == self.own:\n",
            ),
        ),
    ),
    Mutant(
        "close-leaves-its-consumer",
        "go m; design 4.12",
        "A closed worker's consumer stays.",
        (
            Edit(
                "server.closing",
                "            if self.intake.last_answered:\n",
                "            if self.intake.last_answered and self.tasks.by_id:\n",
            ),
        ),
    ),
    Mutant(
        "close-deletes-its-consumer-unasked",
        "finding 4; design 4.12",
        "A worker deletes its consumer at close with whatever a read that was cut has put under it.",
        (
            Edit("server.closing", "        if looked and not unsettled:\n", "        if not unsettled:\n"),
            Edit(
                "server.closing",
                "            if self.intake.last_answered:\n",
                "            if self.intake.stopped:\n",
            ),
            Edit(
                "server.closing",
                "        if isinstance(outcome, Ok) and not outcome.values[0]:\n",
                "        if isinstance(outcome, Ok):\n",
            ),
        ),
    ),
    Mutant(
        "close-leaves-waiting-tasks",
        "go k; design 4.12",
        "What is held and not started is dropped at close instead of being handed back.",
        (
            Edit(
                "server.handlers",
                "self.conclude(task, Happening.CONCLUDE, Conclusion(EndKind.HAND_BACK))\n",
                "self.tasks.move(task, Happening.LEASE_LOST)\n",
            ),
        ),
    ),
    Mutant(
        "close-tells-canceled",
        "design 4.12",
        "A handed-back task is told as canceled, though another worker will run it.",
        (
            Edit(
                "server.conclusions",
                "conclusion.kind in (EndKind.RETRY, EndKind.HAND_BACK):\n",
                "conclusion.kind is EndKind.RETRY:\n",
            ),
            Edit(
                "server.conclusions",
                "        kind = NotificationType.EXPIRED if expired else NotificationType.ERROR\n",
                """\
        kind = NotificationType.EXPIRED if expired else NotificationType.ERROR
        kind = NotificationType.CANCELED if conclusion.kind is EndKind.HAND_BACK else kind
""",
            ),
        ),
    ),
    Mutant(
        "close-without-a-limit",
        "go k; design 4.12",
        "A close waits for its handlers for ever.",
        (
            Edit(
                "server.closing",
                """\
            self.due_at = now + grace_ms
            self.handlers.closing = True
""",
                """\
            self.due_at = NEVER
            self.handlers.closing = True
""",
            ),
        ),
    ),
    Mutant(
        "answers-during-close-dropped",
        "go k; design 4.12",
        "What a handler answers while its worker closes is dropped: its task is handed back, and run again.",
        (
            Edit(
                "server.handlers",
                """\
        task = self.tasks.running.get(answer.run)
        if task is None:
""",
                """\
        task = self.tasks.running.get(answer.run)
        if task is None or self.closing:
""",
            ),
        ),
    ),
)
