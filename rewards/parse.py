"""A recursive-descent parser from an answer's tokens to typed nodes: expressions.

It builds data and evaluates nothing. Depth and size are bounded before any work is done, so that the time is linear
in the answer's length. Lists, relations and the other forms of a whole answer are in `rewards.parse_answer`.
"""

from __future__ import annotations

from fractions import Fraction

from rewards.latex_text import Token
from rewards.nodes import Apply, Bound, Constant, Matrix, Node, Number, Quantity, Sequence, Symbol, Unit, Unreadable
from rewards.units import CURRENCY, read_unit

# Nesting beyond this is no answer; each level costs about eight frames of Python's stack.
MAX_DEPTH = 32
MAX_CELLS = 400

_GREEK_NAMES = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
GREEK = frozenset(_GREEK_NAMES.split())
_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth log ln lg exp gcd lcm max min det"
)
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
_CONSTANTS = {"pi": "pi", "infty": "infinity"}
_FRACTIONS = frozenset(("frac", "dfrac", "tfrac", "cfrac"))
_BINOMIALS = frozenset(("binom", "dbinom", "tbinom"))
_TIMES = frozenset(("*", "\\cdot", "\\times", "\\ast"))
_OVER = frozenset(("/", "\\div"))
_CLOSERS = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle", "<": ">"}
_NAMED = frozenset(
    ("mathbb", "overline", "overrightarrow", "vec", "hat", "widehat", "bar", "angle", "triangle", "mathfrak")
)
_BIG = frozenset(("sum", "prod", "int", "lim"))
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "twelve": 12, "sixteen": 16}  # fmt: skip


class ExpressionParser:
    """Holds the tokens and the place in them; `rewards.parse_answer.AnswerParser` completes it."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0
        # Inside |...| or a set builder a bar closes; elsewhere it may open a factor.
        self.bar_closes = 0

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
        return parts[0] if len(parts) == 1 else Apply("add", tuple(parts))

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
                factors = [Apply("div", (_product(factors), self.signed()))]
            elif sign in ("\\bmod", "\\mod"):
                self.at += 1
                factors = [Apply("mod", (_product(factors), self.signed()))]
            elif self.unit_follows():
                factors = [self.with_unit(_product(factors))]
            elif self.starts_factor():
                if self.tokens[self.at].kind == "number" and not self._may_precede_digits(factors[-1]):
                    raise Unreadable("two numerals next to each other")
                factors.append(self.power())
            else:
                return _product(factors)

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
            value: Node = Apply(sign[1:], (self.signed(),))
        else:
            value = self.power()
        return Apply("neg", (value,)) if negative else value

    def starts_factor(self) -> bool:
        """True where the next token can begin a factor that is multiplied without a sign."""
        token = self.tokens[self.at]
        if token.kind in ("number", "symbol"):
            return True
        if token.kind == "sign":
            return token.text in "({" or (token.text == "|" and not self.bar_closes)
        if token.kind != "command":
            return False
        name = token.text[1:]
        return (
            name in FUNCTIONS or name in GREEK or name in _CONSTANTS or name in _FRACTIONS or name in _BINOMIALS
            or name in ("sqrt", "lvert", "lfloor", "lceil", "begin", "cbrt", "log") or name in _BIG or name in _NAMED
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
            value = self.postfixes(Apply("pow", (value, self.script())))
        return value

    def degree_follows(self) -> int:
        r"""How many tokens `^\circ` or `^{\circ}` takes here, 0 where there is none."""
        texts = [token.text for token in self.tokens[self.at : self.at + 4]]
        if texts[:2] == ["^", "\\circ"]:
            return 2
        return 4 if texts == ["^", "{", "\\circ", "}"] else 0

    def postfixes(self, value: Node) -> Node:
        """Factorial, percent and primes."""
        while True:
            if self.peek() == "!":
                if self.tokens[self.at + 1].text == "!":
                    raise Unreadable("a double factorial")
                self.at += 1
                value = Apply("factorial", (value,))
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
        if self.peek() == "{":
            return self.group()
        if self.take("-"):
            return Apply("neg", (self.script(),))
        return self.primary()

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

    # Primaries

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
            if token.text == "(":
                return self.brackets()
            if token.text == "[":
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
        value = Number(token.value, token.decimals)
        following = self.tokens[self.at]
        if following.kind == "command" and following.text[1:] in _FRACTIONS and token.text.isdigit():
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
        token = self.tokens[self.at]
        self.at += 1
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
        if name in "fgh" and self.peek() == "(":
            self.deeper()
            inner = self.brackets()
            self.depth -= 1
            return Apply("call " + name, inner.items if isinstance(inner, Sequence) else (inner,))
        return Symbol(name)

    def _subscript(self) -> str:
        """A subscript as text: it names, and is not worked out."""
        self.need("_")
        if not self.take("{"):
            self.at += 1
            return self.tokens[self.at - 1].text
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
        if name in _FRACTIONS:
            return Apply("div", (self.argument(), self.argument()))
        if name in _BINOMIALS:
            return Apply("binom", (self.argument(), self.argument()))
        if name in ("sqrt", "cbrt"):
            return self._root(name)
        if name in _CONSTANTS:
            return Constant(_CONSTANTS[name])
        if name in FUNCTIONS:
            return self._function(name)
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
            return self._environment()
        if name in _BIG:
            return self._big(name)
        if name in _NAMED:
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
        return Symbol(f"\\{macro} {name}")

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
        arguments = self._arguments()
        if name == "log":
            value = Apply("log", (arguments[0], base)) if base is not None else Apply("log", arguments)
        elif name == "lg":
            value = Apply("log", (arguments[0], Number(Fraction(10))))
        elif name == "exp":
            value = Apply("pow", (Constant("e"), arguments[0]))
        else:
            value = Apply(name, arguments)
        return value if exponent is None else Apply("pow", (value, exponent))

    def _arguments(self) -> tuple[Node, ...]:
        """A function's arguments: in brackets, or the factors that stand next to it up to the next function."""
        if self.peek() in ("(", "{"):
            inner = self.braces() if self.peek() == "{" else self.brackets()
            if isinstance(inner, Sequence):
                return inner.items
            while self.peek() in ("!", "^") and self.peek() == "^":
                if self.degree_follows():
                    self.at += self.degree_follows()
                    inner = Apply("degree", (inner,))
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
                factors = [Apply("div", (_product(factors), self.primary()))]
            elif name in FUNCTIONS or self.peek() in ("(", "|") or not self.starts_factor() or token.kind == "number":
                return (_product(factors),)
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

    def _environment(self) -> Node:
        self.need("{")
        kind = ""
        while not self.take("}"):
            if self.tokens[self.at].kind == "end":
                raise Unreadable("\\begin without a name")
            kind += self.tokens[self.at].text
            self.at += 1
        if kind == "array" and self.take("{"):
            while not self.take("}"):
                self.at += 1
                if self.tokens[self.at].kind == "end":
                    raise Unreadable("an array without its columns")
        rows: list[list[Node]] = [[]]
        cells = 0
        while not self.take("\\end"):
            if self.peek().startswith("\\\\"):
                self.at += 1
                rows.append([])
            elif not self.take("&", "\\hline"):
                rows[-1].append(self.cell())
                cells += 1
                if cells > MAX_CELLS:
                    raise Unreadable(f"a matrix of more than {MAX_CELLS} entries")
        while not self.take("}"):
            self.at += 1
            if self.tokens[self.at].kind == "end":
                raise Unreadable("\\end without a name")
        filled = [tuple(row) for row in rows if row]
        if kind in ("cases", "aligned", "align", "gathered"):
            return Sequence("", tuple(cell for row in filled for cell in row), "and")
        if not filled or any(len(row) != len(filled[0]) for row in filled):
            raise Unreadable("matrix rows of different lengths")
        return Matrix("det" if kind in ("vmatrix", "Vmatrix") else "matrix", tuple(filled))

    def cell(self) -> Node:
        """One entry of a matrix."""
        return self.expression()

    # Units

    def unit_follows(self) -> bool:
        """True where the next token is a unit's word."""
        token = self.tokens[self.at]
        if token.kind == "unit":
            return True
        return token.kind == "text" and self.joins(token) is None and read_unit(_singleton(token.text)) is not None

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
        if plain in ("percent", "per cent"):
            return Apply("percent", (value,))
        unit = read_unit(_singleton(written))
        if unit is None or isinstance(value, Quantity):
            raise Unreadable(f"{written.strip()[:30]!r} is no unit")
        return Quantity(value, unit)


def _singleton(text: str) -> str:
    return text.replace("\\", "").strip().strip(".")


def based(digits: str, base: int) -> Node:
    """A numeral in a base from 2 to 36; `Unreadable` where a digit does not belong to it."""
    if not 2 <= base <= 36:
        raise Unreadable(f"base {base}")
    try:
        value = int(digits.replace(",", ""), base)
    except ValueError:
        raise Unreadable(f"{digits[:20]!r} is no numeral of base {base}") from None
    return Number(Fraction(value), None, Fraction(int(digits)) if digits.isdigit() else None)


def _product(factors: list[Node]) -> Node:
    return factors[0] if len(factors) == 1 else Apply("mul", tuple(factors))


def _split_differential(body: Node) -> tuple[Node, str]:
    r"""`x^2 dx` -> (`x^2`, `x`): the differential is read as a product of `d` and `x`, and undone here."""
    if isinstance(body, Apply) and body.op == "add":
        last, variable = _split_differential(body.args[-1])
        return Apply("add", (*body.args[:-1], last)), variable
    if isinstance(body, Apply) and body.op == "mul" and len(body.args) >= 2:
        *rest, differential, variable_node = body.args
        if differential == Symbol("d") and isinstance(variable_node, Symbol):
            return _product(rest) if rest else Number(Fraction(1)), variable_node.name
    raise Unreadable("an integral without its differential")


__all__ = ["ExpressionParser", "Unit", "based"]
