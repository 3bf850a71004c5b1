"""The part of the parser for functions and arguments: roots, bars, named functions, sums, integrals and limits."""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.nodes import Apply, Bound, Constant, Node, Number, Sequence, Symbol, Unreadable
from rewards.mathematics.reading.parse import FUNCTIONS, ExpressionParser, product

_INVERSES = {name: "arc" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}
# After the name of these functions, a bracket may be only a part of the argument.
_OPEN_ENDED = frozenset(("ln", "log", "lg"))


class FunctionParser(ExpressionParser):
    """Adds functions and their arguments to expressions."""

    def brackets(self) -> Node:
        """A group or a list in brackets. `AnswerParser` implements this."""
        raise NotImplementedError

    def braces(self) -> Node:
        """`{...}` where a value should be. `AnswerParser` implements this."""
        raise NotImplementedError

    def root(self, name: str) -> Node:
        r"""Read the root in `\sqrt{x}`, `\sqrt[n]{x}` or `\cbrt{x}`. The name is read already."""
        index: Node = Number(Fraction(3 if name == "cbrt" else 2))
        if self.take("["):
            index = self.expression()
            self.need("]")
        if self.peek() == "{":
            return Apply("root", (self.group(), index))
        return Apply("root", (self.primary(), index))

    def bars(self, closing: str) -> Node:
        """Read an absolute value up to its closing bar."""
        if closing == "|":
            self.at += 1
        self.bar_closes += 1
        value = self.expression()
        self.bar_closes -= 1
        self.need(closing)
        return Apply("abs", (value,))

    def function(self, name: str) -> Node:
        """Read a function with its base, its exponent and its arguments. The name is read already."""
        base: Node | None = None
        if self.take("_"):
            base = self.group() if self.peek() == "{" else self.primary()
        exponent: Node | None = None
        if self.peek() == "^" and not self.degree_follows():
            self.at += 1
            exponent = self.script()
        if exponent == Apply("neg", (Number(Fraction(1), 0),)) and name in _INVERSES:
            name, exponent = _INVERSES[name], None
        arguments = self._arguments(name)
        if name == "log":
            value = Apply("log", (arguments[0], base)) if base is not None else Apply("log", arguments)
        elif name == "lg":
            value = Apply("log", (arguments[0], Number(Fraction(10))))
        elif name == "exp":
            value = Apply("pow", (Constant("e"), arguments[0]))
        else:
            value = Apply(name, arguments)
        return value if exponent is None else Apply("pow", (value, exponent))

    def _arguments(self, function: str) -> tuple[Node, ...]:
        """The arguments of a function: in brackets, or the factors after its name up to the next function."""
        if self.peek() in ("(", "[", "{"):
            braced = self.peek() == "{"
            inner = self.braces() if braced else self.brackets()
            if isinstance(inner, Sequence):
                return items_of(inner)
            while self.peek() == "^":
                if self.degree_follows():
                    self.at += self.degree_follows()
                    inner = Apply("degree", (inner,))
                elif not braced and _closes(function, inner):
                    break
                else:
                    self.at += 1
                    inner = Apply("pow", (inner, self.script()))
            return (inner,)
        factors = [self.signed()]
        while True:
            token = self.tokens[self.at]
            name = token.text[1:] if token.kind == "command" else ""
            if self.peek() == "/" and self.tokens[self.at + 1].kind == "number":
                self.at += 1  # in \sin x/2 and \cos 2\pi/3, the whole fraction is the argument
                factors = [Apply("div", (product(factors), self.primary()))]
            elif name in FUNCTIONS or self.peek() in ("(", "|") or not self.starts_factor() or token.kind == "number":
                return (product(factors),)
            else:
                factors.append(self.power())

    def big(self, op: str) -> Node:
        """Read a sum, product, integral or limit and its bound variable, without evaluating it."""
        limits: dict[str, Node] = {}
        variable = ""
        while self.peek() in ("_", "^"):
            place = self.peek()
            self.at += 1
            braced = self.take("{")
            lower = self.expression() if braced else self.primary()
            if isinstance(lower, Symbol) and self.take("=", "\\to"):
                variable, lower = lower.name, self.expression()
            if braced:
                self.need("}")
            limits[place] = lower
        body = self.expression() if op == "int" else self.term()
        if op == "int":
            body, variable = _split_differential(body)
        if not variable:
            raise Unreadable(f"\\{op} without its variable")
        return Bound(op, variable, tuple(limits[key] for key in sorted(limits)), body)


def items_of(inner: Node) -> tuple[Node, ...]:
    """Return the arguments of a function. Raise `Unreadable` if there is none."""
    items = inner.items if isinstance(inner, Sequence) else (inner,)
    if not items:
        raise Unreadable("a function of nothing")
    return items


def _closes(function: str, inner: Node) -> bool:
    r"""Whether a power after a function's bracket applies to the value: `\cos(x)^2` is the square of the cosine.

    `\ln(x-1)^2` is read as the logarithm of a square. So after a logarithm, a bracket ends the function only if it
    contains a single number or symbol. Any other function ends with its bracket.
    """
    return function not in _OPEN_ENDED or isinstance(inner, (Number, Constant, Symbol))


def _split_differential(body: Node) -> tuple[Node, str]:
    r"""Split `x^2 dx` into `x^2` and `x`. The differential was read as the factors `d` and `x` of the product."""
    if isinstance(body, Apply) and body.op == "add":
        last, variable = _split_differential(body.args[-1])
        return Apply("add", (*body.args[:-1], last)), variable
    if isinstance(body, Apply) and body.op == "mul" and len(body.args) >= 2:
        *rest, differential, variable_node = body.args
        if differential == Symbol("d") and isinstance(variable_node, Symbol):
            return product(rest) if rest else Number(Fraction(1)), variable_node.name
    raise Unreadable("an integral without its differential")
