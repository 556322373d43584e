"""The yardstick: a bare loop over redis-py's raw connection, MULTI/EXEC batches of 100, no queue logic."""

from __future__ import annotations

import time
from typing import Any

from redis.connection import Connection

from streamfleet_protocol.wire import TaskEntry, encode_task

BATCH = 100
PAYLOAD = b"x" * 100
_STREAM = "bare"


def enqueue(port: int, tasks: int) -> float:
    """XADD entries like ours; tasks a second."""
    connection = _connect(port)
    task_id = "01a20bff-c757-7740-859e-9d5e062193a1"
    fields = encode_task(TaskEntry(task_id, task_id, PAYLOAD, retry_backoff=2.0, retry_delay_max_ms=300_000))
    batch: list[tuple[Any, ...]] = [("MULTI",), *[("XADD", _STREAM, "*", *fields)] * BATCH, ("EXEC",)]
    started = time.perf_counter()
    for _ in range(tasks // BATCH):
        connection.send_packed_command(connection.pack_commands(batch))
        for _ in batch:
            connection.read_response()
    return tasks / (time.perf_counter() - started)


def drain(port: int, tasks: int) -> float:
    """XREADGROUP, then XACK and XDEL of all; tasks a second."""
    connection = _connect(port)
    connection.send_command("XGROUP", "CREATE", _STREAM, "group", "0")
    connection.read_response()
    started = time.perf_counter()
    got = 0
    while got < tasks:
        connection.send_command("XREADGROUP", "GROUP", "group", "me", "COUNT", BATCH, "STREAMS", _STREAM, ">")
        ids = [entry[0] for entry in connection.read_response()[0][1]]
        settle = [("MULTI",), ("XACK", _STREAM, "group", *ids), ("XDEL", _STREAM, *ids), ("EXEC",)]
        connection.send_packed_command(connection.pack_commands(settle))
        for _ in settle:
            connection.read_response()
        got += len(ids)
    seconds = time.perf_counter() - started
    connection.send_command("DEL", _STREAM)
    connection.read_response()
    return tasks / seconds


def round_trips(port: int, tasks: int) -> float:
    """XADD, blocked read, XADD, blocked read, one after the other over two connections; round trips a second."""
    ours, theirs = _connect(port), _connect(port)
    started = time.perf_counter()
    for _ in range(tasks):
        for writer, reader, stream in ((ours, theirs, "there"), (theirs, ours, "back")):
            writer.send_command("XADD", stream, "*", "data", PAYLOAD)
            entry_id = writer.read_response()
            reader.send_command("XREAD", "COUNT", 1, "BLOCK", 1000, "STREAMS", stream, "0")
            reader.read_response()
            writer.send_command("XDEL", stream, entry_id)
            writer.read_response()
    return tasks / (time.perf_counter() - started)


def _connect(port: int) -> Any:
    connection = Connection(host="127.0.0.1", port=port, protocol=2)  # type: ignore[no-untyped-call]
    connection.connect()  # type: ignore[no-untyped-call]
    return connection
