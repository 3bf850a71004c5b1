"""Packages as text: which names a module has, what a class holds, what a call takes. Nothing is imported.

So a wheel that cannot be imported here, such as vLLM's for GPUs, is read like an installed package.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Bases outside the packages may be imported to look at their attributes, if they are of these packages.
_IMPORTABLE = ("torch", "enum", "abc", "typing", "builtins", "msgspec")


@dataclass(frozen=True)
class Symbol:
    """A name that a module defines. `node` is its definition, or None for a module."""

    module: str
    name: str
    node: ast.AST | None = None


@dataclass(frozen=True)
class Outside:
    """A name that the packages import from elsewhere."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """What a call takes: names by position, names by keyword alone, names without default, `*` and `**`."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: frozenset[str]
    any_positional: bool = False
    any_keyword: bool = False

    def problem(self, call: ast.Call) -> str:
        """What is wrong with a call; empty if nothing is."""
        starred = any(isinstance(each, ast.Starred) for each in call.args)
        double = any(each.arg is None for each in call.keywords)
        given = {each.arg for each in call.keywords if each.arg is not None}
        unknown = given - self.keywords - set(self.positional)
        if unknown and not self.any_keyword:
            return f"has no parameter {', '.join(sorted(unknown))}"
        if len(call.args) - starred > len(self.positional) and not self.any_positional:
            return f"takes {len(self.positional)} arguments by position, got {len(call.args)}"
        missing = self.required - given - set(self.positional[: len(call.args)])
        if missing and not starred and not double:
            return f"needs {', '.join(sorted(missing))}"
        return ""


class Library:
    """Packages by name, each with its folder."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """Read nothing yet."""
        self._folders = dict(folders)

    @functools.cache  # noqa: B019 - it lives as long as the tests
    def tree(self, module: str) -> ast.Module | None:
        """The text of a module; None if there is none."""
        top, *rest = module.split(".")
        if top not in self._folders:
            return None
        path = self._folders[top].joinpath(*rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
        return None

    def knows(self, module: str) -> bool:
        """Whether the module's package is one of these."""
        return module.split(".")[0] in self._folders

    def _package(self, module: str) -> str:
        top, *rest = module.split(".")
        path = self._folders[top].joinpath(*rest)
        return module if (path / "__init__.py").is_file() else module.rpartition(".")[0]

    def source_of(self, module: str, node: ast.ImportFrom) -> str:
        """The full name of the module that an import names."""
        if not node.level:
            return node.module or ""
        package = self._package(module).split(".")
        return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])

    @functools.cache  # noqa: B019
    def names(self, module: str) -> dict[str, ast.AST]:
        """The names that a module binds, each with the statement that binds it."""
        tree = self.tree(module)
        bound: dict[str, ast.AST] = {}
        for node in _statements(tree.body if tree else []):
            if isinstance(node, (ast.ClassDef, *Function.__args__)):
                bound[node.name] = node
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    bound.setdefault(alias.asname or alias.name.split(".")[0], node)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                bound.setdefault(node.target.id, node)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        bound.setdefault(target.id, node)
                # vLLM's faces import lazily, from a table such as {"LLM": ".entrypoints.llm:LLM"}.
                if isinstance(node.value, ast.Dict):
                    for key, value in zip(node.value.keys, node.value.values, strict=True):
                        if (
                            isinstance(key, ast.Constant)
                            and isinstance(value, ast.Constant)
                            and ":" in str(value.value)
                        ):
                            source, _, attribute = str(value.value).lstrip(".").partition(":")
                            lazy = ast.ImportFrom(source, [ast.alias(attribute, str(key.value))], 1)
                            bound.setdefault(str(key.value), lazy)
        return bound

    def find(self, module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Symbol | Outside | None:
        """Follow a name through re-exports to its definition; None if it does not exist."""
        if (module, name) in seen or self.tree(module) is None:
            return None
        seen |= {(module, name)}
        node = self.names(module).get(name)
        if isinstance(node, ast.ImportFrom):
            source = self.source_of(module, node)
            original = next(each.name for each in node.names if name in (each.asname, each.name))
            if not self.knows(source):
                return Outside(source, original)
            return self.find(source, original, seen) or self._submodule(source, original)
        if isinstance(node, ast.Import):
            return Outside(name, "") if not self.knows(name) else Symbol(name, "")
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            return self.find(module, node.value.id, seen) or Symbol(module, name, node)
        if node is not None:
            return Symbol(module, name, node)
        for star in self.names(module).values():
            if isinstance(star, ast.ImportFrom) and star.names[0].name == "*":
                found = self.find(self.source_of(module, star), name, seen)
                if found:
                    return found
        return self._submodule(module, name)

    def _submodule(self, module: str, name: str) -> Symbol | None:
        full = f"{module}.{name}"
        return Symbol(full, "") if self.tree(full) is not None else None

    def expression(self, module: str, node: ast.expr | None) -> Symbol | Outside | None:
        """The definition that an expression such as `base.Worker` or `Engine[A, B]` names in a module."""
        if isinstance(node, ast.Subscript):
            return self.expression(module, node.value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.expression(module, ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.Name):
            found = self.find(module, node.id)
            return found or (Outside("builtins", node.id) if hasattr(builtins, node.id) else None)
        if isinstance(node, ast.Attribute):
            owner = self.expression(module, node.value)
            if isinstance(owner, Outside):
                return Outside(f"{owner.module}.{owner.name}".strip("."), node.attr)
            if isinstance(owner, Symbol) and owner.node is None:
                return self.find(owner.module, node.attr)
        return None

    def lineage(self, cls: Symbol) -> Iterator[Symbol | Outside]:
        """The class, then its bases, nearest first; a base that cannot be found is an `Outside`."""
        assert isinstance(cls.node, ast.ClassDef)
        yield cls
        for base in cls.node.bases:
            found = self.expression(cls.module, base)
            if isinstance(found, Symbol) and isinstance(found.node, ast.ClassDef):
                yield from self.lineage(found)
            else:
                yield found if isinstance(found, Outside) else Outside("", ast.unparse(base))

    def member(self, cls: Symbol, name: str) -> tuple[Symbol, ast.AST] | Outside | None:
        """Where a class or the nearest of its bases defines a member; None if nothing does."""
        for each in self.lineage(cls):
            if isinstance(each, Outside):
                if _has(each, name):
                    return each
            elif name in (members := _members(each.node)):
                return each, members[name]
        return None

    def abstract(self, cls: Symbol) -> set[str]:
        """Abstract methods that neither the class nor a base between them and the class defines."""
        states: dict[str, bool] = {}
        for each in self.lineage(cls):
            if isinstance(each, Symbol):
                for name, node in _members(each.node).items():
                    marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", [])]
                    states.setdefault(name, any("abstractmethod" in mark for mark in marks))
        return {name for name, is_abstract in states.items() if is_abstract}

    def call_of(self, cls: Symbol) -> Call | None:
        """What making an instance takes; None if that is not known from the text."""
        fields: dict[str, bool] = {}
        for each in self.lineage(cls):
            if isinstance(each, Outside):
                if each.name not in ("object", "Generic", "Struct", "ABC", "Protocol"):
                    return None
                continue
            assert isinstance(each.node, ast.ClassDef)
            made = _members(each.node).get("__init__")
            if isinstance(made, Function):
                return signature(made, bound=True)
            own = {
                node.target.id: node.value is None
                for node in each.node.body
                if isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and "ClassVar" not in ast.unparse(node.annotation)
                and not (node.value is not None and "init=False" in ast.unparse(node.value))
            }
            fields = own | fields
        return Call(tuple(fields), frozenset(fields), frozenset(name for name, needed in fields.items() if needed))

    def default(self, cls: Symbol, name: str) -> str:
        """A field's default, as text, followed through `Other.field`; empty if the field has none.

        Raises:
            KeyError: the class has no such field.
        """
        found = self.member(cls, name)
        if not isinstance(found, tuple):
            raise KeyError(f"{cls.name} has no {name}")
        owner, node = found
        value = node.value if isinstance(node, (ast.AnnAssign, ast.Assign)) else None
        if isinstance(value, ast.Attribute):
            source = self.expression(owner.module, value.value)
            if isinstance(source, Symbol) and isinstance(source.node, ast.ClassDef):
                return self.default(source, value.attr)
        if isinstance(value, ast.Call) and ast.unparse(value.func) in ("Field", "field"):
            value = next((each.value for each in value.keywords if each.arg == "default"), value)
        return ast.unparse(value) if value is not None else ""


def signature(node: Function, *, bound: bool) -> Call:
    """What a function takes; if `bound`, without its first parameter."""
    arguments = node.args
    positional = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    optional = set(positional[len(positional) - len(arguments.defaults) :] if arguments.defaults else [])
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    keywords = {each.arg: value is None for each, value in named}
    positional = positional[1:] if bound else positional
    required = {each for each in positional if each not in optional} | {name for name, need in keywords.items() if need}
    return Call(
        tuple(positional),
        frozenset(keywords),
        frozenset(required),
        arguments.vararg is not None,
        arguments.kwarg is not None,
    )


def default_of(node: Function, name: str) -> str:
    """A parameter's default, as text; empty if it has none."""
    positional = [*node.args.posonlyargs, *node.args.args]
    pairs = [*zip(reversed(positional), reversed(node.args.defaults), strict=False)]
    pairs += [(each, value) for each, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if value]
    return next((ast.unparse(value) for each, value in pairs if each.arg == name), "")


def _lazy_imports(table: ast.Dict) -> Iterator[tuple[str, ast.ImportFrom]]:
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and ":" in str(value.value):
            source, _, attribute = str(value.value).lstrip(".").partition(":")
            yield str(key.value), ast.ImportFrom(source, [ast.alias(attribute, str(key.value))], 1)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """A module's statements, also those in `if`, `try` and `with`."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _statements(node.body)
            yield from _statements([*getattr(node, "orelse", []), *getattr(node, "finalbody", [])])
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


@functools.cache
def _members(node: ast.ClassDef) -> dict[str, ast.AST]:
    """Methods, fields and attributes that a method sets, by name."""
    members: dict[str, ast.AST] = {}
    for each in _statements(node.body):
        if isinstance(each, (*Function.__args__, ast.ClassDef)):
            members.setdefault(each.name, each)
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            members[each.target.id] = each
        elif isinstance(each, ast.Assign):
            members |= {target.id: each for target in each.targets if isinstance(target, ast.Name)}
    for each in ast.walk(node):
        targets = (
            each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                members.setdefault(target.attr, each)
    return members


def _has(outside: Outside, name: str) -> bool:
    if outside.module.split(".")[0] not in _IMPORTABLE:
        return False
    owner: object = importlib.import_module(outside.module)
    return hasattr(getattr(owner, outside.name, None), name)
