"""The play: a client enqueues and waits for answers, workers work, faults strike by plan, and all of it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import redis

from streamfleet_protocol.errors import TaskError
from streamfleet_protocol.notes import DataLossSeen, Note, Reconnected

from ..asyncio import Client, TaskHandle
from ..local_server import LocalServer
from .display import Display, count
from .fleet import Fleet, WorkerProcess
from .journal import LEASE, Noticed, now
from .plan import Plan
from .report import SUCCEEDED, Evidence, worker_of
from .server import tasks_in
from .worker import answer

_LOOK = 0.05
"""Seconds between two looks at what has changed."""
_AT_ONCE = 50
"""Tasks of one enqueue call."""
_UNDER_WAY = 600
"""Tasks accepted and not settled at any time, so that the client still enqueues when the server is killed."""
_RETRY_DELAY = 0.5
_CLOSE_TIMEOUT = 5.0
_CLAIMS_PAUSE = 0.4
"""Seconds after which claims are told, if no other has followed."""
_CLIENT = "the client"
_WORTH_TELLING = {"LeaseLost", "Stalled", "TaskDeadLettered", "TaskHandedBack", "DataLossSeen", "RiskySetting"}


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker has taken over a task of another."""

    at: float
    claimer: str
    owner: str


class Play:
    """One run, from the first task to the last answer. Raises InvalidOption for a wrong URL."""

    def __init__(
        self,
        plan: Plan,
        display: Display,
        url: str,
        queue: str,
        fleet: Fleet,
        server: LocalServer | None,
    ) -> None:
        self.client = Client(url, queues=[queue], on_event=self._on_client_note)
        self._plan = plan
        self._display = display
        self._url = url
        self._queue = queue
        self._fleet = fleet
        self._server = server
        self._answers: dict[str, str | None] = {}
        self._expected: dict[str, bytes] = {}
        self._open: list[TaskHandle] = []
        self._settled = 0
        self._back: set[str] = set()
        """Who is connected again since the server's death."""
        self._data_loss_at: float | None = None
        self.incidents: list[str] = []
        """What went wrong apart from the tasks."""
        self._told: set[str] = set()
        self._claims: list[Claim] = []
        """Not told yet."""

    def evidence(self) -> Evidence:
        """What there is to judge the run by."""
        workers = self._fleet.workers
        return Evidence(
            answers=self._answers,
            journals={worker.name: worker.journal.records for worker in workers},
            killed={worker.name: worker.killed_at for worker in workers if worker.killed_at is not None},
            data_loss_at=self._data_loss_at,
            incidents=tuple(self.incidents),
        )

    async def run(self) -> None:
        """Until every task has its answer, or the time is over, or no worker is left. Raises ServerRefused."""
        try:
            async with asyncio.timeout(self._plan.time_limit), asyncio.TaskGroup() as group:
                group.create_task(self._enqueue())
                group.create_task(self._strike())
                while not self._finished:
                    await asyncio.sleep(_LOOK)
                    await self._take_answers()
                    self.look()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        except TimeoutError:
            self.incidents.append(f"it was given up after {self._plan.time_limit:.0f} s, with tasks unanswered")

    async def close(self) -> None:
        """Close the client."""
        try:
            await asyncio.wait_for(self.client.close(1), _CLOSE_TIMEOUT)
        except TimeoutError:
            self.incidents.append("the client could not be closed")

    def _on_client_note(self, note: Note) -> None:
        if isinstance(note, Reconnected):
            self._back.add(_CLIENT)
        if isinstance(note, DataLossSeen):
            self._display.say("", f"{_CLIENT}: {note}")
            if self._server is None:
                self._data_loss_at = self._data_loss_at or now()
            else:
                # The own server syncs every write: it can lose nothing, so this explains nothing.
                self.incidents.append(f"{note}, although every write was synced")

    @property
    def _finished(self) -> bool:
        all_settled = self._settled == len(self._plan.orders)
        return all_settled or not self._fleet.alive

    async def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait until it holds; False where the play is over before."""
        while not condition():
            if self._finished:
                return False
            await asyncio.sleep(_LOOK)
        return True

    # The client.

    async def _enqueue(self) -> None:
        orders = self._plan.orders
        for at in range(0, len(orders), _AT_ONCE):
            if not await self._until(lambda: len(self._open) <= _UNDER_WAY - _AT_ONCE):
                return
            handles = await self.client.enqueue_many(
                self._queue, orders[at : at + _AT_ONCE], track=True, retry_delay=_RETRY_DELAY
            )
            for number, handle in enumerate(handles, at):
                self._answers[handle.task_id] = None
                self._expected[handle.task_id] = answer(number)
            self._open += handles

    async def _take_answers(self) -> None:
        done = [handle for handle in self._open if handle.done()]
        for handle in done:
            self._answers[handle.task_id] = await self._answer(handle)
        if done:
            self._open = [handle for handle in self._open if self._answers[handle.task_id] is None]
            self._settled += len(done)
        self._display.progress(self._settled, len(self._answers))

    async def _answer(self, handle: TaskHandle) -> str:
        try:
            result = await handle.wait()
        except TaskError as error:
            return str(error)
        if result != self._expected[handle.task_id]:
            return f"task {handle.task_id} gave a wrong result: {result!r}"
        return SUCCEEDED

    # The faults.

    async def _strike(self) -> None:
        if await self._until(lambda: self._settled >= self._plan.kill_worker_at):
            await self._kill_worker(self._fleet.workers[self._plan.victim])
        if self._server is not None and await self._until(lambda: self._settled >= self._plan.kill_server_at):
            await self._kill_server(self._server)

    async def _kill_worker(self, victim: WorkerProcess) -> None:
        while not victim.kill_at_work():
            if self._finished or not victim.alive:
                self._display.say("", f"{victim.name} had nothing to do any more and was not killed")
                return
            await asyncio.sleep(0.01)
        at_work = count(victim.journal.open_runs(), "handler")
        self._display.say("FAULT", f"{victim.name} (pid {victim.pid}) is killed with SIGKILL, {at_work} at work")

    async def _kill_server(self, server: LocalServer) -> None:
        under_way = count(len(self._answers) - self._settled, "task")
        self._back.clear()
        pid, died_at = server.pid, now()
        server.kill()
        self._display.say("FAULT", f"the server (pid {pid}) is killed with SIGKILL, {under_way} under way")
        await asyncio.sleep(self._plan.server_down)
        await asyncio.to_thread(server.start)
        held = ""
        with contextlib.suppress(redis.RedisError):
            held = f" with {count(await asyncio.to_thread(tasks_in, self._url, self._queue), 'task')}"
        self._display.say("", f"the server is started again, and is back from its append-only file{held}")
        everybody = {worker.name for worker in self._fleet.alive} | {_CLIENT}
        if await self._until(lambda: everybody <= self._back):
            names = ", ".join(sorted(everybody - {_CLIENT}))
            self._display.say(
                "FLEET", f"{names} and {_CLIENT} are connected again, {now() - died_at:.1f} s after the server's death"
            )

    # What happens.

    def look(self) -> None:
        """Read the journals and tell what is new."""
        for worker, records in self._fleet.news():
            for record in records:
                if isinstance(record, Noticed):
                    self._take_note(worker, record)
            incident = worker.died_unexpectedly()
            if incident is not None:
                self.incidents.append(incident)
                self._display.say("", incident)
        if self._claims and (now() - self._claims[-1].at >= _CLAIMS_PAUSE or self._finished):
            self._tell_claims()

    def _take_note(self, worker: WorkerProcess, note: Noticed) -> None:
        if note.kind == "Reconnected":
            self._back.add(worker.name)
        elif note.kind == "TaskClaimed":
            self._claims.append(Claim(note.at, worker.name, worker_of(note.details["owner"])))
        elif note.kind in _WORTH_TELLING and note.text not in self._told:
            self._told.add(note.text)
            self._display.say("", f"{worker.name}: {note.text}")

    def _tell_claims(self) -> None:
        """Several claims that follow each other are told as one."""
        killed = {worker.name: worker.killed_at for worker in self._fleet.workers}
        for owner in sorted({claim.owner for claim in self._claims}):
            claims = [claim for claim in self._claims if claim.owner == owner]
            by_claimer = Counter(claim.claimer for claim in claims)
            shares = " and ".join(f"{name} ({number})" for name, number in sorted(by_claimer.items()))
            tasks = f"{count(len(claims), 'task')} {'was' if len(claims) == 1 else 'were'}"
            killed_at = killed.get(owner)
            if killed_at is None:
                after = f"which was silent for a lease of {LEASE:g} s"
            else:
                after = f"{claims[0].at - killed_at:.1f} s after its death (lease {LEASE:g} s)"
            self._display.say("FLEET", f"{tasks} claimed from {owner} by {shares}, {after}")
        self._claims.clear()
