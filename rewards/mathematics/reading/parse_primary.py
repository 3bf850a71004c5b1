"""The part of the parser for primaries: numbers, mixed numbers, variables, and LaTeX macros with their arguments."""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.nodes import Apply, Constant, Node, Number, Quantity, Sequence, Symbol, Unreadable
from rewards.mathematics.reading.parse import BIG, BINOMIALS, CONSTANTS, FRACTIONS, FUNCTIONS, GREEK, NAMED
from rewards.mathematics.reading.parse_functions import FunctionParser, items_of
from rewards.mathematics.reading.tokens import Token
from rewards.mathematics.units import CURRENCY

# For each of these marks over a letter: the mark with the same meaning that replaces it.
_SAME_MARKS = {"bar": "overline", "overrightarrow": "vec", "widehat": "hat", "widetilde": "tilde"}
_SPECIAL = frozenset(("Gamma", "zeta"))
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16}  # fmt: skip


class PrimaryParser(FunctionParser):
    """Adds numbers, names and macros, the parts of an expression."""

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
                return self.bars("|")
            if token.text in CURRENCY:
                self.at += 1
                return Quantity(self.signed(), CURRENCY[token.text])
            raise Unreadable(f"{token.text[:20] or 'the end'!r} where a value should be")
        finally:
            self.depth -= 1

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
            # "2 1/2" is a mixed number only if it has this space, and if its parts consist of digits.
            slash, below = (
                self.tokens[self.at + 1 : self.at + 3] if len(self.tokens) > self.at + 2 else (following,) * 2
            )
            if slash.text == "/" and below.kind == "number" and below.text.isdigit() and below.value:
                assert following.value is not None
                self.at += 3
                return Number(token.value + following.value / below.value)
        return value

    def _mixed(self, whole: Number) -> Node:
        r"""Read `2\frac{1}{2}` as two and a half if both parts of the fraction are numerals, else as a product."""
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
        """Read `f(x)` or `f''(x)`. If no bracket follows, f is a variable."""
        start = self.at
        while self.take("'"):
            name += "'"
        if self.peek() != "(":
            self.at = start
            return Symbol(name[0])
        self.deeper()
        inner = self.brackets()
        self.depth -= 1
        return Apply("call " + name, items_of(inner))

    def _choice(self) -> Node:
        """Read `C(10,3)`, the number of choices. If the bracket has a single expression, C is a variable."""
        start = self.at
        self.deeper()
        inner = self.brackets()
        self.depth -= 1
        if isinstance(inner, Sequence) and inner.brackets == "()" and len(inner.items) == 2:
            return Apply("binom", inner.items)
        self.at = start
        return Symbol("C")

    def _subscript(self) -> str:
        """Read a subscript as text. It is part of a name and is not evaluated."""
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
            return self.root(name)
        if name in CONSTANTS:
            return Constant(CONSTANTS[name])
        if name in FUNCTIONS:
            return self.function(name)
        if name in _SPECIAL and self.peek() == "(":
            return Apply(name.lower(), items_of(self.brackets()))
        if name in GREEK:
            return Symbol("\\" + name + ("_" + self._subscript() if self.peek() == "_" else ""))
        if name in ("lfloor", "lceil"):
            value = self.expression()
            self.need("\\r" + name[1:])
            return Apply("floor" if name == "lfloor" else "ceiling", (value,))
        if name in ("lvert", "vert"):
            return self.bars("\\rvert" if name == "lvert" else "\\vert")
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
            return self.big(name)
        if name in NAMED:
            return self._name(name)
        raise Unreadable(f"{command[:20]!r} is not understood")

    def _name(self, macro: str) -> Node:
        r"""Read the letters after the macro as a name: `\overline{AB}`, `\angle ABC`, `\mathbb{R}`."""
        if self.peek() == "{":
            self.at += 1
            name = ""
            while not self.take("}"):
                if self.tokens[self.at].kind not in ("symbol", "text"):
                    raise Unreadable(f"\\{macro} over something that is not a name")
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

    def environment(self) -> Node:
        r"""The environment that `\begin{` opens. `EnvironmentParser` implements this."""
        raise NotImplementedError


def _scientific(text: str) -> Node:
    """Read `4.5e33` as its digits times a power of ten, because the digits show the precision."""
    digits, _, exponent = text.replace(",", "").replace(" ", "").lower().partition("e")
    power = Apply("pow", (Number(Fraction(10), 0), Number(Fraction(int(exponent)), 0)))
    return Apply("mul", (Number(Fraction(digits), len(digits.partition(".")[2])), power))


def based(digits: str, base: int) -> Node:
    """Read a numeral in a base from 2 to 36. Raise `Unreadable` if a digit is not below the base."""
    if not 2 <= base <= 36:
        raise Unreadable(f"base {base}")
    try:
        value = int(digits.replace(",", ""), base)
    except ValueError:
        raise Unreadable(f"{digits[:20]!r} is not a numeral of base {base}") from None
    return Number(Fraction(value), None, Fraction(int(digits)) if digits.isdigit() else None)
