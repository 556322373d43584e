"""A worker and a client in one program: python simple.py [URL]. It needs a Redis or Valkey at the URL."""

import asyncio
import sys

from streamfleet_drivers.asyncio import Client, Server, Task

URL = sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379"

server = Server(URL, server_id="node1.example.com", concurrency=8)


@server.handler("messages")
async def on_message(task: Task) -> bytes:
    """Called for each task; task.data is what was enqueued. Raising is a failure, which is retried."""
    return b"you said " + task.data


async def main() -> None:
    """Enqueue two tasks, and wait for the second."""
    async with server, Client(URL, queues=["messages"]) as client:
        await client.enqueue_and_forget("messages", b"hello")
        handle = await client.enqueue_and_track("messages", b"hello", max_retries=3, retry_delay=2.0, expires_in=60)
        print(await handle.wait(timeout=30))


asyncio.run(main())
