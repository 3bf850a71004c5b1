r"""Mathematical answers: find the final answer, and decide whether it equals the reference.

These are the conventions. A name in brackets is the setting of `Math` that changes the convention.

1. The final answer is the last complete `\boxed{...}` after the reasoning. If only a connective, punctuation or
   numbering separates several boxes (or `<answer>` tags), they are one answer. If the box cannot be read, the verdict
   is `unparseable`, and the rest of the text is ignored. If there is no box, the answer is the value after the last
   `<answer>`, `####`, "answer is" or "Answer:"; if there is none of these either, the answer is the value, or list of
   values, of the last sentence (`find`).
2. Two forms of the same value are equal. A rounded decimal does not equal an exact reference (`rounded`).
3. A unit that only one side has is ignored. Values with different units are equal only by an exact conversion
   (`units`).
4. `p%`, `p/100` and `p` equal the reference `p%` (`percent`).
5. `x=5` equals `5`, but not `y=5`. Free variables must have the same names; bound variables may be renamed.
6. `{...}` and lists without brackets are unordered (`ordered`), `(...)` is ordered. An interval equals the inequality
   that describes it.
7. Several candidates, a superset of the reference, or a restated problem never equal a single value. So sums, integrals
   and limits are not evaluated, and an answer that is copied from the problem's text is refused (`problem_column`).
8. In multiple choice, the letter decides. In text, case, fonts and the final period are ignored.
9. An empty text, an empty box and an unclosed box do not count as an answer.

These are the stages, the cheapest first: find, text, exact rationals, parse, structure, exact values, approximate
values. There is no symbolic stage: in a comparison, evaluation at several points decided more pairs, with fewer errors,
in a thirtieth of the time. No text of a completion is executed, and all sizes are checked before a computation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Number as AnyNumber
from typing import Any, Literal

from rewards import stage
from rewards.answers import find as places
from rewards.answers.last_sentence import last_sentence
from rewards.answers.stated import stated
from rewards.answers.thinking import final_text, thinking_tags
from rewards.mathematics.comparing.arithmetics import precise
from rewards.mathematics.comparing.equal import Undecided, equal, undecidable
from rewards.mathematics.conventions import Conventions
from rewards.mathematics.nodes import Expression, Node, Number, Quantity, RatioNode, Text, Unreadable
from rewards.mathematics.nodes import Sequence as Items
from rewards.mathematics.reading.answer_parser import words
from rewards.mathematics.reading.latex_text import MAX_ANSWER, normalise
from rewards.mathematics.reading.parse_answer import parse, parse_gold
from rewards.mathematics.reading.restated import is_restated
from rewards.verdict import Status, Verdict, best, correct, error, unparseable, wrong
from rewards.verifier import PROBLEM_COLUMN
from rewards.verifiers.choices import letter_of
from rewards.verifiers.exact import check_places

PLACES = ("boxed", "stated", "last_sentence")
_INTEGER = re.compile(r"-?\d{1,15}")
_PLAIN = re.compile(r"-?[\d.,]{1,40}")
_SIMPLE = re.compile(r"(-?)(?:\\[dt]?frac\{(\d{1,15})\}\{(\d{1,15})\}|(\d{1,15})(?:/(\d{1,15})|\.(\d{1,15}))?)")
_COMMA_DECIMAL = re.compile(r"(-?)(\d{1,3}(?:[. ]\d{3})+|\d+),(\d+)")
_LISTED = re.compile(r"-?\d{1,9}(?:,-?\d{1,9}){1,99}")
_THOUSANDS = re.compile(r"-?[1-9]\d{0,2},\d{3}")
_MANY_CACHED = 8192


class Math:
    """Verifies mathematical answers by the conventions above.

    Args:
        find: places to look in, in order: `boxed`, `stated`, `last_sentence`.
        problem_column: column of the row with the problem's text. Answers that copy an expression from this text are
            refused (only exact copies: `3+2` is accepted for "What is 2+3?"). If this is None, copies are accepted. If
            a row does not have the default column, a run puts the question, without a chat template, into it.
        any_of: whether a list as reference means accepted answers, each of them right. Otherwise a list is refused.
        thinking: reasoning tags; see `rewards.verifiers.exact.Exact`.
        percent, units, ordered, rounded, bare_base, log_base, decimal_comma: see
            `rewards.mathematics.conventions.Conventions`.

    Verdicts are the same in any thread or process: no signal, global state or random number is used. An answer that
    cannot be decided within the work budget (well under a second) is `wrong`, and the reason names the stage. If the
    reference alone exceeds the budget, the verdict is an `error` (`reference_problem`).

    Raises:
        ValueError: an unknown place or setting.
    """

    def __init__(
        self,
        find: Sequence[str] = PLACES,
        problem_column: str | None = PROBLEM_COLUMN,
        percent: Literal["either", "value", "strict"] = "either",
        units: Literal["missing", "strict", "ignore"] = "missing",
        ordered: bool = False,
        rounded: bool = False,
        bare_base: bool = False,
        log_base: int = 10,
        decimal_comma: bool | Literal["always"] = True,
        thinking: Sequence[str | Sequence[str]] | None = None,
        any_of: bool = False,
    ) -> None:
        self.any_of, self.find = any_of, check_places(find, PLACES)
        self.problem_column, self.tags = problem_column, thinking_tags(thinking)
        self.conventions = Conventions(percent, units, ordered, rounded, bare_base, log_base, decimal_comma)
        self.cache_hits = 0
        precise()  # import mpmath, which takes a fifth of a second, before the first verdict
        self._cache: dict[tuple[str, str], Verdict] = {}

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict on `completion`. It is an `error` if the reference is empty or cannot be read as text."""
        if self.any_of and isinstance(reference, (list, tuple)) and reference:
            return best([self(completion, each, prompt) for each in reference])
        gold = _gold_text(reference)
        if gold is None or not gold.strip() or len(gold) > MAX_ANSWER:
            return error(self.reference_problem(reference, prompt))
        stage.enter("find")
        answer = self.find_answer(completion)
        if answer is None:
            return unparseable("no final answer found")
        # The fast path: most answers are plain numbers, which never restate the problem.
        problem = prompt.get(self.problem_column) if self.problem_column is not None else None
        if problem is not None and not _PLAIN.fullmatch(answer) and is_restated(answer, gold, problem):
            return wrong("the problem restated")
        key = (gold, answer)
        known = self._cache.get(key)
        if known is not None:
            self.cache_hits += 1
            return known
        verdict = self.judge(gold, answer)
        if len(self._cache) >= _MANY_CACHED:
            self._cache.clear()
        self._cache[key] = verdict
        return verdict

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any] | None = None) -> str:
        """Say why no answer can be judged by this reference; empty if the reference can be used.

        A reference must be a text, a number, or a list with one text or number, not empty, not longer than an answer
        may be, and of a value within the work budget. If the parser cannot read it, only the same text equals it.
        """
        if self.any_of and isinstance(reference, (list, tuple)) and reference:
            return next(filter(None, map(self.reference_problem, reference)), "")
        gold = _gold_text(reference)
        if gold is None:
            lists = "; join a list's values by commas (data.reference_join), or accept any of them with any_of: true"
            remedy = lists if isinstance(reference, (list, tuple)) else ""
            return f"the reference {reference!r:.60} is neither text nor a number{remedy}"
        if not gold.strip():
            return "the reference answer is empty"
        if len(gold) > MAX_ANSWER:
            return f"the reference is {len(gold)} characters long; the most that is read is {MAX_ANSWER}"
        try:
            node = parse_gold(normalise(gold))
        except Unreadable:
            return ""
        stuck = undecidable(node, self.conventions)
        return f"the reference {gold[:60]!r} cannot be compared within the bounds, at {stuck}" if stuck else ""

    def find_answer(self, completion: str) -> str | None:
        """The text of the final answer; None when there is none."""
        text = final_text(completion, self.tags)
        if text is None:
            return None
        for place in self.find:
            if place == "boxed":
                answer = places.last_box(text)
                if answer is None and places.has_unclosed_box(text):
                    return None
            else:
                answer = stated(text) if place == "stated" else last_sentence(text)
            if answer is not None:
                return answer
        return None

    def judge(self, gold: str, answer: str) -> Verdict:
        """The verdict on the text of an answer."""
        stage.enter("text")
        quick = _compare_rationals(gold, answer, self.conventions.rounded)
        if quick is not None:
            return correct("rational") if quick else _differs(answer, gold)
        try:
            plain_gold, plain = normalise(gold), normalise(answer)
        except Unreadable as problem:
            return unparseable(str(problem))
        if not plain.strip(" {}.?"):
            return unparseable("an empty answer")
        if plain == plain_gold:
            return correct("text")
        return self._judge_choice(gold, plain_gold, answer, plain)

    def _judge_choice(self, gold: str, plain_gold: str, answer: str, plain: str) -> Verdict:
        chosen = letter_of(gold)
        # A single small letter is a variable, but "(a)" is a choice.
        if chosen is not None and not (len(plain_gold) == 1 and plain_gold.islower()):
            letter, content = chosen
            answered = letter_of(answer)
            if answered is not None:
                same = answered[0] == letter
                return correct("choice") if same else _differs(answer, gold)
            if content:
                return self._judge_parsed(content, normalise(content), plain)
            return _differs(answer, gold)
        return self._judge_parsed(gold, plain_gold, plain)

    def _judge_parsed(self, gold: str, plain_gold: str, plain: str) -> Verdict:
        stage.enter("parse")
        if self.conventions.decimal_comma == "always" and (comma := _COMMA_DECIMAL.fullmatch(plain_gold)) is not None:
            plain_gold = comma[1] + re.sub(r"[. ]", "", comma[2]) + "." + comma[3]
        try:
            reference: Node = parse_gold(plain_gold)
        except Unreadable:
            # Only the same text equals a reference that is not understood, and the texts have been compared.
            return _differs(plain, gold)
        try:
            node = parse(plain)
        except Unreadable as problem:
            return self._other_reading(reference, plain) or unparseable(f"{str(problem)[:120]}: {plain[:60]!r}")
        if isinstance(node, Text) and isinstance(reference, (*Expression, Quantity, RatioNode)):
            return self._other_reading(reference, plain) or unparseable(f"words instead of a value: {plain[:60]!r}")
        try:
            # If the reference is words, read the answer as words too: "New York" is not a product of letters.
            spoken = isinstance(reference, Text) and not isinstance(node, Text) and Text(words(plain))
            if equal(reference, node, self.conventions) or (spoken and equal(reference, spoken, self.conventions)):
                return correct("equal")
            if "," in plain_gold + plain and self._as_lists(plain_gold, reference, plain, node):
                return correct("list")
        except Undecided as problem:
            return self._undecided(gold, str(problem), plain)
        return self._other_reading(reference, plain) or _differs(plain, gold)

    def _undecided(self, gold: str, where: str, plain: str) -> Verdict:
        """The verdict if the work budget does not suffice: an `error` if the reference cannot be used, else `wrong`.

        An answer that is too expensive must get a score. If it had no score, a policy would learn to write such
        answers.
        """
        fault = self.reference_problem(gold)
        if fault:
            return error(fault)
        return wrong(f"not decided within the bounds, at {where}: {plain[:60]!r}")

    def _other_reading(self, reference: Node, plain: str) -> Verdict | None:
        """Read separators that have two meanings in the way that the reference needs."""
        if self.conventions.decimal_comma and isinstance(reference, Number):
            match = _COMMA_DECIMAL.fullmatch(plain)
            grouped = self.conventions.decimal_comma != "always" and _THOUSANDS.fullmatch(plain)
            if match is not None and not grouped:
                whole = re.sub(r"[. ]", "", match[2])
                if equal(reference, Number(Fraction(f"{match[1]}{whole}.{match[3]}")), self.conventions):
                    return correct("decimal comma")
        return None

    def _as_lists(self, gold: str, reference: Node, plain: str, node: Node) -> bool:
        """Whether `1,200`, read as a number on one side, means the list `1, 200` of the other side."""
        if isinstance(reference, Items) and isinstance(node, Number) and _LISTED.fullmatch(plain):
            return equal(reference, parse(plain.replace(",", ", ")), self.conventions)
        if isinstance(node, Items) and node.brackets in ("", "{}") and isinstance(reference, Number):
            return bool(_LISTED.fullmatch(gold)) and equal(parse(gold.replace(",", ", ")), node, self.conventions)
        return False


def _gold_text(reference: Any) -> str | None:
    """The reference as text; None for types that are not supported.

    A whole float is written as an integer. A list with one item is replaced by this item.
    """
    if isinstance(reference, (list, tuple)) and len(reference) == 1:
        return _gold_text(reference[0])
    if not isinstance(reference, (str, AnyNumber)):
        return None
    if isinstance(reference, float) and reference.is_integer() and abs(reference) < 2**53:
        return str(int(reference))
    return places.marked_answer(str(reference))


def _compare_rationals(gold: str, answer: str, rounded: bool) -> bool | None:
    """Compare integers, decimals and fractions without parsing; None when one side is something else.

    If `rounded` is true, an answer equals a decimal gold answer if it is within half a unit of its last digit.
    """
    if gold == answer and _INTEGER.fullmatch(gold):
        return True
    left = _SIMPLE.fullmatch(gold)
    right = _SIMPLE.fullmatch(answer) if left is not None else None
    if left is None or right is None:
        return None
    (a, b), (c, d) = _parts(left), _parts(right)
    if b == 0 or d == 0:
        return None
    if rounded and left[6]:
        # b is the power of ten of the gold answer's last digit.
        return 2 * abs(a * d - b * c) <= d
    return a * d == b * c


def _parts(match: re.Match[str]) -> tuple[int, int]:
    sign = -1 if match[1] else 1
    if match[2]:
        return sign * int(match[2]), int(match[3])
    if match[5]:
        return sign * int(match[4]), int(match[5])
    if match[6]:
        return sign * int(match[4] + match[6]), 10 ** len(match[6])
    return sign * int(match[4]), 1


def _differs(answer: str, gold: str) -> Verdict:
    return Verdict(0.0, Status.WRONG, f"{answer[:80]!r} is not {gold[:80]!r}")
