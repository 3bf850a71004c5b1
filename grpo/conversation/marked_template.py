"""Render a chat template so that its own text, the world's text, and the policy's turns can be told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from grpo.conversation.parts import Part, TemplateText, TurnShape, parse, require_all
from grpo.messages import ChatMessage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Tools = tuple[Mapping[str, Any], ...]
# Messages, schemas of the tools, and number of messages in the first prompt.
History = tuple[tuple[ChatMessage, ...], Tools, int]


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a chat template wrote of a conversation's messages and of the prompt for the next turn.

    Attributes:
        messages: the messages.
        tools: schemas of the tools.
        opening: number of first messages in which the assistant's text was given, not sampled.
        shapes: shape of each sampled turn.
        mark: word between which the texts of the messages stand.
        written: the messages as the template got them.
        text: the template's text, with its marks.
        end: place in `text` behind the last mark.
        template: the template that wrote the text.
    """

    messages: tuple[ChatMessage, ...]
    tools: Tools
    opening: int
    shapes: tuple[TurnShape, ...]
    mark: str
    written: tuple[Mapping[str, Any], ...]
    text: str
    end: int
    template: MarkedTemplate = field(repr=False)

    def goes_on(self, template: MarkedTemplate, history: History, new: Sequence[ChatMessage]) -> bool:
        """Whether this is the template's rendering of the history, and its mark does not occur in new messages."""
        if self.template is not template or (self.messages, self.tools, self.opening) != history:
            return False
        return not any(self.mark in message.content for message in new)

    def parts(self) -> list[Part]:
        """Return the parts, in order.

        The template's text stands at both ends and between any two other parts, and may be empty.

        Raises:
            ValueError: the template leaves out, repeats or takes apart the text of a message.
        """
        return self._parts_from(0, 0)

    def parts_behind(self, earlier: Rendering) -> list[Part] | None:
        """Return the parts of a rendering that `MarkedTemplate.continued` made, behind the parts of the earlier one.

        The first is the template's text in the place of the last part of `earlier`. None if the text before differs.

        Raises:
            ValueError: as in `parts`.
        """
        if self.text[: earlier.end] != earlier.text[: earlier.end]:
            return None
        return self._parts_from(earlier.end, len(earlier.messages))

    def last_part(self) -> TemplateText:
        """Return the template's text behind all messages: the prompt for the next turn."""
        return TemplateText(self.text[self.end :])

    def _parts_from(self, start: int, known: int) -> list[Part]:
        """Return the parts of the text from `start`, which must show the messages from number `known`, and no other."""
        parts = parse(self.text, self.mark, self.shapes, start)
        require_all(parts, self.messages, self.opening, known)
        return parts


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

    def render(
        self,
        messages: tuple[ChatMessage, ...],
        tools: Tools,
        opening: int,
        shapes: Sequence[TurnShape],
        later: Sequence[ChatMessage] = (),
    ) -> Rendering:
        """Render messages and the prompt for the assistant's next turn.

        Args:
            messages: the conversation so far.
            tools: schemas of the tools.
            opening: number of first messages in which the assistant's text was given, not sampled.
            shapes: shape of each sampled turn.
            later: messages with which the rendering will be `continued`.

        Raises:
            ValueError: the template fails or refuses.
        """
        mark = self._unused_mark([message.content for message in (*messages, *later)], tools)
        return self._rendered(messages, tools, opening, tuple(shapes), mark, ())

    def continued(self, earlier: Rendering, messages: Sequence[ChatMessage], shape: TurnShape) -> Rendering:
        """Render a conversation anew after a turn of the policy, and after what the world said to it.

        Args:
            earlier: the rendering before the turn.
            messages: the turn, and the messages to it. The mark of `earlier` does not occur in them.
            shape: shape of the turn.

        Raises:
            ValueError: the template fails or refuses.
        """
        every, shapes = (*earlier.messages, *messages), (*earlier.shapes, shape)
        return self._rendered(every, earlier.tools, earlier.opening, shapes, earlier.mark, earlier.written)

    def _rendered(
        self,
        messages: tuple[ChatMessage, ...],
        tools: Tools,
        opening: int,
        shapes: tuple[TurnShape, ...],
        mark: str,
        known: Sequence[Mapping[str, Any]],
    ) -> Rendering:
        written = list(known)
        turns = iter(range(sum(each.role == "assistant" for each in messages[opening : len(known)]), len(shapes)))
        for number, message in enumerate(messages[len(known) :], len(known)):
            if message.role == "assistant" and number >= opening:
                turn = next(turns)
                content = _turn_text(mark, turn, shapes[turn])
            else:
                content = _between_marks(mark, number, message.content)
            named = {"name": message.name} if message.name else {}
            written.append({"role": message.role, "content": content, **named})
        text = self.text(written, tools)
        end = text.find("x", text.rfind(mark) + len(mark)) + 1 if mark in text else 0
        return Rendering(messages, tools, opening, shapes, mark, tuple(written), text, end, self)

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
