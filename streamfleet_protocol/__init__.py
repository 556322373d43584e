"""The protocol of Streamfleet, sans-IO: pure state machines that emit Redis command intents and consume the replies.

    machine = ServerMachine(settings)
    effects = machine.step(now_ms, event)     # the one door
    at = machine.next_timeout()               # when to come back with Timeout, at the latest

Nothing here reads a clock, draws a random number, opens a socket or writes a log; a test enforces it.
"""

from .client.machine import ClientMachine
from .server.machine import ServerMachine
from .settings import ClientSettings, QueueSettings, ServerSettings

__all__ = ["ClientMachine", "ClientSettings", "QueueSettings", "ServerMachine", "ServerSettings"]
