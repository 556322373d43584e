"""The world of one run: time, processes, network, server, faults, and the order in which all of it happens.

One thread, one agenda, virtual time. The run has four phases: faults strike; then it is calm, and all that was accepted
must come to its end; then everything must come to rest; then all is closed, and nothing may be left.
"""

from __future__ import annotations

import heapq
from typing import Any

from streamfleet_protocol.inputs import Enqueue, Flush

from .agenda import Agenda
from .faults import Faults
from .handlers import Handlers
from .ledger import Ledger, TaskRecord
from .network import Network
from .oracles import Oracles
from .plan import Plan, TaskPlan
from .processes import Process
from .settings import task_options
from .site import Site
from .trace import Trace
from .verdict import Failure, Violation

_LOOK_EVERY_MS = 250


class Violated(Exception):
    """An oracle says no: this ends the run."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


class World:
    """Everything that is in one run."""

    def __init__(self, plan: Plan, trace: Trace | None, without: frozenset[str]) -> None:
        self.plan = plan
        self.now = 0
        self.calm = False
        self.steps = 0
        self.commands = 0
        self.record = trace
        self.tracing = trace is not None
        self.agenda = Agenda()
        self.oracles = Oracles(self, without)
        self.ledger = Ledger(self)
        self.ledger.observer.oracles = self.oracles
        self.site = Site(self)
        self.network = Network(self)
        self.faults = Faults(self)
        self.handlers = Handlers(self)
        self.workers = [Process(self, process, is_worker=True) for process in plan.workers]
        self.clients = [Process(self, process, is_worker=False) for process in plan.clients]
        self.processes = {process.name: process for process in (*self.workers, *self.clients)}
        self.calls = 0

    # Observation.

    def trace(self, who: str, what: str, payload: object) -> None:
        """Note what happens, where a trace is kept."""
        if self.record is not None:
            self.record.add(self.now, who, what, payload)

    def fail(self, oracle: str, failure: Failure, text: str) -> None:
        """An oracle says no, unless it is switched off."""
        if oracle not in self.oracles.without:
            raise Violated(Violation(oracle, failure, self.now, text))

    # The run.

    def run(self) -> None:
        """All four phases. Raises Violated, or whatever a machine raises."""
        for process in self.processes.values():
            self.agenda.at(process.plan.at_ms, process, "start")
        for task in self.plan.tasks:
            self.agenda.at(task.at_ms, self, "enqueue", task)
        self.faults.plan()
        self._run_until(self.plan.calm_at_ms)
        self._begin_calm()
        self.oracles.calm_begins()
        self._run_while(self.oracles.unfinished, self.oracles.progress.bound_ms())
        self.oracles.all_ended()
        self._run_while(self.oracles.not_at_rest, self.oracles.rest.bound_ms())
        self.oracles.at_rest()
        self._close(self.clients)
        # What a client could not take away itself, on a connection that had just gone, is collected by the workers.
        self._run_while(self.oracles.not_at_rest, self.oracles.rest.bound_ms())
        self._close(self.workers)
        self.oracles.all_closed()

    def _close(self, processes: list[Process]) -> None:
        for process in processes:
            process.done = True
            process.close(5_000)
        self._run_while(lambda: self._still_open(processes), self.oracles.rest.closing_bound_ms())

    def _run_until(self, until: int) -> None:
        heap = self.agenda.heap
        while heap and heap[0][0] <= until:
            time, _, target, method, args = heapq.heappop(heap)
            self.now = time
            getattr(target, method)(*args)
        self.now = max(self.now, until)

    def _run_while(self, pending: Any, bound_ms: int) -> None:
        """Until nothing is pending; what is still pending after the bound is the oracle's to judge."""
        until = self.now + bound_ms
        while pending() is not None:
            if self.now >= until:
                self.oracles.out_of_time(pending())
                return
            self._run_until(min(until, self.now + _LOOK_EVERY_MS))

    def _begin_calm(self) -> None:
        self.calm = True
        self.faults.calm()
        site = self.site
        if site.old is not None:
            site.retire(site.old)
        site.primary.paused_until = min(site.primary.paused_until, self.now)
        self.trace("world", "calm", None)
        for process in self.processes.values():
            if process.name in self.plan.gone:
                process.freeze(-1)
                process.done = True
            elif process.frozen:
                process.thaws_at = self.now
                process.thaw(process.incarnation)
            process.slow_until = min(process.slow_until, self.now)
            if process.is_worker:
                process.start()

    def _still_open(self, processes: list[Process]) -> str | None:
        still = [process.name for process in processes if process.alive and not process.frozen]
        return f"{', '.join(still)} have not closed" if still else None

    # The application.

    def enqueue(self, task: TaskPlan) -> None:
        """A client enqueues a task, if it is there."""
        process = self.processes[task.client]
        if process.machine is None or process.closing:
            return
        if process.frozen:
            process.inbox.append(("enqueue", task))
            return
        self.calls += 1
        record = TaskRecord(task)
        self.ledger.asked(process, self.calls, record)
        data = task.name.encode().ljust(task.size, b".")
        options = task_options(task, process.wall_ms)
        request = Enqueue(self.calls, task.queue, (task.name,), (data,), options, task.tracked, task.wait)
        process.deliver(request, process.incarnation)
        if task.flush:
            self.calls += 1
            self.ledger.flushes[process.identity, self.calls] = self.now
            process.deliver(Flush(self.calls), process.incarnation)

    def start_again(self, process: Process) -> None:
        """A process that was closed is started again as soon as it has ended."""
        if process.alive:
            self.agenda.at(self.now + 500, self, "start_again", process)
        else:
            process.start()
