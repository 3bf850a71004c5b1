r"""The part of the parser for environments: matrices, determinants, systems of lines, functions defined in pieces."""

from __future__ import annotations

from rewards.mathematics.nodes import Expression, Matrix, Node, Relation, Sequence, Text, Unreadable
from rewards.mathematics.reading.matrices import determinant
from rewards.mathematics.reading.parse_primary import PrimaryParser

MAX_CELLS = 400
# Environments that only align lines at ampersands.
_LINES = frozenset(("aligned", "align", "align*", "alignedat", "gathered", "gather", "gather*", "split", "equation"))
_CASES = frozenset(("cases", "dcases", "rcases", "numcases"))
_CONDITION_WORDS = frozenset(("if", "for", "when", "where", "as", "and", "with"))
OTHERWISE = Text("otherwise")
_OTHERWISE_WORDS = frozenset(("otherwise", "else", "elsewhere", "in all other cases", "in other cases"))


class EnvironmentParser(PrimaryParser):
    r"""Adds environments, which begin with `\begin{...}`, to the primaries."""

    # Inside an environment, a line break ends an item. Elsewhere it joins two items.
    breaks_end = 0

    def environment(self) -> Node:
        r"""Read the environment that `\begin{` opens, up to its `\end{...}`."""
        self.need("{")
        kind = ""
        while not self.take("}"):
            kind += self.skip().text
        if kind in _LINES:
            return self._aligned()
        if kind in _CASES:
            return self._cases()
        if kind == "array" and self.take("{"):
            while not self.take("}"):
                self.skip()
        return self._matrix(kind)

    def _matrix(self, kind: str) -> Node:
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
        self._skip_name()
        filled = [tuple(row) for row in rows if row]
        if not filled or any(len(row) != len(filled[0]) for row in filled):
            raise Unreadable("matrix rows of different lengths")
        if kind in ("vmatrix", "Vmatrix"):
            return (determinant(tuple(filled)) if kind == "vmatrix" else None) or Matrix("det", tuple(filled))
        return Matrix("matrix", tuple(filled))

    def _aligned(self) -> Node:
        """Read aligned lines, all of which must be true."""
        self._drop_ampersands(everywhere=True)
        inner = self.listing()
        self.take("\\\\")
        self.need("\\end")
        self._skip_name()
        if isinstance(inner, Sequence) and inner.brackets == "" and inner.joiner == ",":
            return Sequence("", inner.items, "and")
        return inner

    def _cases(self) -> Node:
        """A system of equations, or the values of a function with their conditions."""
        self._drop_ampersands(everywhere=False)
        outer, self.breaks_end = self.breaks_end, 1
        rows: list[tuple[Node, ...]] = []
        while self.peek() != "\\end":
            if self.peek().startswith("\\\\"):
                self.at += 1
                continue
            value = self.cell()
            separated = False
            while self.take("&", ",", ";"):
                separated = True
            words = self.tokens[self.at].kind == "text"
            rows.append((value, self._condition()) if not self._row_ends() and (separated or words) else (value,))
            if not self._row_ends() or len(rows) > MAX_CELLS:
                raise Unreadable("a line of a system that does not end, or too many lines")
        self.need("\\end")
        self._skip_name()
        self.breaks_end = outer
        pieces = any(len(row) == 2 for row in rows) and not any(isinstance(row[0], Relation) for row in rows)
        if pieces and all(len(row) == 2 for row in rows[:-1]):
            return Sequence("cases", tuple(Sequence("piece", (*row, OTHERWISE)[:2]) for row in rows))
        return Sequence("", tuple(cell for row in rows for cell in row), "and")

    def _condition(self) -> Node:
        """Read the condition beside a value: one or several relations, or words."""
        while self.tokens[self.at].kind == "text" and self._word() in _CONDITION_WORDS:
            self.at += 1
        start = self.at
        try:
            condition = self.listing()
        except Unreadable:
            condition = None
        if condition is not None and self._row_ends() and not isinstance(condition, (Text, *Expression)):
            return condition
        self.at = start
        pieces = []
        while not self._row_ends():
            pieces.append(self.skip().text)
        words = " ".join(" ".join(pieces).lower().split()).strip(" .,")
        words = words.removeprefix("if ").removeprefix("for ").removeprefix("when ")
        return OTHERWISE if words in _OTHERWISE_WORDS else Text(words)

    def _word(self) -> str:
        return self.tokens[self.at].text.strip(" ,").lower()

    def _row_ends(self) -> bool:
        return self.peek() == "\\end" or self.peek().startswith("\\\\") or self.tokens[self.at].kind == "end"

    def _skip_name(self) -> None:
        while not self.take("}"):
            self.skip()

    def _drop_ampersands(self, everywhere: bool) -> None:
        """Remove all ampersands of this environment, or only those beside a sign of a relation."""
        depth, at, kept = 0, self.at, self.tokens[: self.at]
        while at < len(self.tokens):
            token = self.tokens[at]
            depth += (token.text == "\\begin") - (token.text == "\\end")
            if depth < 0:
                break
            beside = at + 1 < len(self.tokens) and (
                self.tokens[at + 1].text in self.relations or self.tokens[at - 1].text in self.relations
            )
            if not (token.text == "&" and depth == 0 and (everywhere or beside)):
                kept.append(token)
            at += 1
        self.tokens = kept + self.tokens[at:]

    # Signs of relations; `AnswerParser` sets them.
    relations: frozenset[str] = frozenset()

    def cell(self) -> Node:
        """One entry of a matrix, or one line of a system."""
        return self.expression()

    def listing(self) -> Node:
        """Items between commas and connectives."""
        raise NotImplementedError
