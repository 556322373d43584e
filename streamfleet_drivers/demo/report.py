"""The account of a demo run: every accepted task against what the workers' journals say was done.

Nothing here comes from Redis. `accepted` and the answers are what the client was told, the runs are from the journals,
and a second successful run of a task is explained only by events that the workers themselves wrote down.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .journal import LEASE, RENEW_INTERVAL, Noticed, Record, RunEnded, RunStarted

SUCCEEDED = "succeeded"
SETTLED_WITHIN = 2.0
"""A success that Redis has not been told of after so many seconds is no matter of a kill any more."""
SILENT_MS = (LEASE - 2 * RENEW_INTERVAL) * 1000
"""Shorter silence of a living worker costs it no lease: the last renewal may be one interval old, and more by load."""


@dataclass(frozen=True, slots=True)
class Run:
    """One call of a handler."""

    worker: str
    started: RunStarted
    ended: RunEnded | None
    """None where the worker died before its end."""

    @property
    def ok(self) -> bool:
        """Whether the handler returned."""
        return self.ended is not None and self.ended.ok


@dataclass(frozen=True, slots=True)
class RanTwice:
    """A task that was run to its end more than once."""

    task_id: str
    why: str | None
    """None = nothing explains it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that the account is made from."""

    answers: Mapping[str, str | None]
    """Accepted task -> SUCCEEDED, or what else the client was told, or None where it was told nothing."""
    journals: Mapping[str, Sequence[Record]]
    """Worker -> its journal."""
    killed: Mapping[str, float] = field(default_factory=dict)
    """Worker -> when it was killed."""
    data_loss_at: float | None = None
    """When the client noticed that Redis had lost data."""
    incidents: tuple[str, ...] = ()
    """What went wrong apart from the tasks: a worker that ended by itself."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the tasks."""

    accepted: int
    succeeded: int
    retried: int
    """Failed in an attempt and were run to success in a later one."""
    claimed: int
    """Entries that were taken over from a killed worker."""
    cut_short: int
    """Handlers that were at work in a worker when it was killed."""
    lost: tuple[str, ...]
    """Accepted, and never run to success."""
    unanswered: tuple[str, ...]
    """Accepted, and the client was told nothing."""
    wrong_answers: tuple[str, ...]
    """What the client was told of tasks other than that they succeeded."""
    ran_twice: tuple[RanTwice, ...]
    unknown: tuple[str, ...]
    """Run without having been accepted."""
    incidents: tuple[str, ...]

    @property
    def unexplained(self) -> tuple[RanTwice, ...]:
        """Second runs that nothing explains."""
        return tuple(case for case in self.ran_twice if case.why is None)

    @property
    def problems(self) -> list[str]:
        """Why the demo has failed; empty where it has not."""
        found = [
            _problem(self.lost, "accepted and never run to success"),
            _problem(self.unanswered, "accepted, and the client was never told of the end"),
            _problem(self.wrong_answers, "reported wrongly to the client"),
            _problem([case.task_id for case in self.unexplained], "run twice without a reason"),
            _problem(self.unknown, "run without having been accepted"),
        ]
        return [problem for problem in found if problem] + list(self.incidents)


def account(evidence: Evidence) -> Report:
    """Hold what was accepted against what was done."""
    by_task: dict[str, list[Run]] = defaultdict(list)
    for worker, journal in evidence.journals.items():
        for run in runs_in(worker, journal):
            by_task[run.started.task_id].append(run)
    for runs in by_task.values():
        runs.sort(key=lambda run: run.started.at)
    done = {task_id for task_id, runs in by_task.items() if any(run.ok for run in runs)}
    answers = evidence.answers
    claims = _claims(evidence)
    from_dead = {entry for entry, moves in claims.items() if any(owner in evidence.killed for _, owner in moves)}
    return Report(
        accepted=len(answers),
        succeeded=sum(answer == SUCCEEDED and task_id in done for task_id, answer in answers.items()),
        retried=sum(task_id in done and _has_failed(runs) for task_id, runs in by_task.items()),
        claimed=len(from_dead),
        cut_short=sum(run.ended is None and run.worker in evidence.killed for runs in by_task.values() for run in runs),
        lost=tuple(task_id for task_id in answers if task_id not in done),
        unanswered=tuple(task_id for task_id, answer in answers.items() if answer is None),
        wrong_answers=tuple(answer for answer in answers.values() if answer not in (None, SUCCEEDED)),
        ran_twice=tuple(_ran_twice(by_task, claims, evidence)),
        unknown=tuple(task_id for task_id in by_task if task_id not in answers),
        incidents=evidence.incidents,
    )


def runs_in(worker: str, journal: Sequence[Record]) -> list[Run]:
    """The runs that a journal tells of."""
    ends = {record.run: record for record in journal if isinstance(record, RunEnded)}
    return [Run(worker, record, ends.get(record.run)) for record in journal if isinstance(record, RunStarted)]


def worker_of(consumer: str) -> str:
    """A consumer's name is `<server_id>:<random>`."""
    return consumer.rpartition(":")[0]


def _has_failed(runs: Iterable[Run]) -> bool:
    return any(run.ended is not None and not run.ended.ok for run in runs)


def _claims(evidence: Evidence) -> dict[str, list[tuple[str, str]]]:
    """Entry -> (worker that claimed it, worker it was claimed from)."""
    claims: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for worker, journal in evidence.journals.items():
        for record in journal:
            if isinstance(record, Noticed) and record.kind == "TaskClaimed":
                claims[record.details["entry_id"]].append((worker, worker_of(record.details["owner"])))
    return claims


def _ran_twice(
    by_task: Mapping[str, Sequence[Run]], claims: Mapping[str, Sequence[tuple[str, str]]], evidence: Evidence
) -> Iterable[RanTwice]:
    for task_id, runs in by_task.items():
        successes = [run for run in runs if run.ok]
        for first, second in itertools.pairwise(successes):
            yield RanTwice(task_id, _why_again(first, second, claims, evidence))


def _why_again(
    first: Run, second: Run, claims: Mapping[str, Sequence[tuple[str, str]]], evidence: Evidence
) -> str | None:
    """Why a task whose handler had returned was run once more; None where no event explains it."""
    entry = second.started.entry_id
    if entry == first.started.entry_id and _came_from(first.worker, second.worker, claims.get(entry, ())):
        killed_at = evidence.killed.get(first.worker)
        if killed_at is not None and first.ended is not None and 0 <= killed_at - first.ended.at <= SETTLED_WITHIN:
            return (
                f"{first.worker} was killed after its handler's end and before Redis knew; {second.worker} claimed it"
            )
        if _was_cut_off(evidence.journals[first.worker], first.started.task_id):
            return f"{first.worker} stood still or was cut off for longer than its lease"
    if evidence.data_loss_at is not None and evidence.data_loss_at <= second.started.at:
        return "Redis had lost data, so the client sent the task again"
    return None


def _came_from(first: str, second: str, takeovers: Sequence[tuple[str, str]]) -> bool:
    """Whether an entry went from `first` to `second` by claims, maybe over others."""
    reached = {second}
    for _ in takeovers:
        reached |= {owner for claimer, owner in takeovers if claimer in reached}
    return first in reached - {second}


def _was_cut_off(journal: Sequence[Record], task_id: str) -> bool:
    """Whether a living worker was silent for so long that others had to take it for dead."""
    for note in journal:
        if isinstance(note, Noticed) and (
            (note.kind == "LeaseLost" and note.details["task_id"] == task_id)
            or (note.kind == "Stalled" and note.details["stalled_ms"] >= SILENT_MS)
            or (note.kind == "Reconnected" and note.details["down_ms"] >= SILENT_MS)
        ):
            return True
    return False


def _problem(cases: Sequence[str], what: str) -> str:
    shown = ", ".join(cases[:3]) + (" ..." if len(cases) > 3 else "")
    return f"{len(cases)} {what}: {shown}" if cases else ""
