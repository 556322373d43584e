"""The server side: one server, or an old primary beside a new one, each with its clock, and what befalls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .redis_model import BLOCKED, ModelServer, Snapshot
from .settings import EPOCH_MS

if TYPE_CHECKING:
    from streamfleet_protocol.commands import Command

    from .network import Wire
    from .world import World


class Host:
    """A server process on a machine with a wall clock."""

    __slots__ = ("down", "number", "offset_ms", "paused_until", "server", "timer_at")

    def __init__(self, number: int, server: ModelServer, offset_ms: int) -> None:
        self.number = number
        self.server = server
        self.offset_ms = offset_ms
        """Its wall clock against the right one."""
        self.down = False
        self.paused_until = 0
        """Stopped by SIGSTOP until then: connections stand, nothing is answered."""
        self.timer_at = -1
        """When the next BLOCK is looked at; -1: no time is set."""


class Site:
    """Where connections lead."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.primary = Host(1, ModelServer(world.plan.version, clock_ms=EPOCH_MS), 0)  # type: ignore[arg-type]
        self.primary.server.observer = world.ledger.observer
        self.old: Host | None = None
        """A primary that was replaced and does not know it yet."""
        self.offsets: list[tuple[int, int]] = []
        """(until when, how far ahead) a server's clock was before its last steps."""
        self.kept: dict[str, Snapshot] = {}
        """By fault: what a replica, or a file, holds."""

    def clock_ms(self) -> int:
        """The wall clock of the primary."""
        return EPOCH_MS + self.world.now + self.primary.offset_ms

    def latest_ms(self, within_ms: int = 1 << 60) -> int:
        """The latest that anybody can take Redis's clock to be who has asked for it in that time."""
        now = self.world.now
        ahead = [offset for until, offset in self.offsets if until >= now - within_ms]
        return EPOCH_MS + now + max([self.primary.offset_ms, *ahead])

    def tick(self, host: Host) -> None:
        """Let the host's clock show what it must."""
        clock = EPOCH_MS + self.world.now + host.offset_ms
        if clock != host.server.clock_ms:
            host.server.set_time(clock)

    def execute(self, wire: Wire, commands: tuple[Command, ...]) -> int:
        """Execute commands of a connection until one blocks; how many were executed, that one included.

        Replies go to the wire; a blocked command's comes later.
        """
        host = wire.host
        world = self.world
        self.tick(host)
        ledger = world.ledger
        ledger.acting = wire
        done = 0
        session = wire.session
        replies = wire.replies
        for command in commands:
            done += 1
            reply = session.execute(command)
            if reply is BLOCKED:
                wire.blocked = True
                self._set_timer(host)
                break
            replies.append(reply)
            if type(reply) is list and command[0] == b"EXEC":
                ledger.executed(wire, reply)
        ledger.acting = None
        world.commands += done
        if host.server.readers.unblocked:
            self.deliver_unblocked(host)
        return done

    def deliver_unblocked(self, host: Host) -> None:
        """Blocked reads that were served go on."""
        for number, reply in host.server.take_unblocked():
            self.world.network.unblocked(host, number, reply)

    def _set_timer(self, host: Host) -> None:
        """At the earliest deadline of a blocked read, by the host's wall clock."""
        deadline = host.server.next_block_deadline()
        if deadline is None:
            return
        now = self.world.now
        at = max(now + 1, host.paused_until, deadline - EPOCH_MS - host.offset_ms)
        if host.timer_at < 0 or at < host.timer_at:
            host.timer_at = at
            self.world.agenda.at(at, self, "end_blocks", host, at)

    def end_blocks(self, host: Host, at: int) -> None:
        """BLOCK is over for some, by the host's wall clock; it runs on for others, where the clock was set back."""
        if at != host.timer_at or host.down:
            return
        host.timer_at = -1
        if self.world.now >= host.paused_until:
            self.tick(host)
            for number, reply in host.server.timeouts_due():
                self.world.network.unblocked(host, number, reply)
            self.deliver_unblocked(host)
        self._set_timer(host)

    # What happens to servers. The ledger is told what is lost.

    def keep(self, name: str) -> None:
        """Remember the data as they are: a replica's, or those on the disk."""
        self.kept[name] = self.primary.server.snapshot()

    def restart(self, name: str, down_ms: int) -> None:
        """The server process ends, and comes back with what was kept under that name, or else with nothing."""
        host = self.primary
        kept = self.kept.pop(name, None) or Snapshot({}, {})
        self._lose(host, kept, "restart")
        self.world.network.cut_all(host)
        host.server.restart(kept)
        host.paused_until = 0
        host.down = True
        self.world.agenda.at(self.world.now + down_ms, self, "up", host)

    def restart_intact(self, down_ms: int) -> None:
        """The server process ends, and comes back with all its data."""
        host = self.primary
        self.world.network.cut_all(host)
        host.server.restart(host.server.snapshot())
        host.paused_until = 0
        host.down = True
        self.world.agenda.at(self.world.now + down_ms, self, "up", host)

    def up(self, host: Host) -> None:
        """The server process listens again."""
        host.down = False

    def roll_back(self, name: str) -> None:
        """The data become older ones under the living connections."""
        host = self.primary
        self.tick(host)
        kept = self.kept.pop(name, None) or Snapshot({}, {})
        self._lose(host, kept, "rollback")
        host.server.restore(kept)
        self.deliver_unblocked(host)

    def fail_over(self, name: str, old_ms: int, offset_ms: int) -> None:
        """A replica becomes the primary; the old one goes on answering who is connected to it, for a while."""
        old = self.primary
        kept = self.kept.pop(name, None) or old.server.snapshot()
        self._lose(old, kept, "failover")
        server = old.server.fork(EPOCH_MS + self.world.now + offset_ms, kept)
        server.observer = self.world.ledger.observer
        self.offsets.append((self.world.now, old.offset_ms))
        self.primary = Host(old.number + 1, server, offset_ms)
        if self.old is not None:
            self.retire(self.old)
        self.old = old
        self.world.agenda.at(self.world.now + old_ms, self, "retire", old)

    def retire(self, old: Host) -> None:
        """The old primary becomes a replica: what was written to it since is lost, its connections end."""
        if self.old is not old:
            return
        self.old = None
        self._lose(old, self.primary.server.snapshot(), "old primary")
        # A replica follows its primary: it has no memory limit of its own, and runs nobody's script.
        old.server.modes = 0
        old.server.demote()
        self.deliver_unblocked(old)
        self.world.network.leave(old)

    def _lose(self, host: Host, kept: Snapshot, kind: str) -> None:
        self.world.ledger.data_lost(kind, host.server.keys.data, kept.data)

    def jump(self, by_ms: int) -> None:
        """The wall clock of the primary's machine steps."""
        self.offsets.append((self.world.now, self.primary.offset_ms))
        self.primary.offset_ms += by_ms
        self.tick(self.primary)
        self.primary.timer_at = -1
        self._set_timer(self.primary)

    def operator(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Somebody at a command line."""
        self.tick(self.primary)
        session = self.primary.server.connect()
        replies = [session.execute(command) for command in commands]
        session.close()
        self.deliver_unblocked(self.primary)
        return replies
