"""The replicas as WAIT sees them: how many there are, and up to where those have acknowledged that lag behind.

WAIT is about what its own connection has written before. A new connection has written nothing, so on it WAIT counts
replicas however far they are behind; and inside of EXEC it does not see what the same EXEC writes, nor anywhere what a
blocked read has written (into the group) when it was served. In 7.0 it is about
whatever was written, by anybody, before the connection's last command, be that a read.

Inside of EXEC real servers count what they have heard from replicas, which may be a second old; the model takes it that
replicas in step have told everything.
"""

from __future__ import annotations


class Replicas:
    """The replicas of a server. Offsets are numbers of changes (`Keyspace.changes`), not bytes."""

    __slots__ = ("_attached", "lagging", "written")

    def __init__(self) -> None:
        self._attached = 0
        self.lagging: list[int] = []
        """What each replica that lags has acknowledged, from the first one that fell behind to the last."""
        self.written: dict[int, int] = {}
        """Up to where each connection has written; kept only while a replica lags, else none is missing anything."""

    @property
    def attached(self) -> int:
        """How many are attached, in step or not."""
        return self._attached

    @attached.setter
    def attached(self, count: int) -> None:
        """Replicas that come are in step; those that go are the ones that lag."""
        if count < 0:
            raise ValueError(f"no server has {count} replicas")
        gone = max(self._attached - count, 0)
        self._attached = count
        del self.lagging[:gone]
        self._forget()

    def set_in_step(self, count: int, changes: int) -> None:
        """So many acknowledge at once; the others have acknowledged nothing after `changes`, or what they lacked then.

        Raises ValueError where there are not so many.
        """
        lagging = self._attached - count
        if not 0 <= lagging <= self._attached:
            raise ValueError(f"{count} of {self._attached} replicas cannot be in step")
        del self.lagging[lagging:]
        self.lagging += [changes] * (lagging - len(self.lagging))
        self._forget()

    def acknowledged(self, offset: int) -> int:
        """How many have acknowledged everything up to there."""
        return self._attached - sum(acknowledged < offset for acknowledged in self.lagging)

    def _forget(self) -> None:
        if not self.lagging:
            self.written.clear()
