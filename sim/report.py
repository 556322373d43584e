"""What is told of runs and soaks, as lines of text for a terminal of 120 columns."""

from __future__ import annotations

import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from .campaign import Red, Soak, Totals
from .determinism import ORACLE as DETERMINISM
from .determinism import ROOT
from .verdict import Verdict

WIDTH = 120
DUPLICATES = "G3 duplicates"
"""The oracle that knows which handlers may run again, and why."""
ALL_ORACLES_AFTER = 100
"""A soak of so many seeds must have given each oracle something to compare, and each fault an occasion."""
_LABEL = 14
_TOP_NOTES = 24


def commit() -> str:
    """The commit of the work tree, short, with a + where files differ from it; empty where git does not know."""
    found = _git("rev-parse", "--short", "HEAD")
    return f"{found}+" if found and _git("status", "--porcelain", "--untracked-files=no") else found


def head() -> str:
    """The hash of the work tree's commit; empty where git does not know."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str:
    try:
        ended = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.strip() if ended.returncode == 0 else ""


def environment() -> str:
    """What a figure or a failure depends on besides the seed."""
    found = commit()
    return f"{f'commit {found}, ' if found else ''}Python {platform.python_version()}"


# One run.


def failure_lines(seed: int, verdict_or_red: Verdict | Red, command: str) -> list[str]:
    """What is wrong with a run, and the one command that shows it again."""
    violation = verdict_or_red.violation
    if violation is None:
        return []
    first, *rest = violation.text.splitlines() or [""]
    lines = [
        f"RED  seed {seed}: {violation.oracle} ({violation.failure.name.lower()}) at {moment(violation.at_ms)}",
        *_wrapped(first, "     "),
        *(f"     {line}" for line in rest),
    ]
    return [*lines, f"     again: {command}"]


def run_lines(verdict: Verdict, wall_s: float) -> list[str]:
    """A run in figures."""
    each_s = max(wall_s, 1e-9)
    struck = verdict.faults.total()
    lines = [
        _row("simulated", f"{moment(verdict.virtual_ms)} in {wall_s:.2f} s; {verdict.steps:,} steps, "
             f"{verdict.steps / each_s:,.0f} a second; {verdict.commands:,} commands"),
        _row("work", f"{verdict.tasks:,} tasks, {verdict.runs:,} handlers started, "
             f"{verdict.duplicates_explained:,} of them again for a reason"),
        _row("faults", f"{struck:,} struck" if struck else "none struck"),
        *_grid(verdict.faults),
        _row("checks", f"{verdict.checks.total():,}"),
    ]  # fmt: skip
    return lines


# A soak.


def soak_lines(soak: Soak, *, oracles: Iterable[str], kinds: Iterable[str], keep: Path | None = None) -> list[str]:
    """A soak on one screen, the red seeds at the end."""
    totals = soak.totals
    lines = [*_heading(soak), ""]
    lines += _figures(soak)
    lines += ["", _row("faults", _faults_told(totals)), *_grid(totals.faults)]
    lines += [
        "",
        _row("oracles", f"{totals.checks.total():,} checks"),
        *_grid({name: totals.checks[name] for name in oracles}),
    ]
    lines += ["", _row("notes", f"{totals.notes.total():,} given by the machines"), *_grid(_most(totals.notes))]
    gaps = missing(soak, oracles=oracles, kinds=kinds)
    if gaps:
        lines += ["", *(line for gap in gaps for line in _wrapped(f"SIMULATOR  {gap}", ""))]
    for red in soak.red:
        lines += ["", *failure_lines(red.seed, red, replay_command(red))]
        if red.shrunk is not None:
            lines += _wrapped(f"shrunk {red.shrunk}", "     ")
            lines += [f"     again: python -m sim replay {red.files[-1]}"]
    untold = soak.red_count - len(soak.red)
    if untold > 0:
        lines += ["", f"and {untold:,} more red seeds: {_counted(soak.red_by_oracle)} in all"]
    if keep is not None and any(red.files for red in soak.red):
        lines += ["", f"The plans are in {keep}; `python -m sim shrink FILE` makes one small."]
    return lines


def missing(soak: Soak, *, oracles: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """What a soak of many seeds should have exercised and has not: each is a failure of the simulator itself."""
    if soak.totals.seeds < ALL_ORACLES_AFTER:
        return []
    idle = [name for name in oracles if not soak.totals.checks[name]]
    unseen = [kind for kind in kinds if not soak.totals.faults[kind]]
    gaps = []
    if idle:
        gaps.append(f"{soak.totals.seeds:,} seeds gave these oracles nothing to check: {', '.join(idle)}")
    if unseen:
        gaps.append(f"in {soak.totals.seeds:,} seeds these faults never struck: {', '.join(unseen)}")
    return gaps


def replay_command(red: Red) -> str:
    """The command that shows a red seed again."""
    if red.violation.oracle == DETERMINISM:
        return f"python -m sim repeat --seed {red.seed}"
    return f"python -m sim run --seed {red.seed}"


def _heading(soak: Soak) -> list[str]:
    seeds = f"{soak.totals.seeds:,} seed{'' if soak.totals.seeds == 1 else 's'}"
    if soak.stopped:
        seeds += f" of {soak.wanted:,} ({soak.stopped})"
    red = f"{soak.red_count:,} RED ({_counted(soak.red_by_oracle)})" if soak.red_count else "all green"
    processes = f"{soak.jobs} process{'' if soak.jobs == 1 else 'es'}" if soak.jobs else "in one process"
    return [*_wrapped(f"{seeds}: {red}", ""), f"{environment()}, {processes}, {soak.wall_s:,.1f} s"]


def _figures(soak: Soak) -> list[str]:
    totals = soak.totals
    wall_s, cpu_s = max(soak.wall_s, 1e-9), max(totals.cpu_s, 1e-9)
    virtual_s = totals.virtual_ms / 1_000
    unexplained = soak.red_by_oracle[DUPLICATES]
    return [
        _row("simulated", f"{virtual_s / 3_600:,.1f} h of virtual time: {virtual_s / wall_s:,.0f} s each second of "
             f"wall time, {virtual_s / cpu_s:,.0f} s each second of CPU"),
        _row("steps", f"{totals.steps:,}: {totals.steps / wall_s:,.0f} each second of wall time, "
             f"{totals.steps / cpu_s:,.0f} each second of CPU"),
        _row("commands", f"{totals.commands:,} executed by Redis"),
        _row("work", f"{totals.tasks:,} tasks, {totals.runs:,} handlers started"),
        _row("duplicates", f"{totals.duplicates_explained:,} explained, {unexplained:,} unexplained"),
        _row("determinism", f"{totals.repeats_equal:,} of {totals.repeats:,} repeated runs gave the same trace"),
    ]  # fmt: skip


def _faults_told(totals: Totals) -> str:
    share = 100 * totals.fault_free / totals.seeds if totals.seeds else 0
    return f"{totals.faults.total():,} struck; none in {share:.0f} % of the runs"


def _most(counts: Counter[str]) -> dict[str, int]:
    return dict(_by_number(counts)[:_TOP_NOTES])


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in _by_number(counts))


# Layout.


def _row(label: str, text: str) -> str:
    return f"{label:{_LABEL}}{text}"


def _grid(counts: Mapping[str, int]) -> list[str]:
    """Names with numbers in as many columns as there is room for, the largest number first."""
    items = _by_number(counts)
    if not items:
        return []
    names = max(len(name) for name, _ in items)
    numbers = max(len(f"{number:,}") for _, number in items)
    cells = [f"{name:{names}} {number:>{numbers},}" for name, number in items]
    columns = max((WIDTH - _LABEL + 4) // (len(cells[0]) + 4), 1)
    rows = -(-len(cells) // columns)
    return [" " * _LABEL + "    ".join(cells[row::rows]) for row in range(rows)]


def _by_number(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The largest number first; names with the same one as in the alphabet."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _wrapped(text: str, indent: str) -> list[str]:
    lines: list[str] = []
    for word in text.split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"{indent}{word}")
    return lines


def moment(ms: int) -> str:
    """A time of the run for people: `1 h 02 min 03.456 s`."""
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f} s"
    if hours:
        return f"{hours:,} h {minutes:02} min {seconds:>8}".replace("  ", " ")
    return f"{minutes} min {seconds}" if minutes else seconds
