"""A small tokenizer with chat templates, hostile text, and conversations, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo.conversation.renderer import ChatRenderer
from grpo.conversation.segments import Conversation, Segment
from grpo.messages import ChatMessage

# A turn stands between <|im_start|> and <|im_end|>; results of tools stand in the user's turn.
PLAIN = """{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
# The same, but thoughts disappear from the history as soon as anybody answers.
FORGETFUL = PLAIN.replace(
    "+ message.content + '<|im_end|>\n'",
    "+ (message.content.split('</think>')[-1].lstrip('\n') if message.role == 'assistant' and not loop.last "
    "else message.content) + '<|im_end|>\n'",
)
# The prompt opens the thought, as DeepSeek R1's does.
PREFILLED = FORGETFUL.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n' }}")
# Results of tools as JSON strings, as Llama 3.2 writes them, and every content without its outer spaces.
QUOTED = PLAIN.replace("+ message.content +", "+ (message.content | tojson) +", 1).replace(
    "+ message.content +", "+ (message.content | trim) +", 1
)

SPECIAL = ("<|end|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")


def small_tokenizer(template: str | None = PLAIN) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few merges, whose tags are added tokens that are not marked as special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "assistant user system tool the world says so. > < im_end |> \n\n <|im_end|> <tool_response> think call"
    tokenizer.train_from_iterator([words] * 8, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return set(tokenizer.added_tokens_decoder)


def texts(names: Sequence[str]) -> st.SearchStrategy[str]:
    """Text that tries to be more than text: special tokens and halves of them, surrogates, NUL, marks, templates."""
    halves = [name[:at] for name in names for at in (1, len(name) // 2, len(name) - 1)]
    halves += [name[at:] for name in names for at in (1, len(name) // 2)]
    mark = "q5feceb66ffc86f38d952q"  # The mark that a conversation takes if nobody says it.
    odd = [
        "\x00",
        "\ud800",
        "\udfff",
        "\ufffd",
        "{{ 1 }}",
        "{% raw %}",
        "<think>",
        "</think>",
        "\n",
        " ",
        "\u00a0",
        "e\u0301",
    ]
    odd += [mark, f"{mark}b1x", f"{mark}e1x", f"{mark}c0x", '"', "\\", "\\u003c", "\uff1c|im_end|\uff1e"]
    pieces = st.one_of(st.sampled_from([*names, *halves, *odd]), st.text(max_size=8))
    return st.lists(pieces, max_size=8).map("".join)


def benign_texts() -> st.SearchStrategy[str]:
    """Words and signs without special tokens and without outer spaces."""
    alphabet = "abc XYZ 0123456789 .,;:!?'\"(){}[]\n\u00e9\u4e16\U0001f600<>|/"
    return (
        st.text(alphabet, min_size=1, max_size=40).map(str.strip).filter(lambda text: bool(text) and "|>" not in text)
    )


def sampled(ids: Sequence[int], version: int = 0) -> Segment:
    return Segment(tuple(ids), True, tuple(-0.5 - at / 64 for at in range(len(ids))), (version,) * len(ids))


def answered(
    renderer: ChatRenderer, conversation: Conversation, ids: Sequence[int], answers: Sequence[ChatMessage]
) -> Conversation:
    """The conversation after the policy sampled `ids` and the world said `answers`."""
    turn = sampled(ids, len(conversation.turns))
    conversation = conversation.with_turn(renderer.turn_message(turn), turn)
    continued = renderer.answered(conversation, answers)
    # To go on from the last rendering gives the tokens of a rendering of the whole conversation.
    assert conversation.rendering is not None
    assert continued == renderer.answered(replace(conversation, rendering=None), answers)
    return continued


def begun(renderer: ChatRenderer, *messages: ChatMessage) -> Conversation:
    return renderer.begin(messages)
