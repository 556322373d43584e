"""The demo's journals: what each worker process did, kept outside Redis, which is to be checked by it.

A worker appends one line of JSON for each thing that happens, in one write; the kernel keeps it when the worker is
killed. Times are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from streamfleet_protocol.notes import Note

LEASE = 4.0
RENEW_INTERVAL = 1.0
"""Shorter than the defaults (60 and 10 s), so that it is seen in half a minute how tasks of the dead are taken over."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A handler was called with a task."""

    at: float
    run: int
    """Number of the run in its worker."""
    task_id: str
    entry_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """That call of the handler returned (`ok`), or raised."""

    at: float
    run: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Noticed:
    """The worker's own account of an event: the note's type, its fields, and its text for people."""

    at: float
    kind: str
    details: dict[str, Any]
    text: str


Record = RunStarted | RunEnded | Noticed
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (RunStarted, RunEnded, Noticed)}


def now() -> float:
    """Seconds on the clock of all journals."""
    return time.monotonic()


class Journal:
    """The writing end, in a worker."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, record: Record) -> None:
        """Append one line."""
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        line = json.dumps({"is": type(record).__name__, **values}) + "\n"
        os.write(self._file, line.encode())

    def note(self, note: Note) -> None:
        """Append a note of the library; fits `on_event`."""
        details = {field.name: getattr(note, field.name) for field in fields(note)}
        self.write(Noticed(now(), type(note).__name__, details, str(note)))


class JournalReader:
    """The reading end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._taken = 0
        self.records: list[Record] = []
        """All that was read so far."""

    def read(self) -> None:
        """Read what was appended. A line that is not complete waits for the next time."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            self._offset += len(complete)
            self.records += map(_record, complete.splitlines())

    def take_new(self) -> list[Record]:
        """Read, and give what no earlier call has given."""
        self.read()
        new = self.records[self._taken :]
        self._taken = len(self.records)
        return new

    def open_runs(self) -> int:
        """How many handlers were at work when the last record was written."""
        return sum(isinstance(record, RunStarted) - isinstance(record, RunEnded) for record in self.records)


def _record(line: bytes) -> Record:
    values = json.loads(line)
    record: Record = _KINDS[values.pop("is")](**values)
    return record
