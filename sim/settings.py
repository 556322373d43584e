"""The protocol's settings of a process, from a plan."""

from __future__ import annotations

from typing import Any

from streamfleet_protocol import ClientSettings, QueueSettings, ServerSettings
from streamfleet_protocol.inputs import TaskOptions

from .plan import Plan, ProcessPlan, TaskPlan

EPOCH_MS = 1_700_000_000_000
"""What wall clocks that are right show at the start of a run."""


def client_settings(plan: Plan, process: ProcessPlan, identity: str, seed: int) -> ClientSettings:
    """Those of a client."""
    values: dict[str, Any] = {**plan.client_settings, **process.settings}
    return ClientSettings(plan.queues, identity, seed=seed, **values)


def worker_settings(plan: Plan, process: ProcessPlan, identity: str, seed: int) -> ServerSettings:
    """Those of a worker. `timeout_ms` is the handlers' time limit; `prefetch` -1 = adaptive."""
    values: dict[str, Any] = {**plan.worker_settings, **process.settings}
    timeout_ms = values.pop("timeout_ms", 0)
    if values.get("prefetch") == -1:
        values["prefetch"] = None
    queues = tuple(QueueSettings(name, timeout_ms) for name in plan.queues)
    return ServerSettings(queues, identity, seed=seed, **values)


def task_options(task: TaskPlan, wall_ms: int) -> TaskOptions:
    """A task's options as its client asks for them; `wall_ms` is how much the client's wall clock is ahead."""
    values: dict[str, Any] = dict(task.options)
    if values.get("max_retries") == -1:
        del values["max_retries"]
    if "retry_backoff" in values:
        values["retry_backoff"] /= 100
    if task.expires_at_ms:
        values["expires_ts"] = EPOCH_MS + task.expires_at_ms + wall_ms
    if task.due_at_ms:
        values["due_ts"] = EPOCH_MS + task.due_at_ms + wall_ms
    return TaskOptions(**values)
