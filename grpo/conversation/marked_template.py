"""Render a chat template so that its own text, the world's text, and the policy's turns can be told apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from grpo.messages import ChatMessage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


class MarkedTemplate:
    """A chat template whose messages are rendered between marks.

    A mark is a word that occurs neither in the messages nor in the template nor in the tools. So no message can forge a
    mark, and whatever the template does with the text of a message, the marks show where that text went.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
        if not tokenizer.chat_template:
            raise ValueError(
                "the policy's tokenizer has no chat template, and conversations need one; take a policy with a chat "
                "template, or add chat_template.jinja to its folder"
            )
        self._tokenizer = tokenizer
        self._options = dict(options)
        self._source = json.dumps([tokenizer.chat_template, self._options], ensure_ascii=False, default=str)

    def text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], *, prompt: bool = True
    ) -> str:
        """Return the template's text of the messages; with `prompt`, the text asks for the assistant's next turn.

        Raises:
            ValueError: the template fails or refuses.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] or None,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **self._options,
                )
            )
        except (TemplateError, TypeError, KeyError) as problem:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ValueError(f"the policy's chat template refuses messages of {roles}: {problem}") from problem

    def parts(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]],
        opening: int,
        shapes: Sequence[TurnShape],
    ) -> list[Part]:
        """Render messages and the prompt for the assistant's next turn.

        Args:
            messages: the conversation so far.
            tools: schemas of the tools.
            opening: number of first messages in which the assistant's text was given, not sampled.
            shapes: shape of each sampled turn.

        Returns:
            The parts, in order. The template's text stands at both ends and between any two other parts, and may be
            empty.

        Raises:
            ValueError: the template fails or refuses, or it leaves out, repeats or takes apart the text of a message.
        """
        mark = self._unused_mark([message.content for message in messages], tools)
        written: list[dict[str, Any]] = []
        turns = iter(range(len(shapes)))
        for number, message in enumerate(messages):
            if message.role == "assistant" and number >= opening:
                turn = next(turns)
                content = _turn_text(mark, turn, shapes[turn])
            else:
                content = _between_marks(mark, number, message.content)
            named = {"name": message.name} if message.name else {}
            written.append({"role": message.role, "content": content, **named})
        parts = _parse(self.text(written, tools), mark, shapes)
        _require_all(parts, messages, opening, len(shapes))
        return parts

    def _unused_mark(self, contents: Sequence[str], tools: Sequence[Mapping[str, Any]]) -> str:
        texts = [*contents, self._source, json.dumps(list(tools), ensure_ascii=False)]
        attempt = 0
        while True:
            mark = "q" + hashlib.sha256(str(attempt).encode()).hexdigest()[:20] + "q"
            if not any(mark in text for text in texts):
                return mark
            attempt += 1


def _between_marks(mark: str, number: int, content: str) -> str:
    """Return the content with marks inside its outer spaces, because templates cut these."""
    core = content.strip()
    if not core:
        return content
    start = content.index(core[0])
    return f"{content[:start]}{mark}b{number}x{core}{mark}e{number}x{content[start + len(core) :]}"


def _turn_text(mark: str, turn: int, shape: TurnShape) -> str:
    answer = f"{mark}c{turn}x"
    if not shape.closes:
        return answer
    thought = "" if shape.blank else f"{mark}t{turn}x"
    return ("<think>\n" if shape.opens else "") + f"{thought}\n</think>\n\n{answer}"


def _parse(text: str, mark: str, shapes: Sequence[TurnShape]) -> list[Part]:
    """Return the parts of a rendered text.

    Marks are found by one pattern that begins with a word, and their neighbours are looked at one by one. So the time
    grows with the length of the text, and not with its product with the number of turns.
    """
    parts: list[Part] = []
    end = 0
    marks = re.finditer(rf"{mark}([betc])(\d+)x", text)
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


def _require_all(parts: Sequence[Part], messages: Sequence[ChatMessage], opening: int, turns: int) -> None:
    roles = {
        number: message.role
        for number, message in enumerate(messages)
        if message.content.strip() and (message.role != "assistant" or number < opening)
    }
    shown = Counter(part.message for part in parts if isinstance(part, WorldText))
    wrong = next((number for number in roles if shown[number] != 1), None)
    if wrong is not None:
        raise ValueError(
            f"the policy's chat template writes the text of message {wrong + 1} ({roles[wrong]}) {shown[wrong]} "
            "times; expected once"
        )
    places = [part.turn for part in parts if isinstance(part, TurnPlace)]
    if places != list(range(turns)):
        raise ValueError(
            f"the policy's chat template writes the turns {[turn + 1 for turn in places]} of the policy; expected all "
            f"{turns} in order"
        )
