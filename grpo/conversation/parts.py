"""The parts of a rendered conversation: the chat template's own text, the world's text, and the policy's turns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from grpo.messages import ChatMessage


@dataclass(frozen=True, slots=True)
class TemplateText:
    """Text that the chat template writes. Only here, special tokens stand for themselves."""

    text: str


@dataclass(frozen=True, slots=True)
class WorldText:
    """Text of a message, as the template writes it (cut, or as a JSON string). `message` is the message's number."""

    text: str
    message: int


@dataclass(frozen=True, slots=True)
class TurnPlace:
    """The place of a turn of the policy. `whole` is false where the template writes the turn without its thought."""

    turn: int
    whole: bool


Part = TemplateText | WorldText | TurnPlace


@dataclass(frozen=True, slots=True)
class TurnShape:
    """What a chat template looks at in a turn of the policy.

    Attributes:
        closes: whether the turn contains `</think>`.
        opens: whether `<think>` stands before it. If it does not, the prompt opened the thought.
        blank: whether there is nothing but spaces in the thought.
    """

    closes: bool
    opens: bool
    blank: bool

    @classmethod
    def of(cls, text: str, begins_in_thought: bool) -> TurnShape:
        """Return the shape of a sampled turn.

        Where nothing opened a thought, `</think>` closes none. A template would open it after the fact, before tokens
        that the policy sampled without it.

        Args:
            text: the turn.
            begins_in_thought: whether the prompt of the turn opened `<think>`.
        """
        before, closed, _ = text.partition("</think>")
        _, opened, thought = before.rpartition("<think>")
        if not opened and not begins_in_thought:
            closed = ""
        return cls(bool(closed), bool(closed and opened), not thought.strip())


def parse(text: str, mark: str, shapes: Sequence[TurnShape], start: int = 0) -> list[Part]:
    """Return the parts of a rendered text from `start` on, which is the beginning or a place behind a mark.

    Marks are found by one pattern that begins with a word, and their neighbours are looked at one by one. So the time
    grows with the length of the text, and not with its product with the number of turns.
    """
    parts: list[Part] = []
    end = start
    marks = re.compile(rf"{mark}([betc])(\d+)x").finditer(text, start)
    for match in marks:
        kind, number, before = match[1], int(match[2]), text[end : match.start()]
        if kind == "b":
            close = next(marks, None)
            _require_pair(close is not None and (close[1], close[2]) == ("e", match[2]))
            assert close is not None
            parts += [TemplateText(before), WorldText(text[match.end() : close.start()], number)]
            match = close
        elif kind == "t":
            answer = next(marks, None)
            _require_pair(answer is not None and (answer[1], answer[2]) == ("c", match[2]))
            assert answer is not None
            opening = re.search(r"<think>\s*\Z" if shapes[number].opens else r"\Z", before)
            between = text[match.end() : answer.start()]
            _require_pair(opening is not None and between.strip() == "</think>")
            assert opening is not None
            parts += [TemplateText(before[: opening.start()]), TurnPlace(number, whole=True)]
            match = answer
        else:
            _require_pair(kind == "c")
            parts += _answer_parts(before, number, shapes[number])
        end = match.end()
    return [*parts, TemplateText(text[end:])]


def _answer_parts(before: str, turn: int, shape: TurnShape) -> list[Part]:
    """Return the parts that end with an answer, whose thought was blank or is not in the text."""
    thought = None
    if shape.closes and shape.blank:
        thought = re.search((r"<think>\s*" if shape.opens else r"\n?") + r"</think>\s*\Z", before)
    cut = before if thought is None else before[: thought.start()]
    return [TemplateText(cut), TurnPlace(turn, whole=not shape.closes or thought is not None)]


def _require_pair(condition: bool) -> None:
    if not condition:
        raise ValueError(
            "the policy's chat template takes the text of a message apart, so the tokens of that text cannot be known; "
            "a message of the assistant in a prompt must be without <think>, or the template changed"
        )


def require_all(parts: Sequence[Part], messages: Sequence[ChatMessage], opening: int, known: int) -> None:
    """Require that the parts show each message from number `known` once, each turn in order, and no other message."""
    roles = {
        number: message.role
        for number, message in enumerate(messages[known:], known)
        if message.content.strip() and (message.role != "assistant" or number < opening)
    }
    shown = Counter(part.message for part in parts if isinstance(part, WorldText))
    wrong = min((number for number in roles.keys() | shown.keys() if shown[number] != (number in roles)), default=None)
    if wrong is not None:
        raise ValueError(
            f"the policy's chat template writes the text of message {wrong + 1} ({messages[wrong].role}) "
            f"{shown[wrong] + (wrong not in roles)} times; expected once"
        )
    places = [part.turn for part in parts if isinstance(part, TurnPlace)]
    first, last = (
        sum(message.role == "assistant" for message in messages[opening:end]) for end in (known, len(messages))
    )
    if places != list(range(first, last)):
        raise ValueError(
            f"the policy's chat template writes the turns {[*range(1, first + 1), *(turn + 1 for turn in places)]} of "
            f"the policy; expected all {last} in order"
        )


def require_same_header(before: Part, after: Part) -> None:
    """Refuse a template that writes more before the text of a turn than the prompt of that turn had."""
    shown = before.text if isinstance(before, TemplateText) else ""
    written = after.text if isinstance(after, TemplateText) else ""
    if not shown.startswith(written):
        raise ValueError(
            f"the policy's chat template asks for a turn with {shown[-60:]!r}, but later writes {written[-60:]!r} "
            "before the same turn, so the policy's tokens cannot stand there; take a template that writes both alike"
        )
