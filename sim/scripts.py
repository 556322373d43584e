"""Scripts: few faults that belong together, as a search of the protocol's models has found them to be dangerous.

Chance alone seldom brings them together: a worker that freezes just before one certain write, another that takes over
meanwhile and fails, and a first that thaws then. Nearly half of the seeds are such a script, repeated at drawn times;
tasks and settings are those that it needs, all else is drawn as ever. The numbers are those of the protocol findings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .draws import Draws
from .plan import FaultPlan


@dataclass(frozen=True, slots=True)
class Stage:
    """What a script can use."""

    workers: list[str]
    clients: list[str]
    queues: tuple[str, ...]
    lease_ms: int
    renew_ms: int

    def fault(self, kind: str, at: int, on: str = "", for_ms: int = 0, purpose: str = "", **values: Any) -> FaultPlan:
        """A fault; the script's owner gives it its name."""
        return FaultPlan("", kind, at, on, for_ms, purpose, values)


@dataclass(frozen=True, slots=True)
class Script:
    """One script."""

    faults: Callable[[Stage, Draws, int], list[FaultPlan]]
    """From a time on."""
    mood: dict[str, int] = field(default_factory=dict)
    """What the tasks are like: percentages, and their number."""
    client: dict[str, int] = field(default_factory=dict)
    worker: dict[str, int] = field(default_factory=dict)
    plan: dict[str, int] = field(default_factory=dict)
    """`workers`, `queues`, `latency_ms`, `jitter_ms`, `split_percent`."""
    acts: tuple[str, ...] = ()
    """What the runs of each task do, where that is not drawn."""
    run_leases: tuple[int, ...] = ()
    """How long each of these takes, in tenths of a lease."""


def _silent_words(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """The client's read connection goes, and does not come back for a while: words lie unread."""
    client = draws.pick(stage.clients, "client")
    return [
        stage.fault("break", at, client, lane="read"),
        stage.fault("refuse", at, client, draws.pick((1_000, 2_000, 4_000), "for")),
    ]


def _words_lost(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    faults = _silent_words(stage, draws, at)
    client = faults[0].on
    faults.append(
        stage.fault("delete receiver", at + 1, client, 0, "settlement.on_tracked", after_ms=draws.pick((20, 40), "a"))
    )
    faults.append(stage.fault("cut", at + 2, client, 0, "receiver.on_made", form="lost", lane="command"))
    return faults


def _words_lost_at_once(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """Between two reads, so that no connection is lost with them."""
    client = draws.pick(stage.clients, "client")
    return [
        stage.fault(
            "delete receiver", at + 200 * n, client, 0, "settlement.on_tracked", after_ms=draws.pick((15, 20, 25), n)
        )
        for n in range(4)
    ]


def _words_below_the_cursor(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    client = draws.pick(stage.clients, "client")
    return [
        stage.fault("clock", at, by_ms=-draws.pick((3_000, stage.lease_ms, 60_000), "by")),
        stage.fault("delete receiver", at + 5, client),
    ]


def _close_with_words(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    faults = _silent_words(stage, draws, at)
    close_at = at + draws.pick((200, 500, 900), "close")
    return [*faults, stage.fault("close", close_at, faults[0].on, grace_ms=200, restart_ms=1_000)]


def _close_with_a_creation(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    client = draws.pick(stage.clients, "client")
    return [
        stage.fault("delete receiver", at, client),
        stage.fault("cut", at, client, 0, "receiver.on_made", form="late", lane="command"),
        stage.fault("close", at + 1, client, 0, "outbox.on_armed", grace_ms=2_000, restart_ms=1_000),
    ]


def _close_behind_a_batch(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """What was sent, and not answered, may run (2.5)."""
    client = draws.pick(stage.clients, "client")
    return [
        stage.fault("cut", at, client, 0, "outbox.on_batch", form="lost", lane="command"),
        stage.fault("refuse", at, client, 2_000),
        stage.fault("close", at + draws.pick((300, 600), "close"), client, grace_ms=200, restart_ms=2_000),
    ]


def _deaf_read(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """A read that nobody will answer any more."""
    client = draws.pick(stage.clients, "client")
    return [stage.fault(draws.pick(("deaf", "silence"), "kind"), at, client, draws.pick((1_000, 3_500), "for"))]


def _flush_behind_a_batch(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    after = draws.pick((3, 4, 5, 8), "after")
    return [stage.fault("flush", at, "", 0, "outbox.on_batch", after_ms=after)]


def _two_rollbacks(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """The second brings back what the first has taken away."""
    faults = []
    for n in range(3):
        apart = draws.pick((100, 200, 400), "apart", n)
        first = at + 300 + 700 * n
        faults.append(stage.fault("rollback", first, lose_ms=draws.pick((100, 200), "lose", n)))
        faults.append(stage.fault("rollback", first + apart, lose_ms=apart + draws.pick((2, 10), "more", n)))
    return faults


def _type_and_lost_batch(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    queue = draws.pick(stage.queues, "queue")
    key = draws.pick(("stream", "delayed", "delayed"), "key")
    client = draws.pick(stage.clients, "client")
    lasts = draws.pick((stage.lease_ms // 2, stage.lease_ms), "for")
    return [
        stage.fault("wrong type", at, queue, lasts, "outbox.on_batch", key=key, after_ms=0),
        stage.fault("cut", at, client, 0, "outbox.on_batch", form="lost", lane="command"),
    ]


def _type_within_a_move(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    queue = draws.pick(stage.queues, "queue")
    key, purpose = draws.pick(
        (("stream", "promotion.on_moved"), ("dead", "conclusions.on_replaced"), ("delayed", "conclusions.on_replaced")),
        "key",
    )
    return [stage.fault("wrong type", at, queue, draws.pick((200, 2_000), "for"), purpose, key=key, after_ms=0)]


def _zombie(*purposes: str) -> Callable[[Stage, Draws, int], list[FaultPlan]]:
    """A worker freezes just before a write, for longer than its lease."""

    def faults(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
        lasts = stage.lease_ms + draws.pick((3, 4), "for") * stage.renew_ms
        return [stage.fault("freeze", at, stage.workers[0], lasts, draws.pick(purposes, "purpose"))]

    return faults


def _success_between(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """Its success comes when another is about to end the task otherwise (finding 3, 2.3b)."""
    lasts = stage.lease_ms + 3 * stage.renew_ms
    purpose = draws.pick(("settlement.on_plain", "settlement.on_tracked"), "purpose")
    second = draws.pick(("conclusions.on_replaced", "conclusions.on_replaced", "conclusions.on_answer"), "second")
    return [
        stage.fault("freeze", at, stage.workers[0], lasts, purpose),
        stage.fault("freeze", at + stage.lease_ms, stage.workers[1], 2 * stage.renew_ms, second),
    ]


def _race_of_claims(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """Two see the same owner dead; one is late with its claim."""
    lasts = draws.pick((50, stage.renew_ms // 2, stage.renew_ms), "for")
    return [
        stage.fault("kill", at, stage.workers[0], restart_ms=-1),
        stage.fault("freeze", at, stage.workers[1], lasts, "reclaim.on_claimed"),
    ]


def _owner_comes_back(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """It thaws when another is about to claim (finding 2.4e)."""
    lasts = stage.lease_ms + draws.pick((1, 2, 3), "for") * stage.renew_ms
    return [
        stage.fault("freeze", at, stage.workers[0], lasts),
        stage.fault("freeze", at, stage.workers[1], 2 * stage.renew_ms, "reclaim.on_claimed"),
    ]


def _late_ending(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    purpose = draws.pick(("conclusions.on_replaced", "conclusions.on_replaced", "leases.on_renewed"), "purpose")
    worker = draws.pick(stage.workers, "worker")
    return [stage.fault("cut", at, worker, 0, purpose, form="late", lane="command")]


def _lost_reads(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    worker = draws.pick(stage.workers, "worker")
    form = draws.pick(("lost", "late"), "form")
    return [stage.fault("cut", at, worker, 0, "intake.on_read", form=form, lane="read")]


def _death_and_clock(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """The tasks of the dead are taken over, wherever Redis's clock goes (findings 12, 2.4a)."""
    return [
        stage.fault("kill", at, stage.workers[0], restart_ms=-1),
        stage.fault("clock", at + draws.pick((10, stage.renew_ms), "after"), by_ms=-60 * stage.lease_ms),
    ]


def _clock_back(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    return [stage.fault("clock", stage.lease_ms + at, by_ms=-draws.pick((9_000, 20_000), "by"))]


def _steps_like_renewals(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """Each step gives the next renewal the stamp of the one before (finding 2.4b)."""
    return [
        stage.fault("clock", at + n * (stage.renew_ms + 1), by_ms=-(stage.renew_ms + 1))
        for n in range(2 * stage.lease_ms // stage.renew_ms)
    ]


def _refused_for_a_lease(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    """Renewals are refused for a lease, looks are not (finding 2.4c)."""
    kind = draws.pick(("misconf", "noreplicas", "oom"), "kind")
    return [stage.fault(kind, at, "", stage.lease_ms + draws.pick((0, 1, 2), "more") * stage.renew_ms // 2)]


def _gone_for_a_lease(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    lasts = stage.lease_ms + draws.pick((1, 2), "more") * stage.renew_ms
    return [stage.fault("restart", at, "", lasts, lose_ms=0)]


def _nothing(stage: Stage, draws: Draws, at: int) -> list[FaultPlan]:
    return []


_LONG = {"slow": 100, "failures": 0, "odd": 0, "poison": 0, "count": 4, "delays": 0, "deadlines": 0, "within_leases": 1}
_HOLD = {"timeout_ms": 0, "concurrency": 2, "prefetch": 0, "max_deliveries": 10}
_WORDS = {"tracked": 100, "odd": 0, "poison": 0}

SCRIPTS: dict[str, Script] = {
    "words lost": Script(_words_lost, _WORDS, {"audit_interval_ms": 300_000}),
    "words lost at once": Script(
        _words_lost_at_once,
        {**_WORDS, "count": 20, "bursts": 1, "slow": 0, "failures": 0},
        {"audit_interval_ms": 300_000},
        plan={"latency_ms": 10, "jitter_ms": 5},
    ),
    "words below the cursor": Script(_words_below_the_cursor, _WORDS, {"audit_interval_ms": 300_000}),
    "deadline with words unread": Script(_silent_words, {**_WORDS, "deadlines": 100, "failures": 0}),
    "audit with words unread": Script(_silent_words, _WORDS, {"audit_interval_ms": 500, "audit_grace_ms": 100}),
    "audits among promotions": Script(
        _nothing,
        {**_WORDS, "delays": 100, "count": 20},
        {"audit_interval_ms": 500, "audit_grace_ms": 100},
        plan={"latency_ms": 10, "jitter_ms": 20},
    ),
    "close with words unread": Script(_close_with_words, {**_WORDS, "count": 30, "within_leases": 2, "slow": 20}),
    "close with a creation under way": Script(_close_with_a_creation, _WORDS, {"heartbeat_ms": 500}),
    "flush behind a batch": Script(
        _flush_behind_a_batch,
        {"count": 30, "tracked": 0, "delays": 0},
        {"batch_commands": 2},
        plan={"latency_ms": 3, "jitter_ms": 0, "split_percent": 100},
    ),
    "two rollbacks": Script(_two_rollbacks, {"count": 60, "bursts": 0, "within_leases": 1, "slow": 0}),
    "deadline and clock": Script(
        _clock_back,
        {**_WORDS, "deadlines": 100, "expires_in_ms": 22_000, "count": 6, "within_leases": 1},
        worker=_HOLD,
        acts=("succeed",),
        run_leases=(120,),
    ),
    "close behind a lost batch": Script(
        _close_behind_a_batch, {**_WORDS, "slow": 100, "count": 30, "within_leases": 2, "delays": 0, "bursts": 0}
    ),
    "a deaf read": Script(
        _deaf_read,
        {**_WORDS, "count": 20, "within_leases": 3, "bursts": 0, "failures": 0},
        {"audit_interval_ms": 300_000},
    ),
    "type and lost batch": Script(_type_and_lost_batch, {"delays": 60, "count": 12}),
    "type within a move": Script(_type_within_a_move, {"delays": 60, "failures": 60, "count": 12}),
    "zombie renewal": Script(
        _zombie("leases.on_renewed"),
        _LONG,
        worker=_HOLD,
        plan={"workers": 2},
        acts=("succeed",),
        run_leases=(25,),
    ),
    "zombie ending": Script(
        _zombie("conclusions.on_replaced", "conclusions.on_answer"),
        {**_LONG, "count": 6},
        worker=_HOLD,
        plan={"workers": 2},
        acts=("fail", "succeed"),
        run_leases=(1, 8),
    ),
    "success between": Script(
        _success_between,
        {**_LONG, "count": 6},
        worker=_HOLD,
        plan={"workers": 2},
        acts=("succeed", "fail", "succeed"),
        run_leases=(1, 1, 1),
    ),
    "race of claims": Script(
        _race_of_claims, _LONG, worker=_HOLD, plan={"workers": 3}, acts=("deaf",), run_leases=(15,)
    ),
    "owner comes back": Script(
        _owner_comes_back, _LONG, worker=_HOLD, plan={"workers": 2}, acts=("deaf",), run_leases=(40,)
    ),
    "late ending": Script(
        _late_ending, {"failures": 70, "count": 12, "retry_delay_ms": 0, "delays": 0}, plan={"queues": 2}
    ),
    "lost reads": Script(_lost_reads, {"count": 12}),
    "death and clock": Script(
        _death_and_clock, _LONG, worker=_HOLD, plan={"workers": 2}, acts=("succeed",), run_leases=(8,)
    ),
    "steps like renewals": Script(
        _steps_like_renewals,
        _LONG,
        worker=_HOLD,
        plan={"workers": 2, "latency_ms": 0, "jitter_ms": 0, "split_percent": 0},
        acts=("succeed",),
        run_leases=(40,),
    ),
    "together": Script(
        _nothing,
        _LONG,
        worker=_HOLD,
        plan={"workers": 2, "latency_ms": 0, "jitter_ms": 0, "split_percent": 0},
        acts=("succeed",),
        run_leases=(40,),
    ),
    "refused for a lease": Script(
        _refused_for_a_lease, _LONG, worker=_HOLD, plan={"workers": 2}, acts=("succeed",), run_leases=(40,)
    ),
    "gone for a lease": Script(
        _gone_for_a_lease, _LONG, worker=_HOLD, plan={"workers": 2}, acts=("succeed",), run_leases=(40,)
    ),
}
"""By name."""
