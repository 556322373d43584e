"""Fixtures for all tests: fresh servers, ended with the test."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from streamfleet_drivers.local_server import LocalServer, Persistence
from tests.support.servers import KINDS, Kind, ServerMissing, servers_required, start_server

# A shell starts background commands with SIGINT ignored, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


class StartServer(Protocol):
    """The type of the fixture `start`."""

    def __call__(
        self,
        kind: Kind = "valkey9",
        *,
        persistence: Persistence = "none",
        directory: Path | None = None,
        port: int | None = None,
        arguments: Sequence[str] = (),
    ) -> LocalServer: ...


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what uses the fixture `benchmark`, so that `-m "not benchmark"` sees it without a marker, too."""
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of server in turn, for tests which start theirs: `start(kind, persistence="aof")`."""
    value: Kind = request.param
    return value


@pytest.fixture
def start() -> Iterator[StartServer]:
    """A function that starts a server as the test wants it; all are closed after the test.

    A missing binary skips the test, or fails it with STREAMFLEET_REQUIRE_SERVERS=1.
    """
    with contextlib.ExitStack() as stack:

        def start_one(
            kind: Kind = "valkey9",
            *,
            persistence: Persistence = "none",
            directory: Path | None = None,
            port: int | None = None,
            arguments: Sequence[str] = (),
        ) -> LocalServer:
            try:
                server = start_server(
                    kind, persistence=persistence, directory=directory, port=port, arguments=arguments
                )
            except ServerMissing as missing:
                if servers_required():
                    pytest.fail(f"{kind} is required and missing: {missing}", pytrace=False)
                pytest.skip(str(missing))
            stack.callback(server.close)
            return server

        yield start_one


@pytest.fixture
def server(kind: Kind, start: StartServer) -> LocalServer:
    """A fresh server without persistence; the test runs once with each kind."""
    return start(kind)


@pytest.fixture
def valkey(start: StartServer) -> LocalServer:
    """A fresh Valkey without persistence."""
    return start("valkey9")
