"""The catalogue of faults: what each imitates, what a plan says of it, and what it does to the world.

A fault strikes at its time, or, where it names a `purpose`, at the first batch from then on that has such a section:
so it hits the one write that matters (`conclusions.on_replaced`), whatever is taken out of the plan around it. What
befalls the process itself comes before the batch is sent; what befalls the server `after_ms` later.
`docs/faults.md` is held to this catalogue by a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamfleet_protocol.effects import Batch
from streamfleet_protocol.keys import SERVER_GROUP, queue_keys, receiver_key
from streamfleet_protocol.replies import ErrorReply

from .plan import FaultPlan, Plan, PlanError

if TYPE_CHECKING:
    from .processes import Process
    from .site import Host
    from .world import World

_PROCESSES = ("process", "worker")

Values = dict[str, tuple[int, int] | tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of fault."""

    imitates: str
    """The real event."""
    on: str
    """What it strikes: `process`, `worker`, `client`, `queue`, `server`."""
    strike: Callable[[Faults, FaultPlan], None]
    lasts: bool = False
    """It goes on for `for_ms`."""
    values: Values = field(default_factory=dict)
    """Its own values: a range of whole numbers, or the texts that it may be."""
    lead: str = ""
    """The value that says how much earlier the data are kept that are left after it."""

    def check(self, plan: Plan, fault: FaultPlan) -> None:
        """Raises PlanError where the fault makes no sense in that plan."""
        workers = {process.name for process in plan.workers}
        clients = {process.name for process in plan.clients}
        known = {
            "worker": workers,
            "client": clients,
            "process": workers | clients,
            "queue": set(plan.queues),
            "server": {""},
        }[self.on]
        if fault.on not in known:
            raise PlanError(f"fault {fault.name} ({fault.kind}) is on {fault.on!r}: it needs one of {sorted(known)}")
        for name, domain in self.values.items():
            value = fault.values.get(name)
            if isinstance(domain[0], str):
                good = value in domain
            else:
                good = isinstance(value, int) and domain[0] <= value <= domain[1]
            if not good:
                raise PlanError(f"fault {fault.name} ({fault.kind}): {name} is {value!r}; it must be in {domain}")
        known_values = {*self.values, *(["after_ms"] if fault.purpose and self.on not in _PROCESSES else [])}
        unknown = sorted(set(fault.values) - known_values)
        if unknown:
            raise PlanError(f"fault {fault.name} ({fault.kind}) has unknown values: {', '.join(unknown)}")


class Faults:
    """The faults of a run, as they strike."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.struck: Counter[str] = Counter()
        self.armed: dict[str, list[FaultPlan]] = {}
        """By process: those that wait for its next fitting batch."""
        self.cuts = False
        """Some of them are cuts."""
        self.windows: dict[tuple[str, str], int] = {}
        """By kind and process: until when it lasts."""
        self.strength: dict[tuple[str, str], int] = {}
        self.stalls = False
        self.modes: dict[tuple[int, str], int] = {}
        """By host and mode: until when it lasts."""
        self.refusals: dict[str, ErrorReply] = {}

    def plan(self) -> None:
        """Put all faults of the plan on the agenda."""
        agenda = self.world.agenda
        for fault in self.world.plan.faults:
            kind = CATALOGUE[fault.kind]
            if kind.lead:
                # One that waits for its purpose loses what was written since its time.
                before = int(fault.values[kind.lead])
                if before >= 0:
                    at = fault.at_ms if fault.purpose else max(0, fault.at_ms - before)
                    agenda.at(at, self.world.site, "keep", fault.name)
            agenda.at(fault.at_ms, self, "strike", fault)

    def strike(self, fault: FaultPlan) -> None:
        """Its time has come."""
        if self.world.calm:
            return
        kind = CATALOGUE[fault.kind]
        if fault.purpose or fault.kind == "cut":
            self.armed.setdefault(fault.on if kind.on in _PROCESSES else "", []).append(fault)
            self.cuts = self.cuts or fault.kind == "cut"
        else:
            self._apply(fault)

    def apply(self, fault: FaultPlan) -> None:
        """It strikes, a little after the batch that it has waited for."""
        if not self.world.calm:
            self._apply(fault)

    def _apply(self, fault: FaultPlan) -> None:
        self.struck[fault.kind] += 1
        self.world.trace("fault", fault.kind, fault)
        self.trouble(fault)
        CATALOGUE[fault.kind].strike(self, fault)

    def trouble(self, fault: FaultPlan) -> None:
        """Whoever it strikes may be out of touch from now on; a server's faults strike all."""
        world = self.world
        for process in world.processes.values():
            if CATALOGUE[fault.kind].on in ("server", "queue") or process.name == fault.on:
                world.ledger.out_of_touch(process)

    def calm(self) -> None:
        """No fault strikes any more, and all that lasts ends."""
        self.armed.clear()
        self.cuts = self.stalls = False
        self.windows.clear()
        self.refusals.clear()
        for host_number, mode in list(self.modes):
            if host_number >= 0:
                self._end_mode(host_number, mode)
        for fault in self.world.plan.faults:
            if fault.kind == "wrong type":
                # Older data may have brought it back.
                self.modes[-1, fault.name] = self.world.now
                self.mend_type(fault)

    # What the network and the processes ask.

    def before_send(self, process: Process, batch: Batch) -> None:
        """A batch is about to be written: faults of the process that wait for it strike."""
        for name in (process.name, ""):
            for fault in self.armed.get(name, ()):
                if fault.kind != "cut" and fault.purpose in batch.purposes:
                    self.armed[name].remove(fault)
                    # The batch is on its way by then, but for what befalls its process itself.
                    if name:
                        self._apply(fault)
                    else:
                        at = self.world.now + int(fault.values.get("after_ms", 0))
                        self.world.agenda.at(at, self, "apply", fault)
                    return

    def cut_for(self, process: Process, batch: Batch) -> FaultPlan | None:
        """The cut that strikes the connection at this batch."""
        for fault in self.armed.get(process.name, ()):
            if fault.kind == "cut" and (
                fault.purpose in batch.purposes if fault.purpose else fault.values["lane"] == batch.lane.value
            ):
                self.armed[process.name].remove(fault)
                self.struck["cut"] += 1
                self.world.trace("fault", "cut", fault)
                return fault
        return None

    def _lasts(self, kind: str, process: Process) -> bool:
        return self.world.now < self.windows.get((kind, process.name), 0)

    def is_mute(self, process: Process) -> bool:
        """What it sends is lost."""
        return bool(self.windows) and (self._lasts("mute", process) or self._lasts("silence", process))

    def is_deaf(self, process: Process) -> bool:
        """What is sent to it is lost."""
        return bool(self.windows) and (self._lasts("deaf", process) or self._lasts("silence", process))

    def is_silent(self, process: Process) -> bool:
        """It cannot connect, and is not told so."""
        return self.is_mute(process) or self.is_deaf(process)

    def refusal(self, process: Process) -> ErrorReply | None:
        """Why its attempt to connect fails."""
        if self._lasts("refuse", process):
            return ErrorReply("CONNECTION refused")
        if self._lasts("credentials", process):
            return self.refusals[process.name]
        return None

    def extra_latency(self, process: Process) -> int:
        """What comes on top of each message's latency."""
        if self.windows and self._lasts("delay", process):
            return self.strength["delay", process.name]
        return 0

    def stalled_until(self, process: Process) -> int:
        """Until when the network keeps its bytes, in both directions."""
        return self.windows.get(("stall", process.name), 0)

    # Helpers of the catalogue.

    def process(self, fault: FaultPlan) -> Process:
        """The process it is on."""
        return self.world.processes[fault.on]

    def last(self, fault: FaultPlan) -> None:
        """It lasts on its process."""
        key = (fault.kind, fault.on)
        self.windows[key] = max(self.windows.get(key, 0), self.world.now + fault.for_ms)
        self.strength[key] = int(fault.values.get("by_ms", 0))

    def set_mode(self, fault: FaultPlan, mode: str) -> None:
        """The server refuses for a while."""
        host = self.world.site.primary
        setattr(host.server, mode, True)
        until = max(self.modes.get((host.number, mode), 0), self.world.now + fault.for_ms)
        self.modes[host.number, mode] = until
        self.world.agenda.at(until, self, "end_mode", host.number, mode)

    def end_mode(self, host_number: int, mode: str) -> None:
        """It does not any more, if nothing else has prolonged it."""
        if self.modes.get((host_number, mode), 1 << 60) <= self.world.now:
            self._end_mode(host_number, mode)

    def _end_mode(self, host_number: int, mode: str) -> None:
        self.modes.pop((host_number, mode), None)
        for host in (self.world.site.primary, self.world.site.old):
            if host is not None and host.number == host_number:
                setattr(host.server, mode, False)

    def mend_type(self, fault: FaultPlan) -> None:
        """The operator deletes what is in the way."""
        if (-1, fault.name) not in self.modes:
            return
        key = getattr(queue_keys(fault.on), str(fault.values["key"]))
        found, *_ = self.world.site.operator((b"TYPE", key))
        if found != b"string" and not isinstance(found, ErrorReply):
            del self.modes[-1, fault.name]
        elif isinstance(self.world.site.operator((b"DEL", key))[0], ErrorReply):
            self.world.agenda.at(self.world.now + 500, self, "mend_type", fault)
        else:
            del self.modes[-1, fault.name]

    def operate(self, fault: FaultPlan, *commands: tuple[bytes | int, ...], excuses: bool = True) -> None:
        """An operator's commands. `excuses`: what they take away is not missed."""
        world = self.world
        before = dict(world.site.primary.server.snapshot().data) if excuses else {}
        world.site.operator(*commands)
        if excuses:
            world.ledger.data_lost(fault.kind, before, world.site.primary.server.keys.data, repairable=False)


def _kill(faults: Faults, fault: FaultPlan) -> None:
    process = faults.process(fault)
    process.kill()
    restart_ms = int(fault.values["restart_ms"])
    if restart_ms >= 0:
        faults.world.agenda.at(faults.world.now + restart_ms, process, "start")


def _freeze(faults: Faults, fault: FaultPlan) -> None:
    faults.process(fault).freeze(fault.for_ms)


def _slow(faults: Faults, fault: FaultPlan) -> None:
    process = faults.process(fault)
    process.slow_ms = int(fault.values["by_ms"])
    process.slow_until = faults.world.now + fault.for_ms


def _close(faults: Faults, fault: FaultPlan) -> None:
    process = faults.process(fault)
    process.close(int(fault.values["grace_ms"]))
    restart_ms = int(fault.values["restart_ms"])
    faults.world.agenda.at(faults.world.now + restart_ms, faults.world, "start_again", process)


def _wall(faults: Faults, fault: FaultPlan) -> None:
    faults.process(fault).wall_ms += int(fault.values["by_ms"])


def _break(faults: Faults, fault: FaultPlan) -> None:
    faults.world.network.cut_process(faults.process(fault), str(fault.values["lane"]))


def _stall(faults: Faults, fault: FaultPlan) -> None:
    faults.last(fault)
    faults.stalls = True


def _credentials(faults: Faults, fault: FaultPlan) -> None:
    faults.last(fault)
    faults.refusals[fault.on] = ErrorReply(str(fault.values["error"]))
    faults.world.network.cut_process(faults.process(fault), "")


def _pause(faults: Faults, fault: FaultPlan) -> None:
    host = faults.world.site.primary
    host.paused_until = max(host.paused_until, faults.world.now + fault.for_ms)


def _restart(faults: Faults, fault: FaultPlan) -> None:
    site = faults.world.site
    if int(fault.values["lose_ms"]) == 0:
        site.kept.pop(fault.name, None)
        site.restart_intact(fault.for_ms)
    else:
        site.restart(fault.name, fault.for_ms)


def _failover(faults: Faults, fault: FaultPlan) -> None:
    faults.world.site.fail_over(fault.name, int(fault.values["old_ms"]), int(fault.values["clock_ms"]))


def _rollback(faults: Faults, fault: FaultPlan) -> None:
    faults.world.site.roll_back(fault.name)


def _clock(faults: Faults, fault: FaultPlan) -> None:
    faults.world.site.jump(int(fault.values["by_ms"]))


def _mode(name: str) -> Callable[[Faults, FaultPlan], None]:
    def strike(faults: Faults, fault: FaultPlan) -> None:
        faults.set_mode(fault, name)

    return strike


def _demote(faults: Faults, fault: FaultPlan) -> None:
    host: Host = faults.world.site.primary
    faults.set_mode(fault, "readonly")
    host.server.demote()
    faults.world.site.deliver_unblocked(host)
    faults.world.network.drop_closed(host)


def _flush(faults: Faults, fault: FaultPlan) -> None:
    world = faults.world
    before = dict(world.site.primary.server.snapshot().data)
    world.site.operator((b"FLUSHALL",))
    world.ledger.data_lost("flush", before, {})


def _delete_stream(faults: Faults, fault: FaultPlan) -> None:
    faults.operate(fault, (b"DEL", queue_keys(fault.on).stream))


def _trim(faults: Faults, fault: FaultPlan) -> None:
    faults.operate(fault, (b"XTRIM", queue_keys(fault.on).stream, b"MAXLEN", int(fault.values["keep"])))


def _destroy_group(faults: Faults, fault: FaultPlan) -> None:
    faults.operate(fault, (b"XGROUP", b"DESTROY", queue_keys(fault.on).stream, SERVER_GROUP))


def _delete_consumers(faults: Faults, fault: FaultPlan) -> None:
    keys = queue_keys(fault.on)
    commands = [
        (b"XGROUP", b"DELCONSUMER", keys.stream, SERVER_GROUP, process.identity.encode())
        for process in faults.world.workers
        if process.incarnation
    ]
    faults.operate(fault, *commands[: int(fault.values["most"])])


def _delete_key(faults: Faults, fault: FaultPlan) -> None:
    key = str(fault.values["key"])
    harmless = key in ("fence", "promotions")
    faults.operate(fault, (b"DEL", getattr(queue_keys(fault.on), key)), excuses=not harmless)


def _wrong_type(faults: Faults, fault: FaultPlan) -> None:
    key = getattr(queue_keys(fault.on), str(fault.values["key"]))
    faults.operate(fault, (b"SET", key, b"not what it was"))
    faults.world.agenda.at(faults.world.now + fault.for_ms, faults, "mend_type", fault)
    faults.modes[-1, fault.name] = faults.world.now + fault.for_ms


def _delete_receiver(faults: Faults, fault: FaultPlan) -> None:
    client = faults.process(fault)
    faults.operate(fault, (b"DEL", receiver_key(client.identity)))


BAD_ENTRIES: dict[str, tuple[bytes, ...]] = {
    "no version": (b"id", b"bad", b"data", b"x"),
    "version 2": (b"enc_version", b"2", b"id", b"bad", b"data", b"x"),
    "field missing": (b"enc_version", b"1", b"id", b"bad", b"client_id", b"nobody", b"data", b"x"),
    "bad number": (
        *(b"enc_version", b"1", b"id", b"bad", b"client_id", b"nobody", b"data", b"x", b"max_retries", b"abc"),
        *(b"expires_ts", b"0", b"retry_delay", b"0", b"send_notif", b"0", b"retries", b"0"),
    ),
}


def _bad_entry(faults: Faults, fault: FaultPlan) -> None:
    world = faults.world
    fields = BAD_ENTRIES[str(fault.values["what"])]
    world.ledger.bad_entries += 1
    world.site.operator((b"XADD", queue_keys(fault.on).stream, b"*", *fields))


_FOR_GOOD = (-1, 10_000_000)
_ANY_MS = (0, 10_000_000)
_JUMP = (-100_000_000, 100_000_000)
_LANES = ("command", "read", "")

CATALOGUE: dict[str, FaultKind] = {
    # Processes.
    "kill": FaultKind(
        "kill -9, out of memory, power loss of one machine; a supervisor may start it again",
        "process",
        _kill,
        values={"restart_ms": _FOR_GOOD},
    ),
    "freeze": FaultKind(
        "SIGSTOP, a suspended machine, a long garbage collection; -1: for good, with its sockets open",
        "process",
        _freeze,
        lasts=True,
    ),
    "slow": FaultKind(
        "an event loop that is late: every input waits", "process", _slow, lasts=True, values={"by_ms": (1, 60_000)}
    ),
    "close": FaultKind(
        "a deployment: SIGTERM, later a new process",
        "process",
        _close,
        values={"grace_ms": _ANY_MS, "restart_ms": _ANY_MS},
    ),
    "wall": FaultKind("somebody sets the clock of a machine", "process", _wall, values={"by_ms": _JUMP}),
    # The network.
    "cut": FaultKind(
        "a connection is lost around one write: before it is sent, after it was applied, in its middle, or with its "
        "bytes still in the pipes, which are executed after the next connection stands",
        "process",
        _break,
        values={"form": ("before", "lost", "prefix", "late"), "lane": _LANES},
    ),
    "break": FaultKind("a connection is reset while nothing is written", "process", _break, values={"lane": _LANES}),
    "refuse": FaultKind("a firewall, a full backlog: connecting fails at once", "process", Faults.last, lasts=True),
    "silence": FaultKind(
        "half-open connections: cable pulled, NAT entry gone; nothing arrives, nobody is told",
        "process",
        Faults.last,
        lasts=True,
    ),
    "mute": FaultKind("a one-way partition: what it sends is lost", "process", Faults.last, lasts=True),
    "deaf": FaultKind("a one-way partition: what it is sent is lost", "process", Faults.last, lasts=True),
    "delay": FaultKind(
        "a slow network: each message takes longer", "process", Faults.last, lasts=True, values={"by_ms": (1, 60_000)}
    ),
    "stall": FaultKind("a network that keeps all bytes, and delivers them later", "process", _stall, lasts=True),
    "credentials": FaultKind(
        "somebody changes a password or a permission, and changes it back",
        "process",
        _credentials,
        lasts=True,
        values={"error": ("WRONGPASS invalid username-password pair", "NOAUTH Authentication required.")},
    ),
    # The server.
    "pause": FaultKind("the server stands still (SIGSTOP, a slow command): connections stay", "server", _pause, True),
    "restart": FaultKind(
        "the server is killed and started again: with everything (0), without the last `lose_ms` (appendfsync "
        "everysec, a snapshot), or with nothing (-1)",
        "server",
        _restart,
        lasts=True,
        values={"lose_ms": _FOR_GOOD},
        lead="lose_ms",
    ),
    "failover": FaultKind(
        "a replica that lags by `lag_ms` becomes the primary; the old one answers for `old_ms` more; clocks differ",
        "server",
        _failover,
        values={"lag_ms": _ANY_MS, "old_ms": _ANY_MS, "clock_ms": _JUMP},
        lead="lag_ms",
    ),
    "rollback": FaultKind(
        "older data under living connections: a full resync after REPLICAOF, a restored slot, a switching proxy",
        "server",
        _rollback,
        values={"lose_ms": _FOR_GOOD},
        lead="lose_ms",
    ),
    "flush": FaultKind("FLUSHALL", "server", _flush),
    "clock": FaultKind("the server's clock is set, forward or back", "server", _clock, values={"by_ms": _JUMP}),
    "loading": FaultKind("the server loads its data: LOADING", "server", _mode("loading"), lasts=True),
    "demote": FaultKind(
        "the primary is made a replica: READONLY, and blocked reads end with UNBLOCKED", "server", _demote, lasts=True
    ),
    "oom": FaultKind("maxmemory is reached: OOM", "server", _mode("oom"), lasts=True),
    "busy": FaultKind("somebody's script runs: BUSY", "server", _mode("busy"), lasts=True),
    "misconf": FaultKind("the disk is full: MISCONF", "server", _mode("misconf"), lasts=True),
    "noreplicas": FaultKind("min-replicas-to-write is not met: NOREPLICAS", "server", _mode("noreplicas"), lasts=True),
    "masterdown": FaultKind(
        "connected to a replica without its primary: MASTERDOWN", "server", _mode("masterdown"), lasts=True
    ),
    # Operators and other programs.
    "delete stream": FaultKind("DEL of a queue's stream", "queue", _delete_stream),
    "trim": FaultKind("XTRIM of a queue's stream", "queue", _trim, values={"keep": (0, 1000)}),
    "destroy group": FaultKind("XGROUP DESTROY", "queue", _destroy_group),
    "delete consumers": FaultKind(
        "XGROUP DELCONSUMER of living workers", "queue", _delete_consumers, values={"most": (1, 12)}
    ),
    "delete key": FaultKind(
        "DEL of one of a queue's other keys",
        "queue",
        _delete_key,
        values={"key": ("producers", "fence", "delayed", "dead", "promotions", "receivers")},
    ),
    "wrong type": FaultKind(
        "another program, or a wrong restore, writes to a key of a queue; later it is deleted",
        "queue",
        _wrong_type,
        lasts=True,
        values={"key": ("stream", "delayed", "dead")},
    ),
    "delete receiver": FaultKind("DEL of a client's receiver stream", "client", _delete_receiver),
    "bad entry": FaultKind(
        "another program appends what nobody can decode", "queue", _bad_entry, values={"what": tuple(BAD_ENTRIES)}
    ),
}
"""By name."""
