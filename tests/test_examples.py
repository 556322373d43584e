"""Each example of docs/examples, run as its reader would run it."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamfleet_drivers.local_server import LocalServer
from tests.support.commands import ROOT, Commands
from tests.support.servers import connect

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Runs commands in a copy of the examples' directory; nothing is left running."""
    directory = tmp_path / "examples"
    shutil.copytree(EXAMPLES, directory, ignore=shutil.ignore_patterns("__pycache__"))
    found = Commands(directory)
    yield found
    found.close()


def test_every_example_has_its_test() -> None:
    names = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert names == {"simple.py", "emails.py", "worker_app.py"}


def test_simple(commands: Commands, valkey: LocalServer) -> None:
    result = commands.start_python("simple.py", valkey.url).result()
    assert (result.code, result.out, result.err) == (0, b"b'you said hello'\n", "")
    assert connect(valkey).xlen("streamfleet:messages") == 0


def test_emails(commands: Commands, valkey: LocalServer) -> None:
    result = commands.start_python("emails.py", valkey.url).result()
    assert (result.code, result.err) == (0, "")
    assert sorted(line for line in result.lines if line.startswith(("To: ", "Subject: "))) == [
        "Subject: A reminder",
        "Subject: Welcome",
        "Subject: Your invoice",
        "To: Ada <ada@example.com>",
        "To: Alan <alan@example.com>",
        "To: Grace <grace@example.com>",
    ]
    assert result.lines[-1] == "3 e-mails were sent."
    assert connect(valkey).xlen("streamfleet:emails") == 0


def test_worker_app(commands: Commands, valkey: LocalServer) -> None:
    url = ["--url", valkey.url]
    worker = commands.start("worker", "worker_app:server", *url)
    greeting = commands.run("enqueue", "greetings", "Ada", "--track", *url)
    assert (greeting.code, greeting.lines[1:]) == (0, ["Hello, Ada!"])
    total = commands.run("enqueue", "sums", "[1, 2, 3]", "--track", *url)
    assert (total.code, total.lines[1:]) == (0, ["6"])
    nonsense = commands.run("enqueue", "sums", "nonsense", "--track", *url)
    assert nonsense.code == 1
    assert "not a list of numbers" in nonsense.err
    worker.signal(signal.SIGTERM)
    assert worker.result().code == 0


def test_the_example_of_the_readme(commands: Commands, valkey: LocalServer, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    example = tmp_path / "examples" / "readme.py"
    example.write_text(blocks[0].replace("redis://127.0.0.1:6379", valkey.url))
    result = commands.start_python("readme.py").result()
    assert (result.code, result.err) == (0, "")
    assert result.lines[-1] == "Result: b'optional result'"
    assert result.lines.count("Got message: hello") == 2
