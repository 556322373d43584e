"""Known defects as textual edits of the protocol, put in place in the running process, and taken out again.

The edited source is compiled and executed in a scratch namespace; what the edits changed there is then taken over by
the live module: code and defaults of functions, methods and properties, default values of dataclass fields, constants
and tables. No class of the live program is replaced, so that objects made before or after are of the same classes.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

PACKAGE = "streamfleet_protocol"


class MutantError(Exception):
    """A mutant that cannot be put in place; the text says which edit, and why."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement in the source of one module."""

    module: str
    """Below the protocol's package, `server.leases` for example."""
    before: str
    """Occurs exactly once."""
    after: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """The protocol with one known defect."""

    name: str
    source: str
    """Where the defect comes from, one or more, separated by `; `. Each is one of `finding 11`, `finding 2.4c`,
    `go N2`, `style M4`, `design 4.3`, `contract 2`."""
    rule: str
    """The rule that is taken out, and what goes wrong without it."""
    edits: tuple[Edit, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Each source by itself."""
        return tuple(self.source.split("; "))


@contextmanager
def apply(mutant: Mutant) -> Iterator[None]:
    """The live protocol has the mutant's defect inside this context.

    Raises MutantError where an edit does not fit, or changes something that cannot be exchanged in place.
    """
    with ExitStack() as stack:
        for name in dict.fromkeys(edit.module for edit in mutant.edits):
            edits = [edit for edit in mutant.edits if edit.module == name]
            module = importlib.import_module(f"{PACKAGE}.{name}")
            _Exchange(mutant.name, module, edits, stack).carry_out()
        yield


def edited_source(mutant: Mutant, module: str) -> str:
    """The source of one module with the mutant's edits. Raises MutantError where one does not fit."""
    live = importlib.import_module(f"{PACKAGE}.{module}")
    return _edited(mutant.name, _source(live), [edit for edit in mutant.edits if edit.module == module])


def _source(module: ModuleType) -> str:
    assert module.__file__ is not None
    return Path(module.__file__).read_text(encoding="utf-8")


def _edited(name: str, text: str, edits: Sequence[Edit]) -> str:
    for edit in edits:
        found = text.count(edit.before)
        if found != 1 or edit.before == edit.after:
            what = "changes nothing" if edit.before == edit.after else f"fits {found} times instead of once"
            raise MutantError(f"{name}: an edit of {edit.module} {what}: {edit.before.strip()!r}")
        text = text.replace(edit.before, edit.after)
    return text


class _Exchange:
    """The exchange of what differs in one module."""

    def __init__(self, name: str, module: ModuleType, edits: Sequence[Edit], undo: ExitStack) -> None:
        self.name = name
        self.module = module
        self.undo = undo
        text = _source(module)
        mutated = _edited(name, text, edits)
        # Of the source as it stands, to know the live program by: it may have been loaded before an edit by hand.
        self.original = self._execute(text, module.__file__ or "")
        self.scratch = self._execute(mutated, f"<{module.__name__} with {name}>")
        self.before, self.after = ast.parse(text), ast.parse(mutated)

    def carry_out(self) -> None:
        """Take over every difference."""
        changes = list(self._changes(self.before.body, self.after.body, ()))
        if not changes:
            raise self._error("nothing is changed but the layout")
        for path, change in changes:
            change(path)

    def _error(self, text: str) -> MutantError:
        return MutantError(f"{self.name}, in {self.module.__name__}: {text}")

    def _execute(self, text: str, path: str) -> ModuleType:
        # With the name of the live module, so that relative imports and annotations lead to the live program.
        scratch = ModuleType(self.module.__name__)
        scratch.__package__ = self.module.__package__
        scratch.__file__ = path
        try:
            exec(compile(text, path, "exec"), scratch.__dict__)
        except Exception as error:
            raise self._error(f"the source cannot be executed: {type(error).__name__}: {error}") from error
        return scratch

    # What differs.

    def _changes(
        self, before: list[ast.stmt], after: list[ast.stmt], path: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], Callable[[tuple[str, ...]], None]]]:
        old, new = self._by_key(before, path), self._by_key(after, path)
        missing = [key for key in old if key not in new]
        if missing:
            raise self._error(f"{missing[0]} is taken out, which cannot be done in place")
        for key, node in new.items():
            known = old.get(key)
            if known is not None and _dump(known, key) == _dump(node, key):
                continue
            inside = (*path, key)
            if isinstance(node, ast.ClassDef) and isinstance(known, ast.ClassDef):
                if _head(known) != _head(node):
                    raise self._error(f"the head of class {key} is changed, which cannot be done in place")
                yield from self._changes(known.body, node.body, inside)
            elif isinstance(node, ast.FunctionDef):
                if isinstance(known, ast.FunctionDef) and _decorators(known) != _decorators(node):
                    raise self._error(f"the decorators of {key} are changed, which cannot be done in place")
                yield inside, self._exchange_function if known is not None else self._add_function
            elif path and isinstance(node, ast.AnnAssign) and known is not None:
                yield inside, self._exchange_default
            elif isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign) and not path:
                yield inside, self._exchange_global
            else:
                raise self._error(f"{key} is changed, which cannot be done in place")

    def _by_key(self, body: list[ast.stmt], path: tuple[str, ...]) -> dict[str, ast.stmt]:
        found: dict[str, ast.stmt] = {}
        for node in body:
            for key in _keys(node):
                if key in found:
                    raise self._error(f"{'.'.join((*path, key))} is defined twice")
                found[key] = node
        return found

    # Exchanging.

    def _exchange_function(self, path: tuple[str, ...]) -> None:
        live, original, changed = (_function(self._find(root, path)) for root in self._roots())
        if not _same_code(live.__code__, original.__code__):
            raise self._error(f"the live {'.'.join(path)} is not what its source says")
        if live.__code__.co_freevars != changed.__code__.co_freevars:
            raise self._error(f"{'.'.join(path)} uses other variables from outside, which cannot be done in place")
        self._set(live, "__code__", changed.__code__)
        if live.__defaults__ != changed.__defaults__:
            self._set(live, "__defaults__", changed.__defaults__)
        if live.__kwdefaults__ != changed.__kwdefaults__:
            self._set(live, "__kwdefaults__", changed.__kwdefaults__)

    def _add_function(self, path: tuple[str, ...]) -> None:
        changed = self._find(self.scratch, path)
        if not isinstance(changed, FunctionType) or changed.__closure__:
            raise self._error(f"{'.'.join(path)} is no plain function, and cannot be added in place")
        function = FunctionType(changed.__code__, self.module.__dict__, changed.__name__, changed.__defaults__)
        function.__kwdefaults__ = changed.__kwdefaults__
        owner = self._find(self.module, path[:-1])
        setattr(owner, path[-1], function)
        self.undo.callback(delattr, owner, path[-1])

    def _exchange_default(self, path: tuple[str, ...]) -> None:
        """The default value of a dataclass's field."""
        if not is_dataclass(self._find(self.module, path[:-1])):
            raise self._error(f"{'.'.join(path)} is changed, which is possible only in a dataclass")
        live, original, changed = (self._find(root, (*path[:-1], "__init__")) for root in self._roots())
        if live.__defaults__ != original.__defaults__:
            raise self._error(f"the live defaults of {path[-2]} are not what their source says")
        if live.__defaults__ == changed.__defaults__:
            raise self._error(f"no default value of {'.'.join(path)} is changed")
        self._set(live, "__defaults__", changed.__defaults__)

    def _exchange_global(self, path: tuple[str, ...]) -> None:
        """A constant, a table, or a name that is imported."""
        name = path[0]
        changed = self._translated(self.scratch.__dict__[name])
        if name not in self.module.__dict__:
            setattr(self.module, name, changed)
            self.undo.callback(delattr, self.module, name)
            return
        live = self.module.__dict__[name]
        if type(live) is not type(changed) or live != self._translated(self.original.__dict__[name]):
            raise self._error(f"{name} cannot be exchanged, or the live one is not what its source says")
        if isinstance(live, dict):
            # Others have imported the table itself.
            self.undo.callback(_fill, live, dict(live))
            _fill(live, changed)
            return
        if live == changed:
            raise self._error(f"the value of {name} is not changed")
        for other in [module for key, module in sys.modules.items() if key.partition(".")[0] == PACKAGE]:
            if other.__dict__.get(name) is live:
                self._set(other, name, changed)

    def _translated(self, value: Any) -> Any:
        """A value of a scratch namespace, with classes, members and functions of the live program."""
        if isinstance(value, Enum):
            return self._live_class(type(value))[value.name] if self._is_ours(type(value)) else value
        if isinstance(value, dict):
            return {self._translated(key): self._translated(item) for key, item in value.items()}
        if type(value) in (tuple, list, set, frozenset):
            return type(value)(self._translated(item) for item in value)
        if isinstance(value, type):
            return self._live_class(value) if self._is_ours(value) else value
        if self._is_ours(type(value)) or isinstance(value, FunctionType):
            raise self._error(f"a value of {type(value).__name__} cannot be exchanged in place")
        return value

    def _is_ours(self, kind: type) -> bool:
        return kind.__module__ == self.module.__name__

    def _live_class(self, kind: type) -> Any:
        return self._find(self.module, tuple(kind.__qualname__.split(".")))

    def _roots(self) -> tuple[ModuleType, ModuleType, ModuleType]:
        return self.module, self.original, self.scratch

    def _find(self, root: ModuleType, path: tuple[str, ...]) -> Any:
        found: Any = root
        for part in path:
            try:
                found = found.__dict__[part]
            except KeyError:
                raise self._error(f"there is no {'.'.join(path)} in the live program") from None
        return found

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self.undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)


def _keys(node: ast.stmt) -> list[str]:
    """The names that a statement defines; of another one, all of it."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return names or [ast.dump(node)]


def _dump(node: ast.stmt, key: str) -> str:
    """What a statement says about a name that it defines."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        origin = (node.module, node.level) if isinstance(node, ast.ImportFrom) else ()
        return str([(origin, alias.name) for alias in node.names if key in (alias.asname, alias.name)])
    return ast.dump(node)


def _head(node: ast.ClassDef) -> list[str]:
    return [ast.dump(part) for part in (*node.bases, *node.keywords, *node.decorator_list)]


def _decorators(node: ast.FunctionDef) -> list[str]:
    return [ast.dump(decorator) for decorator in node.decorator_list]


def _function(found: Any) -> FunctionType:
    """The function behind a method, a property, a static or a class method."""
    if isinstance(found, property):
        found = found.fget
    function = getattr(found, "__func__", found)
    assert isinstance(function, FunctionType)
    return function


def _same_code(one: CodeType, other: CodeType) -> bool:
    """Whether they do the same; lines and file may differ."""
    if len(one.co_consts) != len(other.co_consts):
        return False
    for a, b in zip(one.co_consts, other.co_consts, strict=True):
        both = isinstance(a, CodeType) and isinstance(b, CodeType)
        if not (_same_code(a, b) if both else type(a) is type(b) and a == b):
            return False
    parts = (
        "co_code",
        "co_exceptiontable",
        "co_names",
        "co_varnames",
        "co_freevars",
        "co_cellvars",
        "co_argcount",
        "co_flags",
    )
    return all(getattr(one, part) == getattr(other, part) for part in parts)


def _fill(table: dict[Any, Any], contents: dict[Any, Any]) -> None:
    table.clear()
    table.update(contents)
