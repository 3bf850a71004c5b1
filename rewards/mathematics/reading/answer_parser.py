"""The parser of whole answers: lists, sets, tuples, intervals, relations, words and ratios, made of expressions."""

from __future__ import annotations

import re

from rewards.mathematics.nodes import (
    Apply,
    Bound,
    Expression,
    Node,
    Number,
    RatioNode,
    Relation,
    Sequence,
    Symbol,
    Text,
    Unreadable,
)
from rewards.mathematics.reading.families import family, residue, whole_number_name, without_parameter
from rewards.mathematics.reading.latex_text import TEXT_MACROS
from rewards.mathematics.reading.parse_environment import EnvironmentParser
from rewards.mathematics.reading.parse_listing import listed

MAX_ITEMS = 100
_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\leq": "<=", "\\le": "<=",
    "\\geq": ">=", "\\ge": ">=", "\\lt": "<", "\\gt": ">", "\\leqslant": "<=", "\\geqslant": ">=", "\\neq": "!=",
    "\\ne": "!=", "\\approx": "~", "\\sim": "~", "\\simeq": "~", "\\in": "in", "\\equiv": "=", "\\to": "=",
    "\\rightarrow": "=",
}  # fmt: skip
_OPENERS = {"(": "(", "[": "[", "\\{": "{", "\\langle": "<"}
_ENDERS = {")": ")", "]": "]", "\\}": "}", "\\rangle": ">"}
# Words before a value that do not change it.
_FILLER_WORDS = "exactly answer is the final therefore thus so total equals equal to area volume"
_FILLERS = frozenset(_FILLER_WORDS.split())
MACROS = re.compile(rf"\\(?:{TEXT_MACROS}|mathbf)\s*+(?=\{{)|[{{}}$\\*\"`]")
_ARTICLES = re.compile(r"^(?:an?|the) ")


class AnswerParser(EnvironmentParser):
    """Adds the forms of a whole answer to the parser."""

    relations = frozenset(_RELATIONS)

    def answer(self) -> Node:
        """Read all tokens as one answer."""
        value = self.listing()
        if self.tokens[self.at].kind != "end":
            raise Unreadable(f"{self.tokens[self.at].text[:20]!r} was not expected")
        return without_parameter(value)

    def listing(self) -> Node:
        """Read items between commas, semicolons, "or" and "and". A single item is returned without a list."""
        items, joiners = [self.item()], [""]
        while True:
            word = self._connective()
            if word is None:
                break
            joiners.append(word)
            items.append(self.item())
            if len(items) > MAX_ITEMS:
                raise Unreadable(f"more than {MAX_ITEMS} items")
        return items[0] if len(items) == 1 else listed(items, joiners)

    def _connective(self) -> str | None:
        """Step over the text between two items; return `or`, `and`, `;` or `,`.

        Return None if there is no such text.
        """
        joiner: str | None = None
        while True:
            token = self.tokens[self.at]
            word = token.text if token.kind == "join" else self.joins(token) if token.kind == "text" else None
            if word is not None:
                joiner = word
            elif self.peek() in (",", "\\&"):
                joiner = joiner or ","
            elif self.peek() == ";" or self._line_breaks():
                joiner = ";" if joiner in (None, ",") else joiner
            elif self.peek() in ("\\vee", "\\lor", "\\wedge", "\\land"):
                joiner = "or" if self.peek() in ("\\vee", "\\lor") else "and"
            else:
                return joiner
            self.at += 1

    def _line_breaks(self) -> bool:
        """True at a line break between two lines, but not at the end of the text or of a row."""
        following = self.tokens[self.at + 1 : self.at + 2]
        joins = self.peek().startswith("\\\\") and not self.breaks_end
        return joins and bool(following) and following[0].kind != "end" and following[0].text != "\\end"

    def item(self) -> Node:
        """One item: a relation chain, a union of sets, or an expression."""
        name = self._skip_fillers()
        if self.tokens[self.at].kind == "text":
            return self._words()
        sides, ops = [self._side()], []
        while self.peek() in _RELATIONS:
            ops.append(_RELATIONS[self.peek()])
            self.at += 1
            sides.append(self._side())
        if self.take("\\pmod"):
            sides[-1] = residue(sides[-1], self.argument())
        value = Relation(tuple(sides), tuple(ops)) if ops else sides[0]
        return Relation((Symbol(name), value), ("=",)) if name and isinstance(value, Expression) else value

    def _side(self) -> Node:
        """One side of a relation: a ratio, a union of sets, or an expression."""
        value = self.united()
        if self.peek() != ":" or self.bar_closes:
            return value
        items = [value]
        while self.take(":"):
            items.append(self.expression())
        return RatioNode(tuple(items))

    def _words(self) -> Node:
        """Read words up to the next connective. Raise `Unreadable` if mathematics follows."""
        pieces = []
        while self.tokens[self.at].kind in ("text", "symbol", "unit") and self.joins(self.tokens[self.at]) is None:
            pieces.append(self.tokens[self.at].text)
            self.at += 1
        return Text(words(" ".join(pieces)))

    def _skip_fillers(self) -> str:
        r"""Step over words that change nothing, and return the name that words give: `\text{Area} = 5`."""
        name = ""
        while self.tokens[self.at].kind == "text":
            following = self.tokens[self.at + 1]
            words = self.tokens[self.at].text.replace(":", " ").lower().split()
            named = following.text in ("=", ":") and following.kind == "sign"
            if not named and not (all(word in _FILLERS for word in words) and following.kind != "end"):
                return name
            if named:
                name = "\\text " + " ".join(words)
            self.at += 2 if named else 1
        self.take("\\approx", "\\therefore", "\\implies", "\\Rightarrow", "=")
        return name

    def united(self) -> Node:
        r"""Sets joined by \cup, \cap or \setminus."""
        value = self.expression()
        while self.peek() in ("\\cup", "\\cap", "\\setminus", "\\backslash"):
            op = {"\\cup": "union", "\\cap": "intersection"}.get(self.peek(), "difference")
            self.at += 1
            value = Apply(op, (value, self.expression()))
        return value

    def brackets(self) -> Node:
        r"""Read `(...)`, `[...)`, `\{...\}` or `\langle...\rangle` as a group of one expression or as a sequence."""
        opening, begun = _OPENERS[self.peek()], self.at
        self.at += 1
        outer, self.bar_closes = self.bar_closes, 1 if opening == "{" else 0
        if self.peek() in _ENDERS:
            items: tuple[Node, ...] = ()
        else:
            inner = self.listing()
            items = inner.items if isinstance(inner, Sequence) and inner.brackets == "" else (inner,)
            if opening == "{" and self.take("|", "\\mid", ":"):
                inner = self._builder(items)
                self.bar_closes = outer
                return inner
        self.bar_closes = outer
        closing = _ENDERS.get(self.peek())
        if closing is None:
            raise Unreadable("a bracket that is not closed")
        self.at += 1
        if (opening == "{" and closing != "}") or (opening == "<" and closing != ">"):
            raise Unreadable("brackets that do not match")
        if len(items) == 1 and opening in "([" and closing in ")]":
            if opening + closing not in ("()", "[]"):
                raise Unreadable("an interval with one end")
            alone = begun == 0 and self.tokens[self.at].kind == "end"
            if opening == "[" and alone and isinstance(items[0], Expression):
                return Sequence("[]", items)  # the whole answer is a list with one item
            return self._script_on_group(items[0])
        return Sequence(opening + closing, items)

    def _script_on_group(self, value: Node) -> Node:
        """`(1011)_2` is a numeral; other subscripts on brackets are not read."""
        if self.peek() == "_" and isinstance(value, Number):
            return self._in_base(str(value.value))
        return value

    def _builder(self, items: tuple[Node, ...]) -> Node:
        condition = self.listing()
        self.need("\\}")
        element = items[0]
        if isinstance(element, Relation) and element.ops == ("in",):
            element = element.sides[0]
        if len(items) != 1:
            raise Unreadable("a set builder over more than one variable")
        if not isinstance(element, Symbol):
            name = whole_number_name(condition)
            if name is None:
                raise Unreadable("a set builder over something that is not a variable")
            return family(element, name)
        condition = without_parameter(condition)
        if isinstance(condition, Relation) and condition.sides[0] == element and isinstance(condition.sides[1], Bound):
            return condition.sides[1]
        return Bound("set", element.name, (), condition)

    def braces(self) -> Node:
        """Braces without a backslash: a group, or a set."""
        self.need("{")
        if self.take("}"):
            raise Unreadable("empty braces")
        inner = self.listing()
        if self.take("\\choose"):
            inner = Apply("binom", (inner, self.expression()))
        self.need("}")
        if isinstance(inner, Sequence) and inner.brackets == "":
            return Sequence("{}", inner.items)
        return inner

    def cell(self) -> Node:
        """An entry of a matrix, or one line of a system."""
        return self.item()


def words(text: str) -> str:
    """Text in the form in which it is compared: lower case, no fonts, single spaces, no leading article, no period."""
    plain = " ".join(MACROS.sub(" ", text).lower().split()).strip(" .,;!").replace(" ,", ",")
    return _ARTICLES.sub("", plain)
