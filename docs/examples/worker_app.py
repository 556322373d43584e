"""A module for the command line. Run the worker, and give it tasks from another terminal:

streamfleet worker worker_app:server --processes 2
streamfleet enqueue greetings Ada --track
streamfleet enqueue sums '[1, 2, 3]' --track
"""

import asyncio
import json

from streamfleet_drivers.asyncio import Reject, Server, Task

server = Server("redis://127.0.0.1:6379", concurrency=8)


@server.handler("greetings")
async def greet(task: Task) -> str:
    """A coroutine function runs in the event loop."""
    await asyncio.sleep(0.1)
    return f"Hello, {task.text}!"


@server.handler("sums", timeout=10)
def add(task: Task) -> str:
    """A plain function runs in a thread of its own. Reject: another try would end the same way."""
    try:
        return str(sum(json.loads(task.data)))
    except (ValueError, TypeError) as error:
        raise Reject(f"not a list of numbers: {error}") from error
