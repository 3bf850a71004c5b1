"""Whole answers: lists, sets, tuples, intervals, relations, text, ratios and times, made of expressions."""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.mathematics.nodes import (
    Apply,
    Bound,
    Constant,
    Expression,
    Node,
    Number,
    Ratio,
    Relation,
    Sequence,
    Symbol,
    Text,
    Unreadable,
    children,
)  # fmt: skip
from rewards.mathematics.reading.families import family, parameter_in, residue, whole_number_name, without_parameter
from rewards.mathematics.reading.latex_text import TEXT_MACROS, normalise, tokenise
from rewards.mathematics.reading.parse_environment import EnvironmentParser
from rewards.mathematics.reading.parse_listing import listed
from rewards.mathematics.reading.parse_primary import based
from rewards.mathematics.reading.respelled import in_another_notation, meant, respell
from rewards.mathematics.reading.spelled import without_gloss
from rewards.mathematics.reading.vectors import with_components

MAX_ITEMS = 100
# A chain such as 1/2/3/4 nests once for each sign; deeper trees would reach the end of Python's stack.
MAX_TREE_DEPTH = 120
_LEAVES = (Number, Symbol, Constant, Text)
_ON_SETS = frozenset(("union", "intersection", "difference", "neg", "pm"))
_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\leq": "<=", "\\le": "<=",
    "\\geq": ">=", "\\ge": ">=", "\\lt": "<", "\\gt": ">", "\\leqslant": "<=", "\\geqslant": ">=", "\\neq": "!=",
    "\\ne": "!=", "\\approx": "~", "\\sim": "~", "\\simeq": "~", "\\in": "in", "\\equiv": "=", "\\to": "=",
    "\\rightarrow": "=",
}  # fmt: skip
_OPENERS = {"(": "(", "[": "[", "\\{": "{", "\\langle": "<"}
_ENDERS = {")": ")", "]": "]", "\\}": "}", "\\rangle": ">"}
# Words before a value that change nothing.
_FILLER_WORDS = "exactly answer is the final therefore thus so total equals equal to area volume"
_FILLERS = frozenset(_FILLER_WORDS.split())
_MONTH_NAMES = (
    "january jan|february feb|march mar|april apr|may|june jun|july jul|august aug|september sep sept|october oct|"
    "november nov|december dec"
)
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES.split("|"), 1) for name in names.split()}
_MONTH = re.compile("|".join(name for name in _MONTHS if len(name) == 3), re.IGNORECASE)
# What `6 PM`, `3 to 4`, `0xFF` and `DNE` have, and few other answers.
_OTHER_NOTATION = re.compile(r"[mM]|to|0[xX]|(?<![A-Za-z])[dD]")
_DATE = re.compile(
    r"(?:(?P<month>[a-z]+)\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?"
    r"|(?P<day2>\d{1,2})(?:st|nd|rd|th)? (?:of )?(?P<month2>[a-z]+)\.?)"
    r"(?:,? (?P<year>\d{4}))?"
)
_CLOCK = re.compile(r"(\d{1,2}) ?: ?(\d{2})(?: ?: ?(\d{2}))?\s*(?:([ap])\.? ?m\.?)?", re.IGNORECASE)
_BASED = re.compile(r"\(?(?:\\text\{)?(?=[0-9A-F]*\d|[0-9A-F]{2}|(?<=\{)[A-F]\}_\{?1)([0-9A-F]+)\}?\)?_\{?(\d{1,2})\}?")
_MACROS = re.compile(rf"\\(?:{TEXT_MACROS}|mathbf)\s*+(?=\{{)|[{{}}$\\*\"`]")
_ARTICLES = re.compile(r"^(?:an?|the) ")


class AnswerParser(EnvironmentParser):
    """Completes the expression parser with what a whole answer may be."""

    relations = frozenset(_RELATIONS)

    def answer(self) -> Node:
        """The whole of the tokens as one answer."""
        value = self.listing()
        if self.tokens[self.at].kind != "end":
            raise Unreadable(f"{self.tokens[self.at].text[:20]!r} was not expected")
        return without_parameter(value)

    def listing(self) -> Node:
        """Items between commas, semicolons, "or" and "and"; the item itself where there is only one."""
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
        """Step over what stands between two items and return it: `or`, `and`, `;` or `,`; None when nothing does."""
        found: str | None = None
        while True:
            token = self.tokens[self.at]
            word = token.text if token.kind == "join" else self.joins(token) if token.kind == "text" else None
            if word is not None:
                found = word
            elif self.peek() in (",", "\\&"):
                found = found or ","
            elif self.peek() == ";" or self._line_breaks():
                found = ";" if found in (None, ",") else found
            elif self.peek() in ("\\vee", "\\lor", "\\wedge", "\\land"):
                found = "or" if self.peek() in ("\\vee", "\\lor") else "and"
            else:
                return found
            self.at += 1

    def _line_breaks(self) -> bool:
        """True at a line break that joins two lines; not at the end, nor in a row that it ends."""
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
        return Ratio(tuple(items))

    def _words(self) -> Node:
        """Words up to the next connective; `Unreadable` where mathematics follows them."""
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
        r"""`(...)`, `[...)`, `\{...\}`, `\langle...\rangle`: a group around one expression, else a sequence."""
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
                return Sequence("[]", items)  # the whole answer is a list of one
            return self._script_on_group(items[0])
        return Sequence(opening + closing, items)

    def _script_on_group(self, value: Node) -> Node:
        """`(1011)_2` is a numeral; another subscript on a bracket is not understood."""
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
                raise Unreadable("a set builder over what is no variable")
            return family(element, name)
        condition = without_parameter(condition)
        if isinstance(condition, Relation) and condition.sides[0] == element and isinstance(condition.sides[1], Bound):
            return condition.sides[1]
        return Bound("set", element.name, (), condition)

    def braces(self) -> Node:
        """Plain braces: a group, or a set whose braces were not escaped."""
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


def parse(text: str) -> Node:
    """Read an answer.

    Raises:
        Unreadable: it is nothing that is understood, or it is too large.
    """
    try:
        return _parse(text)
    except RecursionError:
        raise Unreadable("nested too deep") from None


def _parse(text: str) -> Node:
    plain = respell(without_gloss(normalise(text)))
    if not plain:
        raise Unreadable("an empty answer")
    special = _special(plain)
    if special is not None:
        return special
    spoken = parameter_in(plain)
    if spoken is not None:
        try:
            return _checked(family(AnswerParser(tokenise(spoken[0])).answer(), spoken[1]))
        except Unreadable:
            pass  # the phrase may belong to the value
    tokens = tokenise(plain)
    has_words = any(token.kind in ("text", "join", "unit") for token in tokens)
    try:
        node = AnswerParser(tokens).answer()
    except Unreadable:
        if has_words:
            return meant(words(plain))
        raise
    if isinstance(node, Text):
        return meant(node.words)
    return _checked(with_components(node) if "\\hat" in plain else node)


@lru_cache(maxsize=4096)
def parse_gold(text: str) -> Node:
    """`parse`, remembered: a prompt's gold answer is read once for its whole group."""
    return parse(text)


def _checked(node: Node) -> Node:
    """Refuse sets and text inside arithmetic, which no rule gives a meaning, and trees too deep to walk."""
    level, depth = [node], 0
    while level:
        depth += 1
        if depth > MAX_TREE_DEPTH:
            raise Unreadable(f"operations nested more than {MAX_TREE_DEPTH} deep")
        following: list[Node] = []
        for below in level:
            if isinstance(below, Apply):
                parts = below.args
                # Sets are united, and quantities may have a sign; nothing else is done to what is no expression.
                if below.op not in _ON_SETS:
                    for part in parts:
                        if not isinstance(part, Expression):
                            raise Unreadable("a list, a text or a unit inside arithmetic")
                following.extend(parts)
            elif not isinstance(below, _LEAVES):
                following.extend(children(below))
        level = following
    return node


def _special(plain: str) -> Node | None:
    """Numerals in a base, dates, and times of day, before anything is cut into tokens."""
    if len(plain) < 80 and _OTHER_NOTATION.search(plain):
        found = in_another_notation(plain, _MACROS.sub("", plain).strip())
        if found is not None:
            return found
    if "_" in plain:
        numeral = _BASED.fullmatch(plain.replace(" ", ""))
        if numeral is not None and 2 <= int(numeral[2]) <= 36:
            return based(numeral[1], int(numeral[2]))
    if ":" in plain:
        clock = _CLOCK.fullmatch(_MACROS.sub("", plain).strip())
        if clock is not None:
            return _clock(clock)
    if len(plain) < 60 and _MONTH.search(plain):
        date = _DATE.fullmatch(words(plain).strip())
        if date is not None:
            month = _MONTHS.get(date["month"] or date["month2"])
            if month is not None:
                return Text(f"date {date['year'] or ''} {month} {int(date['day'] or date['day2'])}")
    return None


def _clock(match: re.Match[str]) -> Node:
    hours, minutes, seconds = int(match[1]), int(match[2]), int(match[3] or 0)
    items = tuple(AnswerParser(tokenise(piece)).answer() for piece in match.groups()[:3] if piece)
    if match[4] is not None:
        hours = hours % 12 + (12 if match[4].lower() == "p" else 0)
    possible = hours < 24 and minutes < 60 and seconds < 60
    if possible and match[2].startswith("0"):
        items = ()  # 7:05 is written by clocks only: no ratio of seven to five
    if match[4] is not None and not possible:
        raise Unreadable("a time that no clock shows")
    return Ratio(items, hours * 3600 + minutes * 60 + seconds if possible else None, match[4] is not None)


def words(text: str) -> str:
    """Text as it is compared: lower case, no fonts, single spaces, no article in front, no final period."""
    plain = " ".join(_MACROS.sub(" ", text).lower().split()).strip(" .,;!").replace(" ,", ",")
    return _ARTICLES.sub("", plain)
