"""What the demo shows: a progress bar on a terminal (with rich), plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import Protocol, Self

from .journal import now
from .report import Report

HINT = "for a progress bar: pip install 'streamfleet[cli]'"
_PLAIN_EVERY = 2.0
"""Seconds between two plain lines of progress."""


class Display(Protocol):
    """One run's output."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def say(self, kind: str, text: str) -> None:
        """One line: `kind` is "", "FAULT" (something was broken) or "FLEET" (what was done about it)."""

    def progress(self, settled: int, accepted: int) -> None:
        """How far it is."""

    def table(self, report: Report, seconds: float) -> None:
        """The account at the end."""


def make_display(total: int) -> Display:
    """The display that fits stdout."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            return RichDisplay(total)
        print(HINT)
    return PlainDisplay(total)


def count(number: int, noun: str) -> str:
    """`1 task`, `1,200 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rows(report: Report, seconds: float) -> list[tuple[str, str, str]]:
    """The table's rows: name, value, remark."""
    explained = len(report.ran_twice) - len(report.unexplained)
    reasons = sorted({case.why for case in report.ran_twice if case.why})
    second_runs = "; ".join(reasons) if reasons else "no task was run to success more than once"
    if report.unexplained:
        second_runs = f"{explained} explained, {len(report.unexplained)} WITHOUT A REASON"
    lost = "each has a finished run in a worker's journal, outside Redis"
    return [
        ("accepted", f"{report.accepted:,}", "tasks the client was told are taken"),
        ("succeeded", f"{report.succeeded:,}", "run to the end, and the client knows it"),
        ("retried", f"{report.retried:,}", "failed once, as they were told to, and succeeded later"),
        ("claimed from the dead", f"{report.claimed:,}", f"{report.cut_short} of them were at work when it was killed"),
        ("lost", f"{len(report.lost):,}", "SEE BELOW" if report.lost else lost),
        ("run twice", f"{len(report.ran_twice):,}", second_runs),
        ("time", f"{seconds:.1f} s", ""),
    ]


class PlainDisplay:
    """Lines of text, each flushed."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._told = now()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, kind: str, text: str) -> None:
        print(f"{now() - self._start:5.1f} s  {kind:5}  {text}", flush=True)

    def progress(self, settled: int, accepted: int) -> None:
        if now() - self._told >= _PLAIN_EVERY:
            self._told = now()
            self.say("", f"{settled:,} of {self._total:,} tasks done, {accepted - settled:,} under way")

    def table(self, report: Report, seconds: float) -> None:
        print()
        for name, value, remark in rows(report, seconds):
            print(f"  {name:22} {value:>8}  {remark}".rstrip())
        print(flush=True)


class RichDisplay:
    """A progress bar at the bottom, lines above it. Raises ImportError where rich is not installed."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("tasks done"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[under_way]:>5} under way"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._bar = self._progress.add_task("", total=total, under_way=0)
        self._start = now()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, kind: str, text: str) -> None:
        from rich.text import Text

        style = {"FAULT": "bold red", "FLEET": "green"}.get(kind, "")
        self._progress.console.print(
            Text(f"{now() - self._start:5.1f} s  ", "dim"), Text(f"{kind:5} ", style), Text(text, style), sep=""
        )

    def progress(self, settled: int, accepted: int) -> None:
        self._progress.update(self._bar, completed=settled, under_way=accepted - settled)

    def table(self, report: Report, seconds: float) -> None:
        from rich.table import Table

        table = Table("", "", "", box=None, show_header=False, pad_edge=True)
        table.columns[1].justify = "right"
        for name, value, remark in rows(report, seconds):
            style = "bold red" if remark.isupper() else "bold green" if name == "lost" else ""
            table.add_row(name, value, remark, style=style)
        self._console.print()
        self._console.print(table)
        self._console.print()
