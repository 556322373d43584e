"""From a seed to a plan: each run has its own shape, workload, settings, and its own few kinds of faults.

Swarm testing (Groce et al., 2012): what is always on masks what is rare, so each run leaves most kinds out, and draws
how strong the others are. About one run in nine has no fault, for the oracles that only a faultless run can judge.
Nearly half of the runs are scripts (`scripts.py`), a third are duels: few processes, a rich workload, and faults that
aim at one or two sections of the protocol again and again. The others are wide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .draws import Draws
from .faults import BAD_ENTRIES, CATALOGUE
from .plan import Act, FaultPlan, Plan, ProcessPlan, TaskPlan
from .scripts import SCRIPTS, Stage

_VERSIONS = ("redis7", "redis8", "valkey9")
_FAULTLESS_PERCENT = 15
"""Of the runs that are no scripts."""

WORKER_PURPOSES = (
    *("settlement.on_plain", "settlement.on_tracked", "conclusions.on_answer", "conclusions.on_replaced"),
    *("conclusions.on_replaced", "settlement.on_plain", "reclaim.on_claimed", "leases.on_renewed"),
    *("leases.on_look", "leases.on_renewed", "reclaim.on_question", "reclaim.on_claimed", "intake.on_read"),
    *("promotion.on_answer", "promotion.on_moved", "setup.on_fence", "setup.on_group", "missing.on_answer"),
    *("missing.on_adopted", "sweep.on_head", "sweep.on_adopted", "consumers.on_collected", "closing.on_pending"),
    *("closing.on_deleted", "reclaim.on_recheck", "missing.on_acknowledged", "conclusions.on_repaired"),
)
CLIENT_PURPOSES = (
    *("outbox.on_batch", "outbox.on_batch", "outbox.on_batch", "outbox.on_armed", "heartbeat.on_beat"),
    *("receiver.on_read", "outbox.on_batch", "heartbeat.on_signs", "audit.on_entries"),
    *("receiver.on_deleted", "receiver.on_made", "garbage.on_deleted", "garbage.on_removed", "closing.on_tidied"),
)

GROUPS: dict[str, tuple[str, ...]] = {
    "replies": ("cut", "cut", "cut", "break"),
    "network": ("refuse", "silence", "mute", "deaf", "delay", "stall"),
    "death": ("kill",),
    "freezing": ("freeze", "freeze", "slow"),
    "deployments": ("close",),
    "outages": ("restart", "pause", "demote"),
    "refusals": ("loading", "oom", "busy", "misconf", "noreplicas", "masterdown"),
    "losses": ("restart lossy", "rollback", "flush", "failover"),
    "clocks": ("clock", "wall"),
    "operators": ("delete stream", "trim", "destroy group", "delete consumers", "delete key", "delete receiver"),
    "strangers": ("bad entry", "wrong type"),
    "credentials": ("credentials",),
}
"""Kinds of faults that are switched on and off together."""
_GUARDED = (
    *("leases.on_renewed", "leases.on_renewed", "conclusions.on_replaced", "conclusions.on_replaced"),
    *("conclusions.on_answer", "reclaim.on_claimed", "reclaim.on_question", "settlement.on_plain"),
    *("settlement.on_tracked", "promotion.on_moved", "intake.on_read", "leases.on_look", "missing.on_adopted"),
)
_BATCH = ("outbox.on_batch",)
_WORDS = ("settlement.on_tracked", "settlement.on_tracked", "receiver.on_made", "heartbeat.on_beat", "receiver.on_read")


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a duel does again and again, mostly at one or two sections of the protocol."""

    kinds: tuple[str, ...]
    weight: int
    targets: tuple[str, ...] = ()
    """Sections to aim at; without, those of either side."""
    split_percent: int = -1
    """Where it needs batches that arrive in two parts."""


PATTERNS: dict[str, Pattern] = {
    "zombie": Pattern(("freeze",), 5, _GUARDED),
    "late": Pattern(("cut late",), 2),
    "late batch": Pattern(("cut late", "cut late", "cut lost"), 2, _BATCH),
    "lost": Pattern(("cut lost", "cut lost", "cut prefix", "cut before"), 3),
    "death": Pattern(("kill",), 1),
    "loss": Pattern(("flush", "rollback", "restart lossy", "failover"), 2),
    "flush": Pattern(("flush",), 1, _BATCH, split_percent=100),
    "rollbacks": Pattern(("rollback", "rollback", "rollback", "cut lost"), 1, _BATCH),
    "refusal": Pattern(("oom", "oom", "loading", "demote", "misconf", "noreplicas", "busy", "masterdown"), 2),
    "operator": Pattern((*GROUPS["operators"], "delete receiver", "wrong type", "bad entry"), 2),
    "words": Pattern(
        ("delete receiver", "delete receiver", "delete receiver", "cut lost", "break", "refuse", "clock"), 3, _WORDS
    ),
    "types": Pattern(("wrong type", "wrong type", "cut lost"), 1, ("outbox.on_batch", "promotion.on_moved")),
    "outage": Pattern(("restart", "pause", "silence", "mute", "deaf", "refuse", "stall", "break"), 1),
    "closing": Pattern(("close", "close", "cut lost", "cut late", "kill"), 2),
    "clock": Pattern(("clock",), 2),
    "clock and death": Pattern(("clock", "kill", "freeze"), 1),
}
_BY_WEIGHT = tuple(name for name, pattern in PATTERNS.items() for _ in range(pattern.weight))


def make_plan(seed: int) -> Plan:
    """The plan of a seed."""
    draws = Draws(seed, "plan")
    return _Maker(seed, draws).plan()


class _Maker:
    """Draws the parts of one plan."""

    def __init__(self, seed: int, draws: Draws) -> None:
        self.seed = seed
        self.draws = draws
        kind = draws.below(100, "kind")
        self.script = SCRIPTS[draws.pick(tuple(SCRIPTS), "script")] if kind < 45 else None
        self.duel = kind < 75
        self.renew_ms = draws.pick((600, 600, 900) if self.script is not None else (600, 900, 900, 1_500), "renew")
        self.lease_ms = self.renew_ms * draws.pick((4, 4, 5, 6), "lease")
        lengths = (3, 4) if self.script is not None else (1, 2, 2, 3) if self.duel else (1, 2, 3, 4, 6)
        self.length_ms = self.lease_ms * draws.pick(lengths, "length")
        queues = (1, 1, 1, 1, 1, 2) if self.duel else (1, 1, 1, 2, 2, 3, 5)
        workers = (1, 1, 2, 2, 2, 2, 3) if self.duel else (1, 2, 3, 3, 4, 5, 8, 12)
        clients = (1, 1, 1, 2) if self.duel else (1, 1, 2, 2, 3, 4)
        fixed = self.script.plan if self.script is not None else {}
        self.queues = tuple(f"q{n}" for n in range(1, 1 + fixed.get("queues", draws.pick(queues, "queues"))))
        self.worker_count = fixed.get("workers", draws.pick(workers, "workers"))
        self.client_count = draws.pick(clients, "clients")
        self.workers = [f"w{n}" for n in range(1, 1 + self.worker_count)]
        self.clients = [f"c{n}" for n in range(1, 1 + self.client_count)]
        self.groups = self._groups()
        self.patterns = [draws.pick(_BY_WEIGHT, "pattern", n) for n in range(draws.pick((1, 1, 1, 2), "patterns"))]
        """What a duel is about."""
        sides = (_GUARDED, _GUARDED, WORKER_PURPOSES, CLIENT_PURPOSES, CLIENT_PURPOSES)
        purposes = PATTERNS[self.patterns[0]].targets or draws.pick(sides, "side")
        self.targets = [draws.pick(purposes, "target", n) for n in range(draws.pick((1, 1, 2), "targets"))]
        """What its faults aim at."""

    def _groups(self) -> list[str]:
        draws = self.draws.under("groups")
        if self.script is None and draws.happens(_FAULTLESS_PERCENT, "none"):
            return []
        if self.duel:
            return ["duel"]
        chosen = draws.some(tuple(GROUPS), draws.pick((8, 15, 15, 30, 60), "rate"), "each")
        return chosen or [draws.pick(tuple(GROUPS), "only")]

    def plan(self) -> Plan:
        """All parts together."""
        draws = self.draws
        worker_settings = self._worker_settings()
        client_settings = self._client_settings()
        workers = tuple(self._process(name, worker=True) for name in self.workers)
        clients = tuple(self._process(name, worker=False) for name in self.clients)
        faults = self._faults(worker_settings)
        fixed = self.script.plan if self.script is not None else {}
        victims = [name for name in self.workers[1:] if draws.happens(15, "gone", name)] if faults else []
        return Plan(
            seed=self.seed,
            version=draws.pick(_VERSIONS, "version"),
            queues=self.queues,
            latency_ms=fixed.get("latency_ms", draws.pick((0, 1, 1, 1, 3, 10), "latency")),
            jitter_ms=fixed.get("jitter_ms", draws.pick((0, 0, 1, 2, 5, 20), "jitter")),
            split_percent=self._split_percent(),
            workers=workers,
            clients=clients,
            tasks=self._tasks(worker_settings),
            faults=faults,
            calm_at_ms=self.length_ms + 1_000,
            gone=tuple(victims),
            client_settings=client_settings,
            worker_settings=worker_settings,
        )

    def _split_percent(self) -> int:
        if self.script is not None and "split_percent" in self.script.plan:
            return self.script.plan["split_percent"]
        wanted = PATTERNS[self.patterns[0]].split_percent if self.duel else -1
        return wanted if wanted >= 0 else self.draws.pick((0, 0, 5, 30, 100), "split")

    # Settings.

    def _worker_settings(self) -> dict[str, int]:
        draws = self.draws.under("worker settings")
        renew, lease = self.renew_ms, self.lease_ms
        settings = {
            "lease_ms": lease,
            "renew_interval_ms": renew,
            "command_timeout_ms": draws.pick((renew // 3, renew // 3, renew // 4), "timeout"),
            "connect_timeout_ms": draws.pick((300, 1_000, 2_000), "connect"),
            "block_ms": draws.pick((200, 1_000, 3_000, 5_000), "block"),
            "read_margin_ms": draws.pick((300, 1_000), "margin"),
            "backoff_least_ms": draws.pick((10, 50), "least"),
            "backoff_most_ms": draws.pick((200, 1_000, 3_000), "most"),
            "concurrency": draws.pick((1, 1, 2, 4, 10), "concurrency"),
            "prefetch": draws.pick((-1, -1, 0, 1, 5), "prefetch"),
            "max_deliveries": draws.pick((2, 3, 3, 10), "deliveries"),
            "promote_interval_ms": draws.pick((500, 2_000, 2_000), "promote"),
            "sweep_interval_ms": draws.pick((1_000, 4_000, 20_000), "sweep"),
            "silence_ms": 6 * lease,
            "collect_interval_ms": draws.pick((3_000, 6_000), "collect"),
            "consumer_silence_ms": draws.pick((2, 4), "consumers") * lease,
            "producer_silence_ms": 8 * lease,
            "cancel_wait_ms": draws.pick((100, 2_000), "cancel"),
            "finish_timeout_ms": draws.pick((500, 3_000), "finish"),
            "page": draws.pick((500, 500, 1, 3), "page"),
            "batch": draws.pick((256, 256, 1, 3), "batch"),
            "timeout_ms": draws.pick((0, 400, 3_000, 2 * lease), "handler timeout"),
        }
        if settings["page"] < 3 and self.worker_count > 3:
            settings["page"] = 3
        return settings | (self.script.worker if self.script is not None else {})

    def _client_settings(self) -> dict[str, int]:
        draws = self.draws.under("client settings")
        fixed = self.script.client if self.script is not None else {}
        heartbeat = fixed.get("heartbeat_ms", draws.pick((500, 1_000, 3_000), "heartbeat"))
        return {
            "heartbeat_ms": heartbeat,
            "retention_ms": heartbeat * draws.pick((3, 10, 10), "retention"),
            "max_local_queue": draws.pick((10_000, 10_000, 5), "queue"),
            "batch_commands": draws.pick((256, 256, 2), "batch"),
            "command_timeout_ms": draws.pick((400, 1_000), "timeout"),
            "connect_timeout_ms": draws.pick((300, 1_000), "connect"),
            "block_ms": draws.pick((200, 1_000, 3_000), "block"),
            "read_margin_ms": draws.pick((300, 1_000), "margin"),
            "backoff_least_ms": draws.pick((10, 50), "least"),
            "backoff_most_ms": draws.pick((200, 1_000, 3_000), "most"),
            "reconnect_audit_ms": draws.pick((1_000, 5_000), "reconnect"),
            "audit_interval_ms": draws.pick((5_000, 20_000, 300_000), "audit"),
            "audit_grace_ms": draws.pick((500, 3_000), "grace"),
            "deadline_wait_ms": draws.pick((1_000, 5_000), "deadline"),
            "silence_ms": 6 * self.lease_ms,
            "producer_silence_ms": 8 * self.lease_ms,
            "collect_interval_ms": draws.pick((3_000, 6_000), "collect"),
        } | fixed

    def _process(self, name: str, *, worker: bool) -> ProcessPlan:
        draws = self.draws.under("process", name)
        wall = 0
        if "clocks" in self.groups:
            wall = draws.pick((0, 0, -5_000, 5_000, 60_000, -60_000), "wall")
        at = draws.pick((0, 0, 0, self.length_ms // 4, self.length_ms // 2), "at")
        if name in ("w1", "c1") or self.script is not None:
            at = 0
        return ProcessPlan(
            name,
            at_ms=at,
            origin_ms=draws.below(1_000_000, "origin"),
            drift_ppm=draws.pick((0, 0, -200, 200, 50), "drift"),
            wall_ms=wall,
        )

    # Work.

    def _tasks(self, worker_settings: dict[str, int]) -> tuple[TaskPlan, ...]:
        draws = self.draws.under("tasks")
        count = draws.pick((3, 6, 12, 20) if self.duel else (3, 10, 20, 40, 80), "count")
        mood = {
            "failures": draws.pick((0, 40, 70) if self.duel else (0, 10, 40), "failures"),
            "odd": draws.pick((0, 0, 10, 40), "odd"),
            "slow": draws.pick((0, 40, 80) if self.duel else (0, 10, 40), "slow"),
            "tracked": draws.pick((0, 50, 50, 100), "tracked"),
            "delays": draws.pick((0, 0, 30, 60), "delays"),
            "deadlines": draws.pick((0, 30, 60) if "words" in self.patterns else (0, 0, 30, 60), "deadlines"),
            "bursts": draws.pick((0, 1), "bursts"),
            "poison": draws.pick((0, 0, 0, 3), "poison"),
        }
        if self.script is not None:
            mood |= self.script.mood
            count = mood.get("count", count)
        return tuple(self._task(f"t{n}", mood, worker_settings) for n in range(1, count + 1))

    def _task(self, name: str, mood: dict[str, int], worker: dict[str, int]) -> TaskPlan:
        draws = self.draws.under("task", name)
        at = draws.below(mood.get("within_leases", 0) * self.lease_ms or self.length_ms, "at")
        if mood["bursts"]:
            at -= at % (self.length_ms // 4)
        options: dict[str, int] = {
            "retry_delay_ms": mood.get("retry_delay_ms", draws.pick((0, 0, 100, 1_000), "retry delay")),
            "retry_backoff": draws.pick((100, 200), "backoff"),
            "retry_delay_max_ms": 3_000,
        }
        acts = self._scripted_acts(draws) or self._acts(draws, mood, worker)
        tail = draws.pick((-1, -1, 0, 1, 3), "max retries")
        if acts[-1].does not in ("succeed", "deaf"):
            tail = max(tail, 0)
        if tail >= 0:
            options["max_retries"] = tail
        if draws.happens(mood["delays"], "delay"):
            options["delay_ms"] = draws.pick((200, 1_000, 5_000), "delay ms")
        expires_at = 0
        if draws.happens(mood["deadlines"], "deadline"):
            if draws.happens(30, "absolute"):
                expires_at = at + draws.pick((1_000, 5_000), "expires at")
            else:
                options["expires_in_ms"] = draws.pick((200, 2_000, 10_000), "expires in")
        if "expires_in_ms" in mood:
            expires_at = 0
            options["expires_in_ms"] = mood["expires_in_ms"]
        return TaskPlan(
            name,
            at,
            client=draws.pick(self.clients, "client"),
            queue=draws.pick(self.queues, "queue"),
            tracked=draws.happens(mood["tracked"], "tracked"),
            acts=acts,
            size=draws.pick((10, 10, 10, 300), "size"),
            wait=draws.happens(90, "wait"),
            flush=draws.happens(10, "flush"),
            options=options,
            expires_at_ms=expires_at,
        )

    def _scripted_acts(self, draws: Draws) -> tuple[Act, ...]:
        script = self.script
        if script is None:
            return ()
        tenth = self.lease_ms // 10
        return tuple(
            Act(does, leases * tenth + draws.below(tenth, "act", n))
            for n, (does, leases) in enumerate(zip(script.acts, script.run_leases, strict=True))
        )

    def _acts(self, draws: Draws, mood: dict[str, int], worker: dict[str, int]) -> tuple[Act, ...]:
        acts: list[Act] = []
        for attempt in range(3):
            if draws.happens(mood["failures"], "fails", attempt):
                acts.append(Act("fail", draws.pick((0, 1, 20, 500), "fails after", attempt)))
            elif draws.happens(mood["odd"] / 2, "odd", attempt):
                acts.append(self._odd(draws.under("odd act", attempt), worker))
            else:
                break
        if draws.happens(mood["poison"], "poison"):
            return (*acts, Act("poison", draws.pick((0, 10, 300), "poison after")))
        if draws.happens(mood["odd"] / 4, "ends odd"):
            return (*acts, self._odd(draws.under("last act"), worker))
        does = draws.pick(("succeed", "succeed", "deaf"), "last")
        after = draws.pick((0, 1, 10, 100), "after")
        if draws.happens(mood["slow"], "slow"):
            after = draws.pick(
                (1_000, worker["lease_ms"] // 2, worker["lease_ms"] * 3 // 2, 3 * worker["lease_ms"]), "s"
            )
        limit = worker["timeout_ms"]
        if limit and after >= limit - 50:
            # It would never end in time, and be retried for ever.
            after = limit // 2
        return (*acts, Act(does, after))

    def _odd(self, draws: Draws, worker: dict[str, int]) -> Act:
        choices = ["retry", "retry", "reject", "garbage", *(["hang"] if worker["timeout_ms"] else [])]
        does = draws.pick(choices, "does")
        delay = draws.pick((0, 50, 2_000), "delay") if does == "retry" else 0
        return Act(does, draws.pick((0, 5, 200), "after"), delay)

    # Faults.

    def _faults(self, worker: dict[str, int]) -> tuple[FaultPlan, ...]:
        faults: list[FaultPlan] = []
        if self.script is not None:
            return self._scripted()
        for place, pattern in enumerate(self.patterns if self.groups == ["duel"] else ()):
            draws = self.draws.under("duel", pattern, place)
            for n in range(1, 1 + draws.pick((1, 2, 3, 4, 6), "count")):
                one = draws.under(n)
                faults.append(
                    self._fault(f"{pattern}-{place}-{n}", one.pick(PATTERNS[pattern].kinds, "kind"), one, worker)
                )
        for group in self.groups if not self.duel else ():
            draws = self.draws.under("faults", group)
            count = draws.pick((1, 2, 4, 8), "count")
            if group in ("replies", "network", "freezing"):
                count *= draws.pick((1, 2, 4), "more")
            for n in range(1, count + 1):
                one = draws.under(n)
                kind = one.pick(GROUPS[group], "kind")
                faults.append(self._fault(f"{group}-{n}", kind, one, worker))
        return tuple(sorted(faults, key=lambda fault: (fault.at_ms, fault.name)))

    def _scripted(self) -> tuple[FaultPlan, ...]:
        assert self.script is not None
        draws = self.draws.under("script faults")
        stage = Stage(self.workers, self.clients, self.queues, self.lease_ms, self.renew_ms)
        faults: list[FaultPlan] = []
        for scene in range(draws.pick((1, 2, 3, 4), "scenes")):
            one = draws.under(scene)
            at = one.below(self.lease_ms, "at")
            found = self.script.faults(stage, one, at)
            faults += [replace(fault, name=f"scene-{scene}-{n}") for n, fault in enumerate(found)]
        return tuple(sorted(faults, key=lambda fault: (fault.at_ms, fault.name)))

    def _fault(self, name: str, kind: str, draws: Draws, worker: dict[str, int]) -> FaultPlan:
        at = draws.below(30 if draws.happens(10, "early") else self.length_ms, "at")
        lease, renew = worker["lease_ms"], worker["renew_interval_ms"]
        kind, _, detail = kind.partition(" ") if kind.startswith(("cut ", "restart ")) else (kind, "", "")
        lossy = detail == "lossy"
        short = draws.pick((50, renew // 4, renew // 2, renew), "short")
        long = draws.pick((renew // 2, 2 * renew, lease, lease + 2 * renew, 2 * lease), "long")
        values: dict[str, Any] = {}
        on = ""
        for_ms = 0
        purpose = ""
        if CATALOGUE[kind].on == "process":
            on = self._victim(draws)
        if kind not in ("wall", "clock") and draws.happens(85 if self.duel else 25, "aimed"):
            if self.duel:
                purpose = draws.pick(self.targets, "purpose")
                if on:
                    on = draws.pick(self.workers if purpose in WORKER_PURPOSES else self.clients, "aimed at")
            else:
                purpose = draws.pick(CLIENT_PURPOSES if on in self.clients else WORKER_PURPOSES, "purpose")
            if not on:
                values["after_ms"] = draws.pick((0, 1, 2, 5, 30), "after")
        if kind in ("freeze", "silence", "mute", "deaf", "refuse", "stall", "pause"):
            for_ms = draws.pick((short, long), "for")
        elif kind in ("slow", "delay"):
            for_ms = long
            values["by_ms"] = draws.pick((20, 100, renew // 3, renew), "by")
        elif kind in ("loading", "demote", "oom", "busy", "misconf", "noreplicas", "masterdown", "credentials"):
            for_ms = draws.pick((short, short, long), "for")
        if self.duel and (kind == "freeze" or kind in PATTERNS["refusal"].kinds):
            for_ms = draws.pick((renew, lease, lease + renew, lease + 2 * renew, 2 * lease), "duel for")
        self._values(kind, draws, values, lease=lease, lossy=lossy)
        if kind == "cut" and detail:
            values["form"] = detail
        if kind in ("restart", "wrong type"):
            for_ms = draws.pick((0, 50, short, long, 3 * lease), "for")
        if kind == "delete receiver":
            on = draws.pick(self.clients, "on")
        elif not on and (kind in GROUPS["operators"] or kind in GROUPS["strangers"]):
            on = draws.pick(self.queues, "on")
        if CATALOGUE[kind].on == "client":
            values.pop("after_ms", None)
        return FaultPlan(name, kind, at, on, for_ms, purpose, values)

    def _victim(self, draws: Draws) -> str:
        return draws.pick(self.workers if draws.happens(60, "worker") else self.clients, "on")

    def _values(self, kind: str, draws: Draws, values: dict[str, Any], *, lease: int, lossy: bool) -> None:
        if kind == "kill":
            values["restart_ms"] = draws.pick((-1, 0, 500, 3_000), "restart")
        elif kind == "close":
            values["grace_ms"] = draws.pick((0, 200, 2_000), "grace")
            values["restart_ms"] = draws.pick((0, 1_000, lease), "restart")
        elif kind == "wall":
            values["by_ms"] = draws.pick((-100_000, -3_000, 3_000, 100_000), "by")
        elif kind == "clock":
            values["by_ms"] = draws.pick(
                (-lease - 1_000, -3_000, -100, 100, 3_000, lease, 20 * lease, -5 * lease), "by"
            )
        elif kind == "cut":
            values["form"] = draws.pick(("before", "lost", "lost", "prefix", "late", "late"), "form")
            values["lane"] = draws.pick(("command", "command", "read"), "lane")
        elif kind == "break":
            values["lane"] = draws.pick(("command", "read", ""), "lane")
        elif kind == "credentials":
            errors = ("WRONGPASS invalid username-password pair", "NOAUTH Authentication required.")
            values["error"] = draws.pick(errors, "error")
        elif kind == "restart":
            values["lose_ms"] = draws.pick((-1, 50, 1_000, 1_000, 5_000), "lose") if lossy else 0
        elif kind == "rollback":
            values["lose_ms"] = draws.pick((20, 500, 1_000, 5_000), "lose")
        elif kind == "failover":
            values["lag_ms"] = draws.pick((0, 10, 500, 3_000), "lag")
            values["old_ms"] = draws.pick((0, 0, 1_000, 8_000), "old")
            values["clock_ms"] = draws.pick((0, 0, -2_000, 40, 2_000), "clock")
        elif kind == "trim":
            values["keep"] = draws.pick((0, 1, 5), "keep")
        elif kind == "delete consumers":
            values["most"] = draws.pick((1, 12), "most")
        elif kind == "delete key":
            keys = ("producers", "fence", "delayed", "dead", "promotions", "receivers")
            values["key"] = draws.pick(keys, "key")
        elif kind == "wrong type":
            values["key"] = draws.pick(("stream", "delayed", "dead"), "key")
        elif kind == "bad entry":
            values["what"] = draws.pick(tuple(BAD_ENTRIES), "what")
