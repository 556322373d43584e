"""Mutants of taking over from the dead: sights, their age, claims."""

from __future__ import annotations

from .patching import Edit, Mutant

_OLD = "if sight.until - sight.since >= lease]\n"
_IDLE = "sent.sent_at + (sights.offset or 0) - sight.stamp >= lease"
_NEW_CONNECTION = Edit("server.leases", "            self.reclaim.restart(queue.index)\n", "")
_PROBE_REFUSED = Edit(
    "server.leases",
    """\
            self.reclaim.restart(queue)
            self.shared.refused("renewing", outcome.error)
""",
    """\
            self.shared.refused("renewing", outcome.error)
""",
)
_LOOK_REFUSED = Edit(
    "server.leases",
    """\
        self.reclaim.restart(queue)
        look = self.looks[queue]
""",
    """\
        look = self.looks[queue]
""",
)

RECLAIM = (
    Mutant(
        "never-claims",
        "go a; style M1; design 4.5",
        "Nothing is taken over from the dead.",
        (
            Edit(
                "server.reclaim",
                "        return self.sights[queue].dead[:room] if room > 0 and not self.closing else []\n",
                "        return self.sights[queue].dead[:0] if room > 0 and not self.closing else []\n",
            ),
        ),
    ),
    Mutant(
        "age-by-idle-time",
        "finding 13; design 4.5",
        "An owner is dead when Redis says that its entry was idle for a lease: a forward step of the clock kills all.",
        (Edit("server.reclaim", _OLD, f"if {_IDLE}]\n"),),
    ),
    Mutant(
        "age-confirmed-by-idle-time",
        "finding 12; design 4.5",
        "An owner is dead only when the idle time says so, too: after a backward step of the clock recovery waits for "
        "as long as the step was.",
        (
            Edit(
                "server.reclaim",
                _OLD,
                f"""\
if sight.until - sight.since >= lease
            and {_IDLE}
        ]
""",
            ),
        ),
    ),
    Mutant(
        "idle-zero-taken-for-the-future",
        "finding 2.4a",
        "Idle 0 in a single listing counts as a stamp in the future: an owner that was only just seen renewing is "
        "taken for one that does not renew.",
        (
            Edit(
                "server.reclaim",
                """\
                if row.idle_ms == 0:
                    sights.rechecks.append(row.entry_id)
""",
                """\
                sights.fresh[row.entry_id].future = row.idle_ms == 0
""",
            ),
        ),
    ),
    Mutant(
        "future-is-never-unchanged",
        "finding 2.4a; finding 12",
        "While a stamp lies in the future of Redis's clock it is a new one at each look: a dead worker's tasks wait "
        "for as long as the clock was set back.",
        (
            Edit(
                "server.reclaim",
                "        return seen.future or abs(seen.stamp",
                "        return abs(seen.stamp",
            ),
        ),
    ),
    Mutant(
        "sights-kept-over-a-clock-step",
        "finding 2.4b",
        "A step of Redis's clock does not begin the ages anew: steps can give each renewal the same stamp again.",
        (Edit("server.reclaim", "        if stepped or gap:\n", "        if gap:\n"),),
    ),
    Mutant(
        "looks-without-a-probe",
        "finding 2.4c",
        "A look counts also while nobody could renew: on a full server a healthy owner's silence is taken for death.",
        (
            Edit("server.reclaim", "redis_ms is None or not probed or not sights", "redis_ms is None or not sights"),
            _PROBE_REFUSED,
        ),
    ),
    Mutant(
        "sights-kept-over-a-new-connection",
        "finding 2.4",
        "Ages go on over a lost connection of one's own, as though the owners had had one meanwhile.",
        (_NEW_CONNECTION,),
    ),
    Mutant(
        "sights-kept-over-a-refused-look",
        "finding 2.4",
        "Ages go on over a look that was refused, as though the owners' renewals had not been.",
        (_PROBE_REFUSED, _LOOK_REFUSED),
    ),
    Mutant(
        "sights-kept-over-an-outage",
        "finding 2.4; design 4.5",
        "Neither a lost connection, nor a refusal, nor a gap between two looks begins the ages anew: after an outage "
        "of a lease the first that is back robs the others.",
        (
            _NEW_CONNECTION,
            _PROBE_REFUSED,
            _LOOK_REFUSED,
            Edit(
                "server.reclaim",
                "        if stepped or gap:\n",
                "        if stepped and gap:\n",
            ),
        ),
    ),
    Mutant(
        "claim-without-a-watch",
        "design 4.3; finding 13",
        "A claim asks nobody: of two that saw an owner die both take its entry.",
        (
            Edit(
                "server.reclaim",
                "commands.watch(queue.keys.fence), commands.TIME",
                "commands.get(queue.keys.fence), commands.TIME",
            ),
        ),
    ),
    Mutant(
        "claim-without-a-bump",
        "design 4.3; finding 11",
        "A claim does not touch the fence: an owner that had asked before it steals the entry back, or ends the task.",
        (
            Edit(
                "server.reclaim",
                "claim = (commands.claim(queue.keys.stream, self.consumer, ids), "
                "commands.increment(queue.keys.fence))\n",
                "claim = (commands.claim(queue.keys.stream, self.consumer, ids),)\n",
            ),
        ),
    ),
    Mutant(
        "claims-without-asking-again",
        "finding 13; design 4.5",
        "A claim does not ask whether the owner has renewed since the last look.",
        (
            Edit(
                "server.reclaim",
                "            if self._unchanged(known, Sight(row.owner, row.deliveries, redis_after - row.idle_ms, "
                "future)):\n",
                "            if (known.owner, known.future) in ((row.owner, future), (row.owner, not future)):\n",
            ),
        ),
    ),
    Mutant(
        "claims-without-room",
        "go N12; design 4.5",
        "A worker claims all that is dead, whatever room it has.",
        (
            Edit(
                "server.reclaim",
                "        room = min(self.tasks.room, self.settings.batch)\n",
                "        room = self.settings.batch\n",
            ),
        ),
    ),
    Mutant(
        "max-deliveries-ignored",
        "go o; design 4.5",
        "A task that kills its workers is given to one after the other without end.",
        (
            Edit(
                "server.handlers",
                "        if task.deliveries > self.settings.max_deliveries:\n",
                "        if task.deliveries < 0:\n",
            ),
        ),
    ),
)
