"""A recursive-descent parser from an answer's tokens to typed nodes: sums, products and powers.

The parser only builds data and evaluates nothing. Depth and size are limited before any work is done, so the time is
linear in the answer's length. Each of these classes extends the class before it: `UnitParser` (parse_units),
`ExpressionParser` here, `FunctionParser` (parse_functions), `PrimaryParser` (parse_primary: numbers, names, macros),
`EnvironmentParser` (parse_environment) and `AnswerParser` (answer_parser: lists, relations and the other forms of a
whole answer).
"""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.nodes import Apply, Node, Number, Quantity, Symbol, Unreadable
from rewards.mathematics.reading.matrices import multiple, transposed
from rewards.mathematics.reading.parse_units import UnitParser
from rewards.mathematics.reading.tokens import Token
from rewards.mathematics.units import CURRENCY

_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"
)
GREEK = frozenset(_GREEK_NAMES.split())
_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth arcsinh arccosh "
    "arctanh arcsec arccsc log ln lg exp gcd lcm max min det"
)
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
CONSTANTS = {"pi": "pi", "infty": "infinity"}
FRACTIONS = frozenset(("frac", "dfrac", "tfrac", "cfrac"))
BINOMIALS = frozenset(("binom", "dbinom", "tbinom"))
NAMED = frozenset(
    (
        "mathbb", "overline", "overrightarrow", "vec", "hat", "widehat", "bar", "angle", "triangle", "mathfrak",
        "tilde", "widetilde", "dot", "ddot",
    )
)  # fmt: skip
BIG = frozenset(("sum", "prod", "int", "lim"))
_TIMES = frozenset(("*", "\\cdot", "\\times", "\\ast"))
_OVER = frozenset(("/", "\\div"))


class ExpressionParser(UnitParser):
    """Reads sums, products and powers. `AnswerParser` in `answer_parser` is the complete parser."""

    # The methods are in order of precedence. The first method reads the operators that bind least.

    def expression(self) -> Node:
        """Read a sum: terms between +, -, plus-minus and minus-plus."""
        self.deeper()
        value = self.term()
        parts = [value]
        while True:
            sign = self.peek()
            if sign == "+":
                self.at += 1
                parts.append(self.term())
            elif sign == "-":
                self.at += 1
                parts.append(Apply("neg", (self.term(),)))
            elif sign in ("\\pm", "\\mp"):
                self.at += 1
                both = Apply(sign[1:], (self.term(),))
                parts.append(both)
            else:
                break
        self.depth -= 1
        value = parts[0] if len(parts) == 1 else Apply("add", tuple(parts))
        # TeX's \over divides everything before it in the group by everything after it.
        return Apply("div", (value, self.expression())) if self.take("\\over") else value

    def term(self) -> Node:
        """Read a product: factors next to each other, or with a sign for times, division or mod between them."""
        value = self.signed()
        factors = [value]
        while True:
            sign = self.peek()
            if sign in _TIMES:
                self.at += 1
                factors.append(self.signed())
            elif sign in _OVER:
                self.at += 1
                factors = [Apply("div", (product(factors), self.signed()))]
            elif sign in ("\\bmod", "\\mod"):
                self.at += 1
                factors = [Apply("mod", (product(factors), self.signed()))]
            elif self.unit_follows():
                factors = [self.with_unit(product(factors))]
            elif self.currency_follows():
                factors = [Quantity(product(factors), CURRENCY[self.skip().text])]
            elif self.starts_factor():
                if self.tokens[self.at].kind == "number" and not self._may_precede_digits(factors[-1]):
                    raise Unreadable("two numerals next to each other")
                factors.append(self.power())
            else:
                return product(factors)

    def _may_precede_digits(self, before: Node) -> bool:
        """Whether a numeral may follow. After `)` or `}` it is a factor; after another numeral it is a mistake."""
        return self.tokens[self.at - 1].kind != "number" and not isinstance(before, Quantity)

    def signed(self) -> Node:
        """Read a factor with its leading signs."""
        negative = False
        while self.peek() in ("-", "+"):
            negative ^= self.peek() == "-"
            self.at += 1
        sign = self.peek()
        if sign in ("\\pm", "\\mp"):
            self.at += 1
            self.deeper()
            value: Node = Apply(sign[1:], (self.signed(),))
            self.depth -= 1
        else:
            value = self.power()
        return Apply("neg", (value,)) if negative else value

    def starts_factor(self) -> bool:
        """True when the next token can begin a factor that is multiplied without a sign."""
        token = self.tokens[self.at]
        if token.kind in ("number", "symbol"):
            return True
        if token.kind == "sign":
            return token.text in "({" or (token.text == "|" and not self.bar_closes)
        if token.kind != "command":
            return False
        name = token.text[1:]
        return (
            name in FUNCTIONS or name in GREEK or name in CONSTANTS or name in FRACTIONS or name in BINOMIALS
            or name in ("sqrt", "lvert", "lfloor", "lceil", "begin", "cbrt", "log") or name in BIG or name in NAMED
        )  # fmt: skip

    def power(self) -> Node:
        """Read a primary with its postfixes and its exponent."""
        value = self.postfixes(self.primary())
        while self.peek() in ("^", "**"):
            if self.degree_follows():
                self.at += self.degree_follows()
                value = self.postfixes(Apply("degree", (value,)))
                continue
            self.at += 1
            exponent = self.script()
            turned = transposed(value) if exponent == Symbol("T") else None
            value = turned if turned is not None else self.postfixes(Apply("pow", (value, exponent)))
        return value

    def postfixes(self, value: Node) -> Node:
        """Read the signs after `value`: factorial, percent and primes."""
        while True:
            if self.peek() == "!":
                double = self.tokens[self.at + 1].text == "!"
                self.at += 2 if double else 1
                if double and self.peek() == "!":
                    raise Unreadable("a triple factorial")
                value = Apply("double_factorial" if double else "factorial", (value,))
            elif self.peek() in ("%", "\\%"):
                if isinstance(value, Apply) and value.op == "percent":
                    raise Unreadable("two percent signs")
                self.at += 1
                value = Apply("percent", (value,))
            elif self.peek() == "'" and isinstance(value, Symbol):
                self.at += 1
                value = Symbol(value.name + "'")
            else:
                return value

    def script(self) -> Node:
        """An exponent: a group, or one signed token."""
        negative = False
        while self.take("-"):
            negative = not negative
        value = self.group() if self.peek() == "{" else self.primary()
        return Apply("neg", (value,)) if negative else value

    def group(self) -> Node:
        """`{...}` as an argument: one expression."""
        self.need("{")
        value = self.expression()
        if self.take("\\choose"):
            value = Apply("binom", (value, self.expression()))
        self.need("}")
        return value

    def argument(self) -> Node:
        """The argument of a macro: a group, or a single digit or letter, as in TeX."""
        if self.peek() == "{":
            return self.group()
        token = self.tokens[self.at]
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            # In \frac12, TeX takes only one digit as an argument and leaves the rest.
            rest = token.text[1:]
            self.tokens[self.at] = Token("number", rest, Fraction(int(rest)), 0)
            return Number(Fraction(int(token.text[0])), 0)
        return self.primary()

    def primary(self) -> Node:
        """A number, a variable, a bracket or a macro with its arguments."""
        raise NotImplementedError


def product(factors: list[Node]) -> Node:
    if len(factors) == 1:
        return factors[0]
    return multiple(factors) or Apply("mul", tuple(factors))
