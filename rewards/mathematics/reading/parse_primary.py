"""The parser's primaries: numbers and mixed numbers, variables, and the LaTeX macros with their arguments."""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.nodes import Apply, Bound, Constant, Node, Number, Quantity, Sequence, Symbol, Unreadable
from rewards.mathematics.reading.latex_text import Token
from rewards.mathematics.reading.parse import (
    BIG,
    BINOMIALS,
    CONSTANTS,
    FRACTIONS,
    FUNCTIONS,
    GREEK,
    NAMED,
    ExpressionParser,
    product,
)
from rewards.mathematics.units import CURRENCY

_INVERSES = {name: "arc" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}
# Marks over a letter that people use for the same thing.
_SAME_MARKS = {"bar": "overline", "overrightarrow": "vec", "widehat": "hat", "widetilde": "tilde"}
_SPECIAL = frozenset(("Gamma", "zeta"))
# Functions whose bracket may be part of the argument alone.
_OPEN_ENDED = frozenset(("ln", "log", "lg"))
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16}  # fmt: skip


class PrimaryParser(ExpressionParser):
    """Adds what an expression is made of to how it is put together."""

    def primary(self) -> Node:
        """A number, a variable, a bracket or a macro with its arguments."""
        token = self.tokens[self.at]
        if token.kind == "number":
            self.at += 1
            return self._number(token)
        if token.kind == "symbol":
            self.at += 1
            return self._symbol(token.text)
        self.deeper()
        try:
            if token.kind == "command":
                return self._command(token.text[1:])
            if token.text in ("(", "["):
                return self.brackets()
            if token.text == "{":
                return self.braces()
            if token.text == "|":
                return self._bars("|")
            if token.text in CURRENCY:
                self.at += 1
                return Quantity(self.signed(), CURRENCY[token.text])
            raise Unreadable(f"{token.text[:20] or 'the end'!r} where a value should be")
        finally:
            self.depth -= 1

    def brackets(self) -> Node:
        """Parentheses and the like; lists in them are the answer parser's."""
        raise NotImplementedError

    def braces(self) -> Node:
        """`{...}` where a value should be."""
        raise NotImplementedError

    def _number(self, token: Token) -> Node:
        assert token.value is not None
        if self.peek() == "_":
            return self._in_base(token.text)
        if token.decimals is None and "\\" not in token.text and "e" in token.text.lower():
            return _scientific(token.text)
        value = Number(token.value, token.decimals)
        following = self.tokens[self.at]
        if following.kind == "command" and following.text[1:] in FRACTIONS and token.text.isdigit():
            return self._mixed(value)
        if following.kind == "number" and following.spaced and token.text.isdigit() and following.text.isdigit():
            # "2 1/2": only digits, only with the space.
            slash, below = (
                self.tokens[self.at + 1 : self.at + 3] if len(self.tokens) > self.at + 2 else (following,) * 2
            )
            if slash.text == "/" and below.kind == "number" and below.text.isdigit() and below.value:
                assert following.value is not None
                self.at += 3
                return Number(token.value + following.value / below.value)
        return value

    def _mixed(self, whole: Number) -> Node:
        r"""`2\frac{1}{2}` is two and a half where both are numerals, a product otherwise."""
        start = self.at
        self.at += 1
        above, below = self.argument(), self.argument()
        plain = isinstance(above, Number) and isinstance(below, Number) and below.value != 0
        if plain and self.tokens[start - 1].kind == "number":
            assert isinstance(above, Number) and isinstance(below, Number)
            return Number(whole.value + above.value / below.value)
        return Apply("mul", (whole, Apply("div", (above, below))))

    def _in_base(self, digits: str) -> Node:
        self.need("_")
        closing = self.take("{")
        token = self.skip()
        base = _BASES.get(token.text.strip().lower()) or (int(token.value) if token.value is not None else 0)
        if closing:
            self.need("}")
        return based(digits, base)

    def _symbol(self, name: str) -> Node:
        if self.peek() == "_" and name not in ("d",):
            return Symbol(name + "_" + self._subscript())
        if name == "i":
            return Constant("i")
        if name == "e":
            return Constant("e")
        if name == "C" and self.peek() == "(":
            return self._choice()
        if name in "fgh":
            return self._called(name)
        return Symbol(name)

    def _called(self, name: str) -> Node:
        """`f(x)` and `f''(x)`; without a bracket f is a variable."""
        start = self.at
        while self.take("'"):
            name += "'"
        if self.peek() != "(":
            self.at = start
            return Symbol(name[0])
        self.deeper()
        inner = self.brackets()
        self.depth -= 1
        return Apply("call " + name, _items(inner))

    def _choice(self) -> Node:
        """`C(10,3)`, the number of choices; with one expression in the brackets C is a variable."""
        start = self.at
        self.deeper()
        inner = self.brackets()
        self.depth -= 1
        if isinstance(inner, Sequence) and inner.brackets == "()" and len(inner.items) == 2:
            return Apply("binom", inner.items)
        self.at = start
        return Symbol("C")

    def _subscript(self) -> str:
        """A subscript as text: it names, and is not worked out."""
        self.need("_")
        if not self.take("{"):
            return self.skip().text
        pieces = []
        while not self.take("}"):
            if self.tokens[self.at].kind == "end" or self.peek() == "{":
                raise Unreadable("a subscript that does not end")
            pieces.append(self.tokens[self.at].text)
            self.at += 1
        return "".join(pieces)

    def _command(self, name: str) -> Node:
        command = "\\" + name
        self.at += 1
        if name in FRACTIONS:
            return Apply("div", (self.argument(), self.argument()))
        if name in BINOMIALS:
            return Apply("binom", (self.argument(), self.argument()))
        if name in ("sqrt", "cbrt"):
            return self._root(name)
        if name in CONSTANTS:
            return Constant(CONSTANTS[name])
        if name in FUNCTIONS:
            return self._function(name)
        if name in _SPECIAL and self.peek() == "(":
            return Apply(name.lower(), _items(self.brackets()))
        if name in GREEK:
            return Symbol("\\" + name + ("_" + self._subscript() if self.peek() == "_" else ""))
        if name in ("lfloor", "lceil"):
            value = self.expression()
            self.need("\\r" + name[1:])
            return Apply("floor" if name == "lfloor" else "ceiling", (value,))
        if name in ("lvert", "vert"):
            return self._bars("\\rvert" if name == "lvert" else "\\vert")
        if command in CURRENCY:
            return Quantity(self.signed(), CURRENCY[command])
        if name in ("emptyset", "varnothing"):
            return Sequence("{}", ())
        if name in ("{", "langle"):
            self.at -= 1
            return self.brackets()
        if name == "begin":
            return self.environment()
        if name in BIG:
            return self._big(name)
        if name in NAMED:
            return self._name(name)
        raise Unreadable(f"{command[:20]!r} is not understood")

    def _name(self, macro: str) -> Node:
        r"""`\overline{AB}`, `\angle ABC`, `\mathbb{R}`: a name made of what follows."""
        if self.peek() == "{":
            self.at += 1
            name = ""
            while not self.take("}"):
                if self.tokens[self.at].kind not in ("symbol", "text"):
                    raise Unreadable(f"\\{macro} over something that is no name")
                name += self.tokens[self.at].text
                self.at += 1
        else:
            name = ""
            while self.tokens[self.at].kind == "symbol":
                name += self.tokens[self.at].text
                self.at += 1
        if macro == "mathbb" and name == "R":
            return Sequence("()", (Apply("neg", (Constant("infinity"),)), Constant("infinity")))
        below = "_" + self._subscript() if self.peek() == "_" and macro != "mathbb" else ""
        return Symbol(f"\\{_SAME_MARKS.get(macro, macro)} {name}{below}")

    def _root(self, name: str) -> Node:
        index: Node = Number(Fraction(3 if name == "cbrt" else 2))
        if self.take("["):
            index = self.expression()
            self.need("]")
        if self.peek() == "{":
            return Apply("root", (self.group(), index))
        return Apply("root", (self.primary(), index))

    def _bars(self, closing: str) -> Node:
        if closing == "|":
            self.at += 1
        self.bar_closes += 1
        value = self.expression()
        self.bar_closes -= 1
        self.need(closing)
        return Apply("abs", (value,))

    def _function(self, name: str) -> Node:
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
        """A function's arguments: in brackets, or the factors that stand next to it up to the next function."""
        if self.peek() in ("(", "[", "{"):
            braced = self.peek() == "{"
            inner = self.braces() if braced else self.brackets()
            if isinstance(inner, Sequence):
                return _items(inner)
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
                self.at += 1  # \sin x/2 and \cos 2\pi/3 mean the whole
                factors = [Apply("div", (product(factors), self.primary()))]
            elif name in FUNCTIONS or self.peek() in ("(", "|") or not self.starts_factor() or token.kind == "number":
                return (product(factors),)
            else:
                factors.append(self.power())

    def _big(self, op: str) -> Node:
        """A sum, product, integral or limit, kept as it is written with its bound variable named."""
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

    def environment(self) -> Node:
        r"""What `\begin{` opens."""
        raise NotImplementedError


def _items(inner: Node) -> tuple[Node, ...]:
    """A function's arguments, of which there must be one."""
    items = inner.items if isinstance(inner, Sequence) else (inner,)
    if not items:
        raise Unreadable("a function of nothing")
    return items


def _closes(function: str, inner: Node) -> bool:
    r"""Whether a power behind a function's bracket is the value's: `\cos(x)^2` is the square of the cosine.

    `\ln(x-1)^2` is written for the logarithm of a square as well, and stays that: only a bracket around one number or
    symbol says that the function ends there. Trigonometric and exponential functions end with any bracket.
    """
    return function not in _OPEN_ENDED or isinstance(inner, (Number, Constant, Symbol))


def _scientific(text: str) -> Node:
    """`4.5e33` as its digits times a power of ten, for the digits say how precise it is."""
    digits, _, exponent = text.replace(",", "").replace(" ", "").lower().partition("e")
    power = Apply("pow", (Number(Fraction(10), 0), Number(Fraction(int(exponent)), 0)))
    return Apply("mul", (Number(Fraction(digits), len(digits.partition(".")[2])), power))


def based(digits: str, base: int) -> Node:
    """A numeral in a base from 2 to 36; `Unreadable` where a digit does not belong to it."""
    if not 2 <= base <= 36:
        raise Unreadable(f"base {base}")
    try:
        value = int(digits.replace(",", ""), base)
    except ValueError:
        raise Unreadable(f"{digits[:20]!r} is no numeral of base {base}") from None
    return Number(Fraction(value), None, Fraction(int(digits)) if digits.isdigit() else None)


def _split_differential(body: Node) -> tuple[Node, str]:
    r"""`x^2 dx` -> (`x^2`, `x`): the differential is read as a product of `d` and `x`, and undone here."""
    if isinstance(body, Apply) and body.op == "add":
        last, variable = _split_differential(body.args[-1])
        return Apply("add", (*body.args[:-1], last)), variable
    if isinstance(body, Apply) and body.op == "mul" and len(body.args) >= 2:
        *rest, differential, variable_node = body.args
        if differential == Symbol("d") and isinstance(variable_node, Symbol):
            return product(rest) if rest else Number(Fraction(1)), variable_node.name
    raise Unreadable("an integral without its differential")
