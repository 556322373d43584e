"""The explicit plan of one run: who is there, what is enqueued, how handlers behave, which faults strike and when.

A plan is data, and nothing but a plan decides a run: `swarm.py` makes one from a seed, `shrink.py` takes items out of
it, a replay file is one as JSON. Every item has a name, and chance during the run is drawn by these names and by the
virtual time, never by position: without one item all others behave as before. All numbers are whole; times are ms of
virtual time from the start of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

FORMAT = 1


class Named(Protocol):
    """An item of a plan."""

    @property
    def name(self) -> str:
        """Unique in its plan."""
        ...


class PlanError(ValueError):
    """A plan that cannot be read or makes no sense; the text says which part, and why."""


@dataclass(frozen=True, slots=True)
class Act:
    """What a handler does in one attempt."""

    does: str
    """A key of `handlers.ACTS`."""
    after_ms: int = 0
    """How long it takes."""
    delay_ms: int = 0
    """Of a Retry that names its own delay; 0: the task's."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task to be enqueued. Its name is its id."""

    name: str
    at_ms: int
    client: str
    queue: str
    tracked: bool
    acts: tuple[Act, ...]
    """One for each run, so that a run that is taken over may go otherwise; the last serves all further ones."""
    size: int = 10
    """Payload bytes."""
    wait: bool = True
    flush: bool = False
    """Its client asks to be told when all is confirmed, right after it."""
    options: dict[str, int] = field(default_factory=dict)
    """Fields of TaskOptions other than times of the clock; `retry_backoff` in percent; `max_retries` -1 = None."""
    expires_at_ms: int = 0
    """Deadline by the clock of its client's machine, as ms of the run; 0 = none."""
    due_at_ms: int = 0
    """Start by that clock; 0 = at once."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """A client or a worker. Settings not named are those of `Plan.settings`, then the protocol's own."""

    name: str
    at_ms: int = 0
    origin_ms: int = 0
    """What its monotonic clock shows at the start of the run."""
    drift_ppm: int = 0
    """How much faster that clock runs."""
    wall_ms: int = 0
    """How much its wall clock is ahead."""
    settings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """One fault."""

    name: str
    kind: str
    """A key of `faults.CATALOGUE`, which says what the other fields mean for it."""
    at_ms: int
    on: str = ""
    """A process or a queue; empty for the server."""
    for_ms: int = 0
    purpose: str = ""
    """Strikes at the first batch from `at_ms` on that has such a section, `conclusions.on_answer` for example: of the
    process it is on, or of any."""
    values: dict[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    version: str
    """`redis7`, `redis8` or `valkey9`."""
    queues: tuple[str, ...]
    latency_ms: int
    """One way, at the least."""
    jitter_ms: int
    """What may come on top, drawn for each message."""
    split_percent: int
    """How many batches arrive in two parts, with other connections' commands in between."""
    workers: tuple[ProcessPlan, ...]
    clients: tuple[ProcessPlan, ...]
    tasks: tuple[TaskPlan, ...]
    faults: tuple[FaultPlan, ...]
    calm_at_ms: int
    """From then on no fault strikes, and all that lasts ends."""
    gone: tuple[str, ...] = ()
    """Workers that are dead or frozen at that time and stay so."""
    client_settings: dict[str, int] = field(default_factory=dict)
    worker_settings: dict[str, int] = field(default_factory=dict)
    oracle: str = ""
    """The oracle that failed where the plan was found; empty for a plan that passes."""
    note: str = ""
    """For people: what the plan shows."""

    def dump(self) -> str:
        """The plan as JSON, one item a line."""
        lines = []
        for name, value in asdict(self).items():
            if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
                rows = ",\n".join("    " + json.dumps(_lean(item)) for item in value)
                lines.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
            else:
                lines.append(f"  {json.dumps(name)}: {json.dumps(value)}")
        return "{\n" + ",\n".join([f'  "format": {FORMAT}', *lines]) + "\n}\n"

    @staticmethod
    def load(text: str) -> Plan:
        """The plan in a JSON text. Raises PlanError."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"this is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise PlanError("this is JSON, but no plan: an object is needed")
        found = data.pop("format", None)
        if found != FORMAT:
            raise PlanError(f"its format is {found!r}; this simulator reads {FORMAT}")
        plan = _build(Plan, data, "the plan")
        plan.check()
        return plan

    @staticmethod
    def read(path: Path) -> Plan:
        """The plan in a file. Raises PlanError, which names the file."""
        try:
            return Plan.load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, PlanError) as error:
            raise PlanError(f"{path}: {error}") from None

    def check(self) -> None:
        """Raises PlanError where parts do not fit together."""
        # The catalogues import this module.
        from .faults import CATALOGUE
        from .handlers import ACTS
        from .redis_model import VERSIONS

        if self.version not in VERSIONS:
            raise PlanError(f"version is {self.version!r}; known are {', '.join(VERSIONS)}")
        if not self.workers or not self.clients or not self.queues:
            raise PlanError("at least one worker, one client and one queue are needed")
        names: set[str] = set()
        parts: tuple[Sequence[Named], ...] = (self.workers, self.clients, self.tasks, self.faults)
        for name in (item.name for part in parts for item in part):
            if name in names or not name:
                raise PlanError(f"the name {name!r} is empty, or used twice")
            names.add(name)
        clients = {client.name for client in self.clients}
        for task in self.tasks:
            if task.client not in clients or task.queue not in self.queues:
                raise PlanError(f"task {task.name}: there is no client {task.client!r}, or no queue {task.queue!r}")
            if not task.acts or any(act.does not in ACTS for act in task.acts):
                raise PlanError(f"task {task.name}: its acts must be some of {', '.join(ACTS)}")
        for fault in self.faults:
            if fault.kind not in CATALOGUE:
                raise PlanError(f"fault {fault.name}: its kind is {fault.kind!r}; known are {', '.join(CATALOGUE)}")
            CATALOGUE[fault.kind].check(self, fault)


def _lean(item: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty or zero, which is the default of every field that has one."""
    return {name: value for name, value in item.items() if value or name in ("at_ms", "tracked", "wait")}


T = TypeVar("T")
Item = TypeVar("Item", bound=Named)
_ITEMS: dict[str, type] = {
    "workers": ProcessPlan,
    "clients": ProcessPlan,
    "tasks": TaskPlan,
    "faults": FaultPlan,
    "acts": Act,
}


def _build(kind: type[T], data: object, where: str) -> T:
    if not isinstance(data, dict):
        raise PlanError(f"{where} is {data!r}: an object is needed")
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise PlanError(f"{where} has unknown fields: {', '.join(unknown)}")
    values: dict[str, Any] = {}
    for name, definition in known.items():
        if name in data:
            values[name] = _value(str(definition.type), data[name], name, f"{where}, {name}")
        elif definition.default is MISSING and definition.default_factory is MISSING:
            raise PlanError(f"{where} has no {name}")
    return kind(**values)


def _value(annotation: str, value: object, name: str, where: str) -> object:
    if annotation.startswith("tuple"):
        if not isinstance(value, list):
            raise PlanError(f"{where} is {value!r}: a list is needed")
        if name in _ITEMS:
            return tuple(_build(_ITEMS[name], item, f"{where}[{at}]") for at, item in enumerate(value))
        return tuple(_simple("str", item, where) for item in value)
    if annotation.startswith("dict"):
        allowed = "int | str" if "str]" in annotation.replace("dict[str, int | str]", "str]") else "int"
        if not isinstance(value, dict):
            raise PlanError(f"{where} is {value!r}: an object is needed")
        return {key: _simple(allowed, item, f"{where}, {key}") for key, item in value.items()}
    return _simple(annotation, value, where)


_SIMPLE: dict[str, Callable[[object], bool]] = {
    "int": lambda value: type(value) is int,
    "str": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "int | str": lambda value: type(value) in (int, str),
}


def _simple(annotation: str, value: object, where: str) -> object:
    if not _SIMPLE[annotation](value):
        raise PlanError(f"{where} is {value!r}: {annotation} is needed")
    return value


def without(items: Sequence[Item], names: frozenset[str]) -> tuple[Item, ...]:
    """The items whose names are not among `names`."""
    return tuple(item for item in items if item.name not in names)
