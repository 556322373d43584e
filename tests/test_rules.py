"""The rules of the house, enforced on the syntax trees: purity of the core, layering, sizes, docstrings, public names.

Each rule is a function from a source file to complaints, and is itself tried on snippets that break it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CORE_LINES_MOST = 330
"""A file of the core: 300 lines, and 30 for the docstrings that explain it."""
FUNCTION_LINES_MOST = 70

PURE_MODULES = frozenset(
    {"__future__", "bisect", "collections", "collections.abc", "dataclasses", "enum", "heapq", "re", "typing"}
)
IMPURE_MODULES = frozenset(
    {"asyncio", "logging", "os", "random", "redis", "secrets", "socket", "sys", "threading", "time", "uuid"}
)
IMPURE_CALLS = frozenset({"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"})

PUBLIC_NAMES = frozenset(
    {"Client", "CloseReport", "Reject", "Retry", "Server", "Task", "TaskHandle", "events"}
    | {"Closed", "InvalidOption", "InvalidQueueName", "NoQueues", "QueueFull", "ServerRefused", "StreamfleetError"}
    | {"OutcomeUnknown", "TaskCanceled", "TaskError", "TaskExpired", "TaskFailed", "UnknownQueue", "UsageError"}
)
"""The same in each driver (design, section 2)."""


@dataclass(frozen=True)
class Source:
    """One file, or a snippet that stands for one."""

    path: str
    """Relative to the root."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        """Its dotted name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def sources(package: str) -> list[Source]:
    """The files of a package."""
    paths = sorted((ROOT / package).rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths]


Rule = Callable[[Source], Iterator[str]]


# The rules.


def impure_imports(source: Source) -> Iterator[str]:
    """The core imports pure parts of the standard library, and itself."""
    for name in imports(source):
        if name not in PURE_MODULES and name.split(".")[0] != "streamfleet_protocol":
            yield f"imports {name}"


def impure_uses(source: Source) -> Iterator[str]:
    """No clock, chance, I/O or concurrency, however it was come by; no generator, which could not be copied."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in IMPURE_MODULES:
            yield f"line {node.lineno} uses {node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            yield f"line {node.lineno} calls {node.func.id}()"
        elif isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await):
            yield f"line {node.lineno} is asynchronous"
        elif isinstance(node, ast.Yield | ast.YieldFrom):
            yield f"line {node.lineno} yields"


def addresses(source: Source) -> Iterator[str]:
    """Nothing depends on where an object lies in memory. A snapshot's memo may, for as long as it is made."""
    allowed = {"id"} if source.path == "streamfleet_protocol/snapshot.py" else set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"id", "hash"} - allowed:
            yield f"line {node.lineno} calls {node.func.id}()"


def iterated_sets(source: Source) -> Iterator[str]:
    """The order of a set may differ from run to run; `sorted` and membership are fine."""
    tree = source.tree
    names = set_names(tree)
    for node in ast.walk(tree):
        iterated: list[ast.expr] = []
        if isinstance(node, ast.For | ast.comprehension):
            iterated = [node.iter]
        elif isinstance(node, ast.Starred):
            iterated = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"list", "tuple", "enumerate", "iter", "next", "zip", "map", "filter", "deque", "dict"}:
                iterated = node.args
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in {"pop", "join"}:
            iterated = [node.func.value, *node.args]
        for expression in iterated:
            if is_set(expression, names):
                yield f"line {expression.lineno} depends on the order of a set"


def long_file(source: Source) -> Iterator[str]:
    """One file, one responsibility."""
    lines = len(source.text.splitlines())
    if lines > CORE_LINES_MOST:
        yield f"has {lines} lines, more than {CORE_LINES_MOST}"


def long_functions(source: Source) -> Iterator[str]:
    """A function fits on a screen."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MOST:
                yield f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MOST}"


def missing_docstrings(source: Source) -> Iterator[str]:
    """What is public says what it is for. A method that overrides or fulfils a documented one need not repeat it."""
    if any(part.startswith("_") for part in source.module.split(".")[:-1]):
        return
    tree = source.tree
    if not ast.get_docstring(tree):
        yield "has no docstring"
    fulfilled = protocol_methods(tree)
    yield from (
        f"{name} has no docstring"
        for name in undocumented(source, tree.body, "")
        if name.rpartition(".")[2] not in fulfilled
    )


def imports_of(*forbidden: str) -> Rule:
    """The rule that a layer does not import these packages."""

    def rule(source: Source) -> Iterator[str]:
        for name in imports(source):
            if name.split(".")[0] in forbidden:
                yield f"imports {name}"

    return rule


# What the rules are made of.


def imports(source: Source) -> Iterator[str]:
    """Dotted names of all imported modules; relative ones made absolute."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module is not None
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            parts = source.path.removesuffix(".py").split("/")[: -node.level]
            yield ".".join([*parts, *([node.module] if node.module else [])])


def set_names(tree: ast.Module) -> set[str]:
    """Names of variables and attributes that hold sets."""
    names: set[str] = set()
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign) and is_set(node.value, names):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and annotates_set(node.annotation):
            targets = [node.target]
        elif isinstance(node, ast.arg) and node.annotation is not None and annotates_set(node.annotation):
            names.add(node.arg)
        for target in targets:
            if isinstance(target, ast.Name):
                names.add(target.id)
            elif isinstance(target, ast.Attribute):
                names.add(target.attr)
    return names


def annotates_set(annotation: ast.expr) -> bool:
    """Whether an annotation is that of a set."""
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    return isinstance(annotation, ast.Name) and annotation.id in {"set", "frozenset", "Set", "AbstractSet"}


def is_set(expression: ast.expr, names: set[str]) -> bool:
    """Whether an expression is a set, as far as can be seen."""
    if isinstance(expression, ast.Set | ast.SetComp):
        return True
    if isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name):
        return expression.func.id in {"set", "frozenset"}
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return is_set(expression.left, names) or is_set(expression.right, names)
    if isinstance(expression, ast.Name):
        return expression.id in names
    return isinstance(expression, ast.Attribute) and expression.attr in names


def undocumented(source: Source, body: list[ast.stmt], owner: str) -> Iterator[str]:
    """Public definitions in a module or a class without a docstring of their own or of a base."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name = f"{owner}{node.name}"
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if decorators & {"overload", "typing.overload"} or any(text.endswith(".setter") for text in decorators):
            continue
        if not ast.get_docstring(node) and not (owner and inherits_docstring(source, name)):
            yield name
        if isinstance(node, ast.ClassDef):
            yield from undocumented(source, node.body, f"{name}.")


def protocol_methods(tree: ast.Module) -> set[str]:
    """Names of the methods that a Protocol of the module documents, for all that fulfil it."""
    protocols = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)
    ]
    return {
        method.name
        for protocol in protocols
        for method in protocol.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(method)
    }


def inherits_docstring(source: Source, name: str) -> bool:
    """Whether a method's base class documents it."""
    try:
        found = importlib.import_module(source.module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return bool(inspect.getdoc(found))


# The rules, applied.

CORE = sources("streamfleet_protocol")
DRIVERS = sources("streamfleet_drivers")
SIMULATOR = sources("sim")


def complaints(rule: Rule, files: list[Source]) -> dict[str, list[str]]:
    """What a rule has against these files."""
    found = {source.path: list(rule(source)) for source in files}
    return {path: lines for path, lines in found.items() if lines}


def test_the_files_are_found() -> None:
    """Rules over no files would hold for ever."""
    paths = {source.path for source in CORE}
    assert {"streamfleet_protocol/machine.py", "streamfleet_protocol/client/outbox.py"} <= paths
    assert "streamfleet_drivers/asyncio/client.py" in {source.path for source in DRIVERS}
    assert SIMULATOR


@pytest.mark.parametrize(
    "rule", [impure_imports, impure_uses, addresses, iterated_sets, long_file], ids=lambda rule: rule.__name__
)
def test_core(rule: Rule) -> None:
    assert complaints(rule, CORE) == {}


@pytest.mark.parametrize("rule", [long_functions, missing_docstrings], ids=lambda rule: rule.__name__)
def test_core_and_drivers(rule: Rule) -> None:
    assert complaints(rule, CORE + DRIVERS) == {}


@pytest.mark.parametrize(
    ("layer", "above"),
    [
        (CORE, ("streamfleet_drivers", "sim", "tests")),
        (DRIVERS, ("sim", "tests")),
        (SIMULATOR, ("streamfleet_drivers", "tests")),
    ],
    ids=["core", "drivers", "simulator"],
)
def test_layering(layer: list[Source], above: tuple[str, ...]) -> None:
    """Who imports whom: drivers and simulator build on the core, and know nothing of each other."""
    assert complaints(imports_of(*above), layer) == {}


def test_public_names_of_the_asyncio_driver() -> None:
    module = importlib.import_module("streamfleet_drivers.asyncio")
    assert len(module.__all__) == len(PUBLIC_NAMES)
    assert set(module.__all__) == PUBLIC_NAMES
    assert all(hasattr(module, name) for name in PUBLIC_NAMES)


# The rules, tried.

A_CORE_FILE = "streamfleet_protocol/client/example.py"
A_PROTOCOL = "class A(Protocol):\n    '''A.'''\n    def f(self):\n        '''Does it.'''"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (impure_imports, "import time"),
        (impure_imports, "from random import random"),
        (impure_imports, "import collections, os"),
        (impure_imports, "from redis.asyncio import Redis"),
        (impure_imports, "def late():\n    import logging"),
        (impure_imports, "from ...streamfleet_drivers import facade"),
        (impure_uses, "now = time.monotonic()"),
        (impure_uses, "print('x')"),
        (impure_uses, "open('x')"),
        (impure_uses, "module = __import__('time')"),
        (impure_uses, "async def f(): pass"),
        (impure_uses, "def f():\n    yield 1"),
        (impure_uses, "def f():\n    yield from g()"),
        (addresses, "key = id(task)"),
        (addresses, "key = hash(task)"),
        (iterated_sets, "for name in {1, 2}: pass"),
        (iterated_sets, "found = [x for x in set(names)]"),
        (iterated_sets, "names = {x for x in y}\nlist(names)"),
        (iterated_sets, "names = set(a) - set(b)\nfor name in names: pass"),
        (iterated_sets, "class A:\n    names: set[str]\n    def f(self):\n        return tuple(self.names)"),
        (iterated_sets, "def f(names: frozenset[str]):\n    return [*names]"),
        (iterated_sets, "names = set()\nname = names.pop()"),
        (iterated_sets, "text = ', '.join({'a', 'b'})"),
        (long_file, "x = 1\n" * (CORE_LINES_MOST + 1)),
        (long_functions, "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MOST),
        (long_functions, "class A:\n    async def f(self):\n" + "        x = 1\n" * FUNCTION_LINES_MOST),
        (missing_docstrings, "x = 1"),
        (missing_docstrings, "'''Module.'''\ndef f(): pass"),
        (missing_docstrings, "'''Module.'''\nclass A: pass"),
        (missing_docstrings, "'''Module.'''\nclass A:\n    '''A.'''\n    def f(self): pass"),
        (imports_of("sim"), "import sim.redis_model"),
        (imports_of("sim"), "from sim import redis_model"),
        (imports_of("streamfleet_drivers"), "def f():\n    from streamfleet_drivers.facade import tell"),
    ],
)
def test_a_broken_rule_is_seen(rule: Rule, text: str) -> None:
    assert list(rule(Source(A_CORE_FILE, text)))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (impure_imports, "from __future__ import annotations\nfrom collections.abc import Sequence"),
        (impure_imports, "from ..wire import Fields\nfrom . import records"),
        (impure_imports, "import streamfleet_protocol.wire"),
        (impure_uses, "def f(time):\n    return time + 1"),
        (addresses, "key = task.id"),
        (iterated_sets, "names = {1, 2}\nfor name in sorted(names): pass"),
        (iterated_sets, "known = 1 in {1, 2}"),
        (iterated_sets, "for a, b in zip(first, second): pass"),
        (long_file, "x = 1\n" * CORE_LINES_MOST),
        (long_functions, "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MOST - 1)),
        (missing_docstrings, "'''Module.'''\ndef _f(): pass\nclass _A:\n    def f(self): pass"),
        (missing_docstrings, "'''Module.'''\n@overload\ndef f(): ...\ndef f():\n    '''Doc.'''"),
        (missing_docstrings, f"'''Module.'''\n{A_PROTOCOL}\nclass B:\n    '''B.'''\n    def f(self): pass"),
        (imports_of("sim"), "from simple import sim"),
    ],
)
def test_a_kept_rule_is_no_complaint(rule: Rule, text: str) -> None:
    assert list(rule(Source(A_CORE_FILE, text))) == []


def test_only_the_snapshot_may_ask_for_addresses() -> None:
    assert list(addresses(Source("streamfleet_protocol/snapshot.py", "id(x)"))) == []
    assert list(addresses(Source("streamfleet_protocol/snapshot.py", "hash(x)")))


def test_an_overriding_method_inherits_its_docstring() -> None:
    path = "streamfleet_drivers/asyncio/runtime.py"
    text = "'''Module.'''\nclass Connection:\n    '''One.'''\n    def {}(self): pass"
    assert list(missing_docstrings(Source(path, text.format("data_received")))) == []
    assert list(missing_docstrings(Source(path, text.format("nobody_knows_it"))))
