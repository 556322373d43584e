"""Which commands a server refuses in which state, as measured on the three (COMMAND INFO, and trials)."""

from __future__ import annotations

from enum import IntFlag

from .versions import Version


class Flag(IntFlag):
    """The flags of a command that matter here."""

    WRITE = 1
    NEEDS_MEMORY = 2
    """denyoom"""
    ALWAYS = 4
    """Passes while the data is loading, and on a replica without its primary."""
    WHILE_BUSY = 8
    """Passes while a script runs."""
    IN_MULTI = 16
    """Executed at once inside of MULTI: EXEC, DISCARD, MULTI, WATCH."""
    PING = 32
    """MISCONF refuses it like a write."""


class Mode(IntFlag):
    """States of a server that refuse commands."""

    OOM = 1
    MISCONF = 2
    NOREPLICAS = 4
    READONLY = 8
    MASTERDOWN = 16
    LOADING = 32
    BUSY = 64


_FIXED = {
    Mode.OOM: "OOM command not allowed when used memory > 'maxmemory'.",
    Mode.NOREPLICAS: "NOREPLICAS Not enough good replicas to write.",
    Mode.READONLY: "READONLY You can't write against a read only replica.",
    Mode.MASTERDOWN: "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
}


def mode_text(mode: Mode, version: Version) -> str:
    """The error text of a state."""
    if mode is Mode.MISCONF:
        return (
            f"MISCONF {version.title} is configured to save RDB snapshots, but it's currently unable to "
            "persist to disk. Commands that may modify the data set are disabled, because this instance is "
            "configured to report errors during writes if RDB snapshotting fails "
            "(stop-writes-on-bgsave-error option). Please "
            f"check the {version.title} logs for details about the RDB error."
        )
    if mode is Mode.LOADING:
        return f"LOADING {version.title} is loading the dataset in memory"
    if mode is Mode.BUSY:
        advice = "You can only call SCRIPT KILL or SHUTDOWN NOSAVE."
        return f"BUSY {version.title} is busy running a script. {advice}"
    return _FIXED[mode]


def refusing_mode(modes: int, version: Version, flags: Flag, *, queueing: bool) -> Mode | None:
    """The state that refuses a command with these flags, in the order in which servers ask; or None.

    `queueing`: the command is to be queued inside of MULTI. For EXEC the flags are those of all queued.
    """
    write = bool(flags & Flag.WRITE)
    needs_memory = flags & Flag.NEEDS_MEMORY or (queueing and version.oom_refuses_queueing)
    if modes & Mode.OOM and needs_memory:
        return Mode.OOM
    if modes & Mode.MISCONF and (write or flags & Flag.PING):
        return Mode.MISCONF
    if modes & Mode.NOREPLICAS and write:
        return Mode.NOREPLICAS
    if modes & Mode.READONLY and write:
        return Mode.READONLY
    if not flags & Flag.ALWAYS:
        for mode in (Mode.MASTERDOWN, Mode.LOADING):
            if modes & mode:
                return mode
    if modes & Mode.BUSY and not flags & Flag.WHILE_BUSY:
        return Mode.BUSY
    return None
