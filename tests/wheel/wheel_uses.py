"""What our sources use of a library: names, attributes, calls. Each use that the library's text lacks is a problem."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wheel_library import Function, Library, Outside, Symbol, signature

# These hand on the elements of their first argument.
_SAME_ELEMENTS = {"sorted", "list", "tuple", "reversed", "set", "iter"}
_COLLECTIONS = {"list", "List", "Sequence", "Iterable", "Iterator", "tuple", "set"}


@dataclass(frozen=True)
class Kind:
    """What an expression is: a definition itself, an instance of a class, or a collection of such instances."""

    symbol: Symbol
    how: str = "itself"
    bound: bool = False


class Uses(ast.NodeVisitor):
    """Collects the problems of one module of ours.

    The kinds of expressions are guessed from imports, annotations and constructors. Where nothing is known, nothing is
    claimed. `checked` counts what was looked up, so that a scan that guesses nothing is noticed.
    """

    def __init__(self, library: Library, module: str, packages: tuple[str, ...]) -> None:
        """Scan the module; `packages` are the libraries whose uses count."""
        self.problems: list[str] = []
        self.checked = 0
        self._library, self._module, self._packages = library, module, packages
        self._known: dict[str, Kind] = {}
        self._class: Symbol | None = None
        self._attributes: dict[str, Kind] = {}
        tree = library.tree(module)
        assert tree is not None, module
        self.visit(tree)

    def _tell(self, node: ast.AST, text: str) -> None:
        self.problems.append(f"{self._module}:{getattr(node, 'lineno', 0)}: {text}")

    def _counts(self, symbol: Symbol) -> bool:
        """Whether the library has a part in the definition: it defines it, or a base of it."""
        if symbol.module.split(".")[0] in self._packages:
            return True
        if not isinstance(symbol.node, ast.ClassDef):
            return False
        lineage = self._library.lineage(symbol)
        return any(isinstance(each, Symbol) and each.module.split(".")[0] in self._packages for each in lineage)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] in self._packages:
                self.checked += 1
                if self._library.tree(alias.name) is None:
                    self._tell(node, f"no module {alias.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = self._library.source_of(self._module, node)
        if not self._library.knows(source):
            return
        for alias in node.names:
            found = self._library.find(source, alias.name)
            if source.split(".")[0] in self._packages:
                self.checked += 1
                if found is None:
                    self._tell(node, f"{source} has no {alias.name}")
            if isinstance(found, Symbol):
                self._known[alias.asname or alias.name] = self._kind_of_symbol(found)

    def _kind_of_symbol(self, symbol: Symbol) -> Kind:
        if isinstance(symbol.node, ast.AnnAssign):
            return self._annotated(symbol.module, symbol.node.annotation) or Kind(symbol)
        return Kind(symbol)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, attributes = self._class, self._attributes
        self._class, self._attributes = Symbol(self._module, node.name, node), {}
        if self._counts(self._class):
            self.checked += 1
            # Ours are dataclasses and engines that vLLM makes; each must be complete.
            if missing := self._library.abstract(self._class):
                self._tell(node, f"{node.name} does not define the abstract {', '.join(sorted(missing))}")
            for each in self._library.lineage(self._class):
                if isinstance(each, Outside) and not each.module:
                    self._tell(node, f"the base {each.name} of {node.name} was not found")
        for each in ast.walk(node):
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Attribute):
                target = each.targets[0]
                if ast.unparse(target.value) == "self" and (kind := self._quiet(each.value)):
                    self._attributes.setdefault(target.attr, kind)
        self.generic_visit(node)
        self._class, self._attributes = before, attributes

    def visit_FunctionDef(self, node: Function) -> None:
        before = dict(self._known)
        for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if each.annotation is not None and (kind := self._annotated(self._module, each.annotation)):
                self._known[each.arg] = kind
        if self._class is not None and node.args.args and node.args.args[0].arg == "self":
            self._known["self"] = Kind(self._class, "instance")
        self.generic_visit(node)
        self._known = before

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=False):
                    self._bind(one, self._quiet(value))
            else:
                self._bind(target, self._quiet(node.value))

    def _bind(self, target: ast.expr, kind: Kind | None) -> None:
        if isinstance(target, ast.Name):
            self._known.pop(target.id, None)
            if kind:
                self._known[target.id] = kind

    def visit_For(self, node: ast.For) -> None:
        self._bind_elements(node.target, node.iter)
        self.generic_visit(node)

    def _comprehension(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp) -> None:
        before = dict(self._known)
        for each in node.generators:
            self._bind_elements(each.target, each.iter)
        self.generic_visit(node)
        self._known = before

    visit_ListComp = visit_GeneratorExp = visit_SetComp = visit_DictComp = _comprehension

    def visit_Lambda(self, node: ast.Lambda) -> None:
        before = dict(self._known)
        for each in node.args.args:
            self._known.pop(each.arg, None)
        self.generic_visit(node)
        self._known = before

    def _bind_elements(self, target: ast.expr, iterable: ast.expr) -> None:
        if isinstance(iterable, ast.Call) and ast.unparse(iterable.func) == "zip" and isinstance(target, ast.Tuple):
            for one, each in zip(target.elts, iterable.args, strict=False):
                self._bind_elements(one, each)
            return
        kind = self._quiet(iterable)
        self._bind(target, Kind(kind.symbol, "instance") if kind and kind.how == "collection" else None)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        self._kind(node, tell=True)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) == "isinstance" and isinstance(node.args[0], ast.Name):
            kind = self._quiet(node.args[1])
            if kind and isinstance(kind.symbol.node, ast.ClassDef):
                self._known[node.args[0].id] = Kind(kind.symbol, "instance")
        self.generic_visit(node)
        kind = self._quiet(node.func)
        if kind is None or kind.how != "itself":
            return
        symbol, takes = kind.symbol, None
        if isinstance(symbol.node, ast.ClassDef) and self._counts(symbol):
            takes = self._library.call_of(symbol)
        elif isinstance(symbol.node, Function) and self._counts(symbol):
            takes = signature(symbol.node, bound=kind.bound)
        if takes is not None:
            self.checked += 1
            if problem := takes.problem(node):
                self._tell(node, f"{symbol.name} of {symbol.module} {problem}")

    def _quiet(self, node: ast.expr) -> Kind | None:
        return self._kind(node, tell=False)

    def _kind(self, node: ast.expr, *, tell: bool) -> Kind | None:
        if isinstance(node, ast.Name):
            if node.id in self._known:
                return self._known[node.id]
            found = self._library.find(self._module, node.id)
            return self._kind_of_symbol(found) if isinstance(found, Symbol) else None
        if isinstance(node, ast.Attribute):
            return self._attribute(node, tell)
        if isinstance(node, ast.Call):
            return self._result(node)
        if isinstance(node, ast.Subscript):
            kind = self._quiet(node.value)
            return Kind(kind.symbol, "instance") if kind and kind.how == "collection" else None
        return None

    def _attribute(self, node: ast.Attribute, tell: bool) -> Kind | None:
        owner = self._quiet(node.value)
        if owner is None or owner.how == "collection":
            return None
        symbol = owner.symbol
        if symbol.node is None:
            found = self._library.find(symbol.module, node.attr)
            if tell and symbol.module.split(".")[0] in self._packages:
                self.checked += 1
                if found is None:
                    self._tell(node, f"{symbol.module} has no {node.attr}")
            return self._kind_of_symbol(found) if isinstance(found, Symbol) else None
        if not isinstance(symbol.node, ast.ClassDef):
            return None
        if owner.how == "instance" and symbol == self._class and node.attr in self._attributes:
            return self._attributes[node.attr]
        member = self._library.member(symbol, node.attr)
        if tell and self._counts(symbol) and not node.attr.startswith("__"):
            self.checked += 1
            if member is None:
                self._tell(node, f"{symbol.name} of {symbol.module} has no {node.attr}")
        if not isinstance(member, tuple):
            return None
        where, defined = member
        if isinstance(defined, Function):
            marks = {ast.unparse(mark) for mark in defined.decorator_list}
            if marks & {"property", "cached_property", "functools.cached_property"}:
                return self._annotated(where.module, defined.returns) if defined.returns else None
            bound = "staticmethod" not in marks and (owner.how == "instance" or "classmethod" in marks)
            return Kind(Symbol(where.module, defined.name, defined), bound=bound)
        if isinstance(defined, ast.AnnAssign):
            return self._annotated(where.module, defined.annotation)
        if isinstance(defined, ast.Assign) and isinstance(defined.value, ast.Name):
            return self._given_to_init(where, defined.value.id)
        if isinstance(defined, ast.Assign) and isinstance(defined.value, ast.Call):
            made = self._library.expression(where.module, defined.value.func)
            if isinstance(made, Symbol) and isinstance(made.node, ast.ClassDef):
                return Kind(made, "instance")
        return None

    def _given_to_init(self, cls: Symbol, parameter: str) -> Kind | None:
        """What the annotation of a parameter of `__init__` promises, for `self.name = parameter`."""
        made = self._library.member(cls, "__init__")
        if not isinstance(made, tuple) or not isinstance(made[1], Function):
            return None
        arguments = made[1].args
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if each.arg == parameter and each.annotation is not None:
                return self._annotated(made[0].module, each.annotation)
        return None

    def _result(self, node: ast.Call) -> Kind | None:
        if isinstance(node.func, ast.Name) and node.func.id in _SAME_ELEMENTS and node.args:
            return self._quiet(node.args[0])
        kind = self._quiet(node.func)
        if kind is None or kind.how != "itself":
            return None
        if isinstance(kind.symbol.node, ast.ClassDef):
            return Kind(kind.symbol, "instance")
        if isinstance(kind.symbol.node, Function) and kind.symbol.node.returns is not None:
            return self._annotated(kind.symbol.module, kind.symbol.node.returns)
        return None

    def _annotated(self, module: str, node: ast.expr | None) -> Kind | None:
        """What an annotation promises; of a union, the part that is known."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self._annotated(module, ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            return self._annotated(module, node.left) or self._annotated(module, node.right)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in _COLLECTIONS:
            inner = self._annotated(module, node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice)
            return Kind(inner.symbol, "collection") if inner and inner.how == "instance" else None
        found = self._library.expression(module, node)
        if isinstance(found, Symbol) and isinstance(found.node, ast.ClassDef):
            return Kind(found, "instance")
        return None


def remote_calls(library: Library, module: str) -> Iterator[tuple[int, str, str]]:
    """(line, function, name) of each call by name in another process: `collective_rpc("load", ...)`."""
    tree = library.tree(module)
    assert tree is not None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = next(iter(node.args), None)
            if "collective_rpc" in node.func.attr or "call_utility" in node.func.attr:
                assert isinstance(first, ast.Constant) and isinstance(first.value, str), f"{module}:{node.lineno}"
                yield node.lineno, node.func.attr, first.value


def modules_below(root: Path, package: str) -> list[str]:
    """The modules of a package."""
    files = sorted((root / package).rglob("*.py"))
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]
