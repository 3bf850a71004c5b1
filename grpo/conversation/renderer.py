"""Token in, token out: the next prompt is the tokens so far, and the chat template's tokens for what the world said."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from grpo.conversation.calls import CallStyle, call_style, calls_in
from grpo.conversation.marked_template import MarkedTemplate, Rendering
from grpo.conversation.parts import Part, TemplateText, TurnPlace, TurnShape, WorldText, require_same_header
from grpo.conversation.plain_text import PlainTokenizer, strings
from grpo.conversation.segments import Conversation, Segment
from grpo.messages import ChatMessage, Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rewriting = Literal["follow", "keep"]
_WORLD: tuple[Role, ...] = ("user", "tool", "system")
_QUESTION = {"role": "user", "content": 'Two "quoted" words,\nand 3 < 4.'}


class ChatRenderer:
    """The tokens of conversations in a policy's chat template.

    The template is rendered before and after what the world said. The difference is the tokens to append. What the
    policy sampled is never rendered and never tokenised again. Text of the world has no special tokens. A conversation
    keeps its last rendering, so that each answer of the world costs only one.

    Attributes:
        refusals: role -> why this role cannot answer the policy in this template. A role that is not here can.
        rewrites_after: roles after whose message the template drops an earlier thought. There a conversation continues
            with a segment that `rewrites`; with `rewriting="keep"` there is no such role.
        calls: how the policy writes tool calls; None if neither template nor vocabulary tells.
        begins_in_thought: whether the template opens `<think>` before each turn of the policy.
        end_ids: tokens that end a turn of the policy.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        options: Mapping[str, Any] | None = None,
        end_ids: Collection[int] = (),
        rewriting: Rewriting = "follow",
    ) -> None:
        """Read the chat template, and try it on conversations of two turns.

        Args:
            tokenizer: tokenizer of the policy, with its chat template.
            options: variables of the template, for example `{"enable_thinking": False}`.
            end_ids: tokens that end a turn, beside the tokenizer's end of sequence: those of `generation_config.json`.
            rewriting: `follow` drops from the history what the template drops; `keep` leaves the history as it is.

        Raises:
            ValueError: tokenizer or template cannot be used for conversations; the message says why.
        """
        self._tokenizer = tokenizer
        self._plain = PlainTokenizer(tokenizer)
        self._template = MarkedTemplate(tokenizer, options or {})
        self._keeps = rewriting == "keep"
        if rewriting not in ("follow", "keep"):
            raise ValueError(f"rewriting={rewriting!r}; expected 'follow' or 'keep'")
        self.end_ids = frozenset([*end_ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])])
        if not self.end_ids:
            raise ValueError("the policy's tokenizer has no end-of-sequence token, so no turn could end; set eos_token")
        self.calls: CallStyle | None = call_style(str(tokenizer.chat_template), self._plain.added)
        _, opened, thought = self._template.text([_QUESTION], ()).rpartition("<think>")
        self.begins_in_thought = bool(opened) and "</think>" not in thought
        self.refusals: dict[Role, str] = {}
        self.rewrites_after: frozenset[Role] = frozenset()
        self._try_roles()

    def begin(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]] = ()) -> Conversation:
        """Return a conversation that has only its first prompt.

        Args:
            messages: messages before the policy's first turn. Messages of the assistant among them are given text, in
                which special tokens are ordinary text too.
            tools: schemas of the tools, as `transformers.utils.get_json_schema` makes them.

        Raises:
            ValueError: the template cannot write the messages, does not show the tools, or a schema spells a special
                token.
        """
        messages, tools = tuple(messages), tuple(tools)
        if tools:
            self._require_shown(messages, tools)
        rendering = self._template.render(messages, tools, len(messages), ())
        prompt = Segment(tuple(self._ids(rendering.parts(), ())))
        return Conversation.begin(messages, prompt, tools, rendering)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, in which special tokens are ordinary text."""
        return len(self._plain.encode(text)) if text else 0

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text as a policy writes it: special tokens in it stand for themselves."""
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, with the special tokens among them."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def turn_message(self, turn: Segment) -> ChatMessage:
        """Return a sampled turn as a message, with its calls."""
        text = self._turn_text(turn)
        calls = calls_in(text, self.calls, begins_in_thought=self.begins_in_thought) if self.calls else ()
        return ChatMessage("assistant", text, calls=calls)

    def answered(self, conversation: Conversation, messages: Sequence[ChatMessage]) -> Conversation:
        """Return the conversation after the world answered the policy's last turn.

        The new segment has the tokens that follow the turn: its end if that was not sampled, then the messages. If the
        template rewrites the history, the segment replaces all tokens so far.

        Args:
            conversation: a conversation that ends with a turn of the policy. The texts of its turns are those of
                `turn_message`.
            messages: what the world says to it.

        Raises:
            ValueError: the template cannot write the messages in this place.
        """
        if not conversation.segments[-1].sampled or not messages:
            raise ValueError("an answer needs a conversation that ends with a turn of the policy, and messages to it")
        for message in messages:
            if message.role == "assistant" or message.role in self.refusals:
                why = self.refusals.get(message.role, "only the policy speaks as the assistant")
                raise ValueError(f"a message of {message.role!r} cannot answer the policy: {why}")
        new = (conversation.messages[-1], *messages)
        before = self._before_turn(conversation, new)
        after = self._template.continued(before, new, self._shape(new[0]))
        return conversation.with_answer(messages, self._given(before, after, conversation.turns), after)

    def _before_turn(self, conversation: Conversation, new: Sequence[ChatMessage]) -> Rendering:
        """Return the rendering of the conversation without its last turn, whose mark is not in the new messages."""
        history = (conversation.messages[:-1], conversation.tools, conversation.opening)
        kept = conversation.rendering
        if kept is not None and kept.goes_on(self._template, history, new):
            return kept
        spoken = [message for message in history[0][conversation.opening :] if message.role == "assistant"]
        rendering = self._template.render(*history, [self._shape(message) for message in spoken], new)
        rendering.parts()  # Refuses a template that takes the messages apart.
        return rendering

    def _shape(self, turn: ChatMessage) -> TurnShape:
        return TurnShape.of(turn.content, self.begins_in_thought)

    def _given(self, before: Rendering, after: Rendering, turns: Sequence[Segment]) -> Segment:
        """Return the tokens of the world's answer: those after the last of `turns`, or all of a rewritten history."""
        last = len(turns) - 1
        begun: list[Part] = [before.last_part()]
        parts = after.parts_behind(before)
        if parts is None:
            begun, parts = before.parts(), after.parts()
        at = next(at for at, part in enumerate(parts) if isinstance(part, TurnPlace) and part.turn == last)
        require_same_header(begun[-1], parts[at - 1])
        whole = TurnPlace(last, whole=True)
        if self._keeps or parts[: at + 1] == [*begun, whole]:
            appended = self._ids([whole, *parts[at + 1 :]], turns)
            return Segment(tuple(appended[len(turns[-1].token_ids) :]))
        return Segment(tuple(self._ids(after.parts(), turns)), rewrites=True)

    def _ids(self, parts: Sequence[Part], turns: Sequence[Segment]) -> list[int]:
        """Return the tokens of rendered parts. Turns are copied; text between special tokens is encoded in one piece.

        One piece, because the tokenizer would merge characters of the template and of the world there too.
        """
        ids: list[int] = []
        run = ""
        # Between a turn and its end in the template; the end is left out where the policy sampled it.
        closing = ended = False
        for piece in self._pieces(parts):
            if isinstance(piece, str):
                run += piece
                continue
            if closing:
                self._require_end(run, piece)
            ids += self._plain.encode(run) if run else []
            run = ""
            if isinstance(piece, TurnPlace):
                turn = turns[piece.turn].token_ids
                ids += turn if piece.whole else turn[self._answer_start(turn) :]
                closing, ended = True, turn[-1] in self.end_ids
            elif closing:
                ids += [] if ended else [piece]
                closing = False
            else:
                ids.append(piece)
        if closing:
            self._require_end(run, "")
        return ids + (self._plain.encode(run) if run else [])

    def _require_end(self, run: str, piece: str | int | TurnPlace) -> None:
        """Refuse a template whose text after a turn does not begin with a token that ends a turn."""
        if run or piece not in self.end_ids:
            shown = run or (self._names([piece])[0] if isinstance(piece, int) else "")
            raise ValueError(
                f"the policy's chat template writes {shown!r:.60} after the assistant's text, but a turn of the "
                f"policy ends with one of {self._names(self.end_ids)}; set eos_token_id in generation_config.json to "
                "the token that the template writes there"
            )

    def _pieces(self, parts: Sequence[Part]) -> Iterator[str | int | TurnPlace]:
        for part in parts:
            if isinstance(part, TemplateText):
                yield from self._plain.pieces(part.text)
            else:
                yield part.text if isinstance(part, WorldText) else part

    def _answer_start(self, turn: Sequence[int]) -> int:
        """Return where the answer begins in a turn: behind the thought and the new lines that follow it.

        Where a token reaches from the thought into the answer, the turn cannot be cut there, and stays whole (0).
        """
        if "</think>" not in self._decode(turn):
            return 0
        low, high = 1, len(turn)  # The first `high` tokens contain </think>.
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if "</think>" in self._decode(turn[:middle]) else (middle + 1, high)
        if self._decode(turn[:low]).partition("</think>")[2].strip("\n"):
            return 0
        while low < len(turn) and set(self._decode(turn[low : low + 1])) == {"\n"}:
            low += 1
        return low

    def _turn_text(self, turn: Segment) -> str:
        ids = turn.token_ids
        return self._decode(ids[:-1] if ids[-1] in self.end_ids else ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _names(self, ids: Collection[int]) -> list[str]:
        return [str(self._tokenizer.convert_ids_to_tokens(token)) for token in sorted(ids)]

    def _require_shown(self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> None:
        for text in strings(list(tools)):
            special = next((piece for piece in self._plain.pieces(text) if isinstance(piece, int)), None)
            if special is not None:
                raise ValueError(
                    f"the schema of a tool spells the special token {self._names([special])[0]!r} in {text!r:.200}; "
                    "change its name, its docstring or its arguments"
                )
        written = [{"role": message.role, "content": message.content} for message in messages]
        if self._template.text(written, tools) == self._template.text(written, ()):
            raise ValueError(
                "the policy's chat template does not show tools to the policy; take a template that does, or describe "
                "the tools in a system message"
            )

    def _try_roles(self) -> None:
        """Try what each role says to the policy, with and without a thought before it.

        Raises:
            ValueError: no role can answer the policy.
        """
        rewriting = set()
        for role in _WORLD:
            try:
                self._try_role(role)
                if not self._keeps and any(segment.rewrites for segment in self._trial(role, thought=True).segments):
                    rewriting.add(role)
            except ValueError as problem:
                self.refusals[role] = str(problem)
        if "user" in self.refusals and "tool" in self.refusals:
            raise ValueError(self.refusals["user"])
        self.rewrites_after = frozenset(rewriting)

    def _try_role(self, role: Role) -> None:
        conversation = self._trial(role, thought=False)
        if self._keeps:
            return
        written = [{"role": message.role, "content": message.content} for message in conversation.messages]
        expected = self._tokenizer(self._template.text(written, ()), add_special_tokens=False)["input_ids"]
        if list(conversation.context) != list(expected):
            raise ValueError(
                "the tokens of a trial conversation, put together turn by turn, are not those of the policy's chat "
                "template for the whole conversation, so the template or the tokenizer changes text by what stands "
                "beside it"
            )

    def _trial(self, role: Role, thought: bool) -> Conversation:
        opening = [ChatMessage("user", _QUESTION["content"])]
        conversation = self.begin(opening)
        for answer in ("It is so.", "Again: 5."):
            text = f"<think>\nHm.\n</think>\n\n{answer}" if thought else answer
            ids = [token for piece in self._plain.pieces(text) for token in self._piece_ids(piece)]
            ids.append(min(self.end_ids) if self._tokenizer.eos_token_id is None else self._tokenizer.eos_token_id)
            turn = Segment(tuple(ids), True, (0.0,) * len(ids), (0,) * len(ids))
            conversation = conversation.with_turn(ChatMessage("assistant", text), turn)
            messages = [ChatMessage(role, "The 'world' says\nso: {1: 2}.")]
            conversation = self.answered(conversation, messages)
        return conversation

    def _piece_ids(self, piece: str | int) -> list[int]:
        return self._plain.encode(piece) if isinstance(piece, str) else [piece]
