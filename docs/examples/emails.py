"""An e-mail sender: web servers enqueue e-mails, workers send them. Run both here: python emails.py [URL].

It prints the e-mails instead of sending them. Read simple.py first.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from streamfleet_drivers.asyncio import Client, Reject, Server, Task, TaskHandle

QUEUE = "emails"
EXPIRES_IN = timedelta(hours=1)


@dataclass(frozen=True)
class Email:
    """An e-mail as it stands in the queue. A program that lives for years would add a version number."""

    recipient: str
    subject: str
    body: str

    def to_json(self) -> str:
        """As the task's data."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The inverse. Raises ValueError or TypeError for anything else."""
        return cls(**json.loads(data))


class EmailClient:
    """Queues e-mails; any sender worker sends them."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, queues=[QUEUE])

    async def send(self, email: Email) -> TaskHandle:
        """Queue an e-mail. Returns as soon as it is accepted; `await handle.wait()` waits until it is sent.

        A mail server that is down is tried again, until the e-mail is an hour old.
        """
        return await self._client.enqueue_and_track(QUEUE, email.to_json(), expires_in=EXPIRES_IN)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.close()


class EmailSenderWorker:
    """Sends the queued e-mails with the function `deliver`."""

    def __init__(self, url: str, server_id: str, deliver: Callable[[Email], None]) -> None:
        self._deliver = deliver
        self._server = Server(url, server_id=server_id, concurrency=4)
        self._server.handler(QUEUE, timeout=60)(self._send)

    async def run(self) -> None:
        """Send until `close`."""
        await self._server.run()

    async def close(self) -> None:
        """Finish what is being sent, and end."""
        await self._server.close()

    def _send(self, task: Task) -> None:
        # A plain function, since most libraries for e-mail block: it runs in a thread.
        try:
            email = Email.from_json(task.data)
        except (ValueError, TypeError) as error:
            raise Reject(f"not an e-mail: {error}") from error
        self._deliver(email)


def print_email(email: Email) -> None:
    """Stands for a real delivery."""
    line = "-" * 24
    text = f"{line}\nTo: {email.recipient}\nSubject: {email.subject}\n{line}\n{email.body}\n\n"
    print(text, end="", flush=True)


async def main(url: str) -> None:
    """Queue some e-mails, and only then start a worker: work can be queued before anybody is there to do it."""
    emails = [
        Email("Ada <ada@example.com>", "Your invoice", "It is attached."),
        Email("Grace <grace@example.com>", "Welcome", "Good to have you here."),
        Email("Alan <alan@example.com>", "A reminder", "The library wants its book back."),
    ]
    async with EmailClient(url) as client:
        handles = [await client.send(email) for email in emails]
        worker = EmailSenderWorker(url, "node1.example.com", print_email)
        running = asyncio.create_task(worker.run())
        try:
            for handle in handles:
                await handle.wait(timeout=30)
            print(f"{len(handles)} e-mails were sent.")
        finally:
            await worker.close()
            await running


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379"))
