"""The part of the parser that keeps the position in the tokens, and reads the units after a value."""

from __future__ import annotations

from rewards.mathematics.nodes import Apply, Node, Number, Quantity, Unreadable
from rewards.mathematics.reading.tokens import Token
from rewards.mathematics.units import CURRENCY, read_unit

# An answer that a person writes is not nested deeper than this. Each level needs about eight frames of Python's stack.
MAX_DEPTH = 32
MAX_PARTS = 20


class UnitParser:
    """Keeps the tokens and the position in the tokens, and reads units."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0
        # Above 0 inside |...| and set builders. There a bar is a closing bar; elsewhere a bar may open a factor.
        self.bar_closes = 0
        # Number of parts that have been read of a quantity such as 1 hour 30 minutes 5 seconds.
        self.parts = 0

    def peek(self) -> str:
        """The text of the next token if it is a sign or a command, else its kind in brackets."""
        token = self.tokens[self.at]
        return token.text if token.kind in ("sign", "command") else f"<{token.kind}>"

    def take(self, *wanted: str) -> bool:
        """Step over the next token if it is one of `wanted`; return whether it was."""
        if self.peek() in wanted:
            self.at += 1
            return True
        return False

    def need(self, wanted: str) -> None:
        """Step over the next token, which must be `wanted`."""
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

    def degree_follows(self) -> int:
        r"""If `^\circ` or `^{\circ}` follows, return its number of tokens; else return 0."""
        texts = [token.text for token in self.tokens[self.at : self.at + 4]]
        if texts[:2] == ["^", "\\circ"]:
            return 2
        return 4 if texts == ["^", "{", "\\circ", "}"] else 0

    def script(self) -> Node:
        """An exponent: a group, or one signed token."""
        raise NotImplementedError

    def unit_follows(self) -> bool:
        """True when the next token is a unit's word."""
        token = self.tokens[self.at]
        if token.kind == "unit":
            return True
        return token.kind == "text" and self.joins(token) is None and read_unit(_singleton(token.text)) is not None

    def currency_follows(self) -> bool:
        """True when the next token is the sign of a currency after its amount."""
        following = self.tokens[self.at + 1].kind if self.peek() in CURRENCY else ""
        return following in ("end", "text", "join") or (following == "sign" and self.tokens[self.at + 1].text in ",;")

    def joins(self, token: Token) -> str | None:
        """Return `or` or `and` if this is the only text of a text token; None for other tokens."""
        words = token.text.strip().strip(",").strip().lower()
        return words if words in ("or", "and") else None

    def with_unit(self, value: Node) -> Node:
        """Read the unit words after `value`, and return the quantity; without units, return `value`."""
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
                    raise Unreadable("a unit with a power that is not a number")
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
            raise Unreadable(f"{written.strip()[:30]!r} is not a unit")
        return self._with_smaller(Quantity(value, unit))

    def _with_smaller(self, whole: Quantity) -> Quantity:
        """Read the rest of a quantity in a smaller unit, as in `2 hours 30 minutes` and `5 feet and 3 inches`."""
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
        """Return `value` with the unit after it; None if no unit follows."""
        try:
            measured = self.with_unit(value) if self.unit_follows() else None
        except Unreadable:
            return None
        return measured if isinstance(measured, Quantity) else None


def _singleton(text: str) -> str:
    return text.replace("\\", "").strip().strip(".")
