"""Streamfleet for asyncio.

from streamfleet_drivers.asyncio import Client, Server
"""

from streamfleet_protocol import notes as events
from streamfleet_protocol.errors import (
    Closed,
    InvalidOption,
    InvalidQueueName,
    NoQueues,
    OutcomeUnknown,
    QueueFull,
    Reject,
    Retry,
    ServerRefused,
    StreamfleetError,
    TaskCanceled,
    TaskError,
    TaskExpired,
    TaskFailed,
    UnknownQueue,
    UsageError,
)

from ..facade import CloseReport, Task
from .client import Client, TaskHandle
from .server import Server

__all__ = [
    "Client",
    "CloseReport",
    "Closed",
    "InvalidOption",
    "InvalidQueueName",
    "NoQueues",
    "OutcomeUnknown",
    "QueueFull",
    "Reject",
    "Retry",
    "Server",
    "ServerRefused",
    "StreamfleetError",
    "Task",
    "TaskCanceled",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskHandle",
    "UnknownQueue",
    "UsageError",
    "events",
]
