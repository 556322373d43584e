"""How far long work is: a bar on a terminal (with rich), a line from time to time elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

PLAIN_EVERY_S = 10.0
_WORDS_MOST = 60
"""Characters beside the bar."""

Tell = Callable[[int, str], None]
"""Called with how much is done, and a few words."""


@contextlib.contextmanager
def progress(label: str, total: int, *, quiet: bool = False) -> Iterator[Tell]:
    """Show how far work is that has `total` parts."""
    if quiet:
        yield lambda done, words: None
        return
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            bar = _bar()
            task = bar.add_task(label, total=total, words="")
            with bar:
                yield lambda done, words: bar.update(task, completed=done, words=words[:_WORDS_MOST])
            return
    yield _plain(label, total)


def _bar() -> Any:
    """A progress bar of rich. Raises ImportError where rich is not installed."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        transient=True,
    )


def _plain(label: str, total: int) -> Tell:
    start = told = monotonic()

    def tell(done: int, words: str) -> None:
        nonlocal told
        now = monotonic()
        if now - told >= PLAIN_EVERY_S:
            told = now
            print(f"{now - start:6.0f} s  {label}: {done:,} of {total:,}, {words}", flush=True)

    return tell
