"""A recursive-descent parser from an answer's tokens to typed nodes: sums, products, powers and units.

It builds data and evaluates nothing. Depth and size are bounded before any work is done, so that the time is linear
in the answer's length. `rewards.mathematics.reading.parse_primary` adds numbers, brackets and macros,
`rewards.mathematics.reading.parse_answer` lists, relations and the other forms of a whole answer.
"""

from __future__ import annotations

from fractions import Fraction

from rewards.mathematics.nodes import Apply, Node, Number, Quantity, Symbol, Unreadable
from rewards.mathematics.reading.latex_text import Token
from rewards.mathematics.reading.matrices import multiple, transposed
from rewards.mathematics.units import CURRENCY, read_unit

# Nesting beyond this is no answer; each level costs about eight frames of Python's stack.
MAX_DEPTH = 32
MAX_PARTS = 20

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


class ExpressionParser:
    """Holds the tokens and the place in them; `rewards.mathematics.reading.parse_answer.AnswerParser` completes it."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0
        # Inside |...| or a set builder a bar closes; elsewhere it may open a factor.
        self.bar_closes = 0
        # Of one quantity, such as 1 hour 30 minutes 5 seconds.
        self.parts = 0

    # Looking at tokens

    def peek(self) -> str:
        """The next token's text, for signs and commands; a name in brackets for the other kinds."""
        token = self.tokens[self.at]
        return token.text if token.kind in ("sign", "command") else f"<{token.kind}>"

    def take(self, *wanted: str) -> bool:
        """Step over the next token where it is one of these."""
        if self.peek() in wanted:
            self.at += 1
            return True
        return False

    def need(self, wanted: str) -> None:
        """Step over the next token, which must be this one."""
        if not self.take(wanted):
            raise Unreadable(f"expected {wanted!r}, found {self.tokens[self.at].text[:20]!r}")

    def skip(self) -> Token:
        """Step over the next token, which must not be the end, and return it."""
        token = self.tokens[self.at]
        if token.kind == "end":
            raise Unreadable("the answer breaks off")
        self.at += 1
        return token

    def deeper(self) -> None:
        """Count one level of nesting."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable(f"nested more than {MAX_DEPTH} deep")

    # Expressions, from the loosest binding to the tightest

    def expression(self) -> Node:
        """A sum: terms between +, -, plus-minus and minus-plus."""
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
        # TeX's own fraction takes all of its group.
        return Apply("div", (value, self.expression())) if self.take("\\over") else value

    def term(self) -> Node:
        """A product: factors next to each other or between times, over and mod."""
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
        """A numeral after `)` or `}` is a factor; after another numeral it is a slip of the pen."""
        return self.tokens[self.at - 1].kind != "number" and not isinstance(before, Quantity)

    def signed(self) -> Node:
        """A factor with its leading signs."""
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
        """A primary with its postfixes and its exponent."""
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

    def degree_follows(self) -> int:
        r"""How many tokens `^\circ` or `^{\circ}` takes here, 0 when there is none."""
        texts = [token.text for token in self.tokens[self.at : self.at + 4]]
        if texts[:2] == ["^", "\\circ"]:
            return 2
        return 4 if texts == ["^", "{", "\\circ", "}"] else 0

    def postfixes(self, value: Node) -> Node:
        """Factorial, percent and primes."""
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
        """What stands in an exponent: a group, or one signed token."""
        negative = False
        while self.take("-"):
            negative = not negative
        value = self.group() if self.peek() == "{" else self.primary()
        return Apply("neg", (value,)) if negative else value

    def group(self) -> Node:
        """`{...}` in an argument's place: one expression."""
        self.need("{")
        value = self.expression()
        if self.take("\\choose"):
            value = Apply("binom", (value, self.expression()))
        self.need("}")
        return value

    def argument(self) -> Node:
        """A macro's argument: a group, or a single digit or letter, as TeX takes it."""
        if self.peek() == "{":
            return self.group()
        token = self.tokens[self.at]
        if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            # \frac12: TeX takes one digit and leaves the rest.
            rest = token.text[1:]
            self.tokens[self.at] = Token("number", rest, Fraction(int(rest)), 0)
            return Number(Fraction(int(token.text[0])), 0)
        return self.primary()

    def primary(self) -> Node:
        """A number, a variable, a bracket or a macro with its arguments."""
        raise NotImplementedError

    # Units

    def unit_follows(self) -> bool:
        """True when the next token is a unit's word."""
        token = self.tokens[self.at]
        if token.kind == "unit":
            return True
        return token.kind == "text" and self.joins(token) is None and read_unit(_singleton(token.text)) is not None

    def currency_follows(self) -> bool:
        """True when the sign of a currency stands behind its amount."""
        following = self.tokens[self.at + 1].kind if self.peek() in CURRENCY else ""
        return following in ("end", "text", "join") or (following == "sign" and self.tokens[self.at + 1].text in ",;")

    def joins(self, token: Token) -> str | None:
        """`or`, `and` or `,` where a text token only connects."""
        words = token.text.strip().strip(",").strip().lower()
        return words if words in ("or", "and") else None

    def with_unit(self, value: Node) -> Node:
        """`value` with the unit words that follow it."""
        written = ""
        while True:
            token = self.tokens[self.at]
            if token.kind in ("unit", "text") and self.joins(token) is None:
                written += " " + token.text
            elif written and token.text == "/" and self.tokens[self.at + 1].kind in ("unit", "text", "symbol"):
                written += "/" + self.tokens[self.at + 1].text
                self.at += 1
            elif written and token.text == "^" and not self.degree_follows():
                self.at += 1
                power = self.script()
                sign = "-" if isinstance(power, Apply) and power.op == "neg" else ""
                number = power.args[0] if isinstance(power, Apply) and power.op == "neg" else power
                if not isinstance(number, Number):
                    raise Unreadable("a unit with a power that is no number")
                written += f"^{sign}{number.value}"
                continue
            else:
                break
            self.at += 1
        plain = written.strip().strip(".").lower()
        if plain in ("degrees", "degree"):
            return Apply("degree", (value,))
        if plain in ("percent", "per cent", "pct", "percentage"):
            return Apply("percent", (value,))
        unit = read_unit(_singleton(written))
        if unit is None or isinstance(value, Quantity):
            raise Unreadable(f"{written.strip()[:30]!r} is no unit")
        return self._with_smaller(Quantity(value, unit))

    def _with_smaller(self, whole: Quantity) -> Quantity:
        """`2 hours 30 minutes`, `5 feet and 3 inches`: a quantity with less than one of its unit in a smaller one."""
        start = self.at
        if self.parts > MAX_PARTS:
            return whole
        self.parts += 1
        if self.tokens[self.at].kind in ("join", "text") and self.joins(self.tokens[self.at]) == "and":
            self.at += 1
        number = self.tokens[self.at]
        if isinstance(whole.value, Number) and number.kind == "number" and number.value is not None:
            self.at += 1
            part = self._measured(Number(number.value, number.decimals))
            if part is not None and isinstance(part.value, Number):
                share = part.value.value * part.unit.factor / whole.unit.factor
                if part.unit.dimensions == whole.unit.dimensions and part.unit != whole.unit and 0 <= share < 1:
                    return Quantity(Number(whole.value.value + share), whole.unit)
        self.at = start
        return whole

    def _measured(self, value: Number) -> Quantity | None:
        """`value` with the unit that follows it; None when none does."""
        try:
            found = self.with_unit(value) if self.unit_follows() else None
        except Unreadable:
            return None
        return found if isinstance(found, Quantity) else None


def _singleton(text: str) -> str:
    return text.replace("\\", "").strip().strip(".")


def product(factors: list[Node]) -> Node:
    if len(factors) == 1:
        return factors[0]
    return multiple(factors) or Apply("mul", tuple(factors))
