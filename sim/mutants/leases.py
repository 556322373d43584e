"""Mutants of a worker's hold on its tasks: setup, reading, looks, renewal, adoption."""

from __future__ import annotations

from .patching import Edit, Mutant

_BOTH = "both = (commands.create_group(keys.stream), commands.touch(keys.fence))\n"
_MINE = "        if mine and self.setup.is_fenced(sent.queue):\n"
_RENEWAL = """\
        renewal = [commands.renew(queue.keys.stream, self.consumer, [row.entry_id for row in mine])]
"""

LEASES = (
    Mutant(
        "no-bump-on-a-new-connection",
        "finding 1; design 4.3",
        "A new connection does not touch the fence: a guarded EXEC that the old one still has in the pipes is executed "
        "beside its repetition.",
        (
            Edit("server.setup", _BOTH, _BOTH.replace("touch", "get")),
            Edit(
                "server.setup", "        state.fenced = touched == 1\n", "        state.fenced = touched is not None\n"
            ),
        ),
    ),
    Mutant(
        "one-fence-bumped-of-two",
        "finding 2.3",
        "A new connection touches the fence of its first queue only.",
        (
            Edit(
                "server.setup",
                _BOTH,
                """\
bump = commands.touch(keys.fence) if queue.index == 0 else commands.get(keys.fence)
                both = (commands.create_group(keys.stream), bump)
""",
            ),
            Edit(
                "server.setup",
                "        state.fenced = touched == 1\n",
                "        state.fenced = touched == 1 or (queue > 0 and touched is not None)\n",
            ),
        ),
    ),
    Mutant(
        "reads-more-than-room",
        "go N12; design 4.5",
        "A read asks for a whole batch whatever room there is: a busy worker hoards what an idle one could take.",
        (
            Edit(
                "server.intake",
                "            count = self.tasks.room\n",
                "            count = self.settings.batch\n",
            ),
        ),
    ),
    Mutant(
        "read-without-a-deadline",
        "go N6; design 4.13",
        "A blocking read ends only by an answer: on a half-open connection the worker is deaf for ever.",
        (
            Edit(
                "server.intake",
                "        timeout_ms = block_ms + (self.settings.read_margin_ms if block_ms else "
                "self.settings.command_timeout_ms)\n",
                "        timeout_ms = NEVER - now if block_ms else self.settings.command_timeout_ms\n",
            ),
        ),
    ),
    Mutant(
        "renewal-without-a-watch",
        "finding 11; style M5; design 4.3",
        "A renewal asks nobody: an entry that was taken over between its question and it is stolen back.",
        (
            Edit(
                "server.leases", "            commands.watch(keys.fence),\n", "            commands.get(keys.fence),\n"
            ),
        ),
    ),
    Mutant(
        "renewal-with-a-min-idle",
        "finding 11",
        "A renewal has a min-idle: after a backward step of Redis's clock it refuses the owner itself.",
        (
            Edit(
                "commands",
                '    return (b"XCLAIM", stream, SERVER_GROUP, consumer, 0, *ids, b"JUSTID")\n',
                '    return (b"XCLAIM", stream, SERVER_GROUP, consumer, 1, *ids, b"JUSTID")\n',
            ),
        ),
    ),
    Mutant(
        "renews-only-once",
        "go c; style M4; design 4.4",
        "After the first renewal there is none.",
        (
            Edit(
                "server.leases",
                _MINE,
                "        if mine and self.setup.is_fenced(sent.queue) and not look.renewed_at:\n",
            ),
        ),
    ),
    Mutant(
        "renews-once-a-lease",
        "finding 2.4d",
        "A lease is no longer than the time between two renewals: the least disturbance of one is a lost lease.",
        (
            Edit(
                "server.leases",
                _MINE,
                """\
        late = now - look.renewed_at > 7 * self.settings.renew_interval_ms // 2
        if mine and late and self.setup.is_fenced(sent.queue):
""",
            ),
        ),
    ),
    Mutant(
        "late-renewal-without-a-bump",
        "finding 2.4e",
        "An owner that comes back renews without touching the fence: who was about to take its tasks over does not "
        "see it.",
        (
            Edit(
                "server.leases",
                "            renewal.append(commands.touch(queue.keys.fence))\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "aborted-renewal-sent-again",
        "finding 2.3; finding 15",
        "A renewal that was aborted is repeated as it was, with no WATCH and no question: it steals back.",
        (
            Edit(
                "server.leases",
                """\
        if isinstance(outcome, Aborted):
            self.look_now(now, index)
""",
                """\
        if isinstance(outcome, Aborted):
            if look.listed:
                renewal = [commands.renew(self.queues[index].keys.stream, self.consumer, list(look.listed))]
                self.shared.guarded = transaction_section(("leases", "on_renewed"), renewal, (index, now, ()))
            self.look_now(now, index)
""",
            ),
        ),
    ),
    Mutant(
        "never-adopts",
        "go N4; design 4.4",
        "What is pending here and was brought by no reply is never taken up: a lost reply strands it.",
        (
            Edit(
                "server.leases",
                "        adopted = [row for row in mine if self._is_adoptable(sent, row.entry_id)]\n",
                "        adopted: list[Pending] = []\n",
            ),
        ),
    ),
    Mutant(
        "adopts-what-a-read-is-bringing",
        "finding 5; design 4.4",
        "An entry is adopted while the read that brings it is under way: it can be run and settled before the reply "
        "comes, and is run again.",
        (
            Edit(
                "server.leases",
                """\
        if entry_id in look.suspects:
            return look.suspects[entry_id] <= sent.read_over
""",
                """\
        if entry_id in look.listed:
            return True
""",
            ),
        ),
    ),
    Mutant(
        "idle-worker-adopts-nothing",
        "finding 17; go N4",
        "A worker that holds nothing has nothing to renew, and does not see what a late read has put under it.",
        (
            Edit(
                "server.leases",
                _MINE,
                "        if mine and self.setup.is_fenced(sent.queue) and self.tasks.by_id:\n",
            ),
        ),
    ),
    Mutant(
        "looks-only-once",
        "design 4.4",
        "A worker looks when it connects, and then no more.",
        (
            Edit(
                "server.leases",
                "look.look_at = now if look.wanted else now + self.settings.renew_interval_ms\n",
                "look.look_at = now if look.wanted else NEVER\n",
            ),
        ),
    ),
    Mutant(
        "starts-without-a-look",
        "finding 25; design 4.4",
        "After an outage, or a standstill, held tasks are started before it is known whose they are.",
        (
            Edit(
                "server.leases",
                "        return look.looked and now - look.looked_at <= self.settings.lease_ms\n",
                "        return look.number > 0\n",
            ),
        ),
    ),
    Mutant(
        "lost-lease-not-noticed",
        "design 4.4",
        "A held task that is not listed any more is asked nothing about: it takes up room for ever.",
        (Edit("server.leases", "        self.missing.ask(sent.queue, missing)\n", ""),),
    ),
    Mutant(
        "waiting-tasks-not-renewed",
        "go N12; design 4.4",
        "Only tasks whose handler runs are renewed: those that wait for theirs are taken over from a healthy worker.",
        (
            Edit("server.leases", "import LEASED\n", "import LEASED, TaskState\n"),
            Edit(
                "server.leases",
                _RENEWAL,
                """\
        known = self.tasks.by_id
        waiting = {key[1] for key, task in known.items() if key[0] == sent.queue and task.state is TaskState.HELD}
        ids = [row.entry_id for row in mine if row.entry_id not in waiting] or [b"0-0"]
        renewal = [commands.renew(queue.keys.stream, self.consumer, ids)]
""",
            ),
        ),
    ),
    Mutant(
        "force-steals",
        "finding 14; design 4.4",
        "A held entry in no list is taken back with min-idle 0, and also where its group was made again and gives it "
        "out anew: it is taken from whoever has read it.",
        (
            Edit(
                "commands",
                'consumer, lease_ms, entry_id, b"FORCE")\n',
                'consumer, 0, entry_id, b"FORCE")\n',
            ),
            Edit(
                "server.missing",
                "        elif id_parts(task.entry_id) <= id_parts(last_delivered(groups)):\n",
                "        elif groups is not None:\n",
            ),
        ),
    ),
)
