"""What differs between the servers modelled; everything else is common to the three."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VersionName = Literal["redis7", "redis8", "valkey9"]


@dataclass(frozen=True, slots=True)
class Version:
    """The traits of one server."""

    name: VersionName
    title: str
    """How its error texts call it."""
    reexecutes: bool
    """A woken reader runs its whole command again (7.2 on); before, it gets the one stream that woke it."""
    eager_consumers: bool
    """Reads and claims that yield nothing make the consumer too, and refresh its idle time (7.2 on)."""
    oom_refuses_queueing: bool
    """Out of memory, every command inside of MULTI is refused, not only those that need memory."""
    refuses_watch_inside: bool
    """WATCH and MULTI inside of MULTI count as errors of the transaction (EXECABORT)."""
    busy_allows_select: bool
    """CLIENT ID and SELECT pass while a script runs."""
    lag_by_content: bool
    """The lag of a group is 0 for an empty stream, and the length where nothing in it was read or deleted."""
    strict_tombstones: bool
    """A deleted id counts for the lag even where it is below the first entry that is left."""
    shortest_floats: bool
    """Scores as the shortest text that reads back; before, 17 digits."""
    no_wait: str
    """The error of WAIT on a replica."""
    tells_reads: bool
    """Replicas and the append-only file learn entries_read with each read, not only with those with NOACK."""
    forgets_failed: bool
    """What is queued is forgotten once EXEC cannot execute it, so nothing in it is judged at EXEC any more."""
    asks_at_exec: bool
    """Whether the keys are there, in a slot on the move, is not asked while queueing, only at EXEC."""
    mentions_last: bool
    """An error text of XREAD mentions the id `+`, which 7.0 has not."""


_NO_WAIT = (
    "ERR WAIT cannot be used with replica instances. Please also note that {}if a replica is configured to be "
    "writable (which is not the default) writes to replicas are just local and are not propagated."
)

VERSIONS: dict[VersionName, Version] = {
    "redis7": Version(
        name="redis7",
        title="Redis",
        reexecutes=False,
        eager_consumers=False,
        oom_refuses_queueing=True,
        refuses_watch_inside=False,
        busy_allows_select=False,
        lag_by_content=False,
        strict_tombstones=False,
        shortest_floats=False,
        no_wait=_NO_WAIT.format("since Redis 4.0 "),
        tells_reads=False,
        forgets_failed=False,
        asks_at_exec=False,
        mentions_last=False,
    ),
    "redis8": Version(
        name="redis8",
        title="Redis",
        reexecutes=True,
        eager_consumers=True,
        oom_refuses_queueing=False,
        refuses_watch_inside=False,
        busy_allows_select=False,
        lag_by_content=True,
        strict_tombstones=True,
        shortest_floats=True,
        no_wait=_NO_WAIT.format("since Redis 4.0 "),
        tells_reads=True,
        forgets_failed=False,
        asks_at_exec=False,
        mentions_last=True,
    ),
    "valkey9": Version(
        name="valkey9",
        title="Valkey",
        reexecutes=True,
        eager_consumers=True,
        oom_refuses_queueing=False,
        refuses_watch_inside=True,
        busy_allows_select=True,
        lag_by_content=False,
        strict_tombstones=True,
        shortest_floats=True,
        no_wait=_NO_WAIT.format(""),
        tells_reads=True,
        forgets_failed=True,
        asks_at_exec=True,
        mentions_last=False,
    ),
}
