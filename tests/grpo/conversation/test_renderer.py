from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from conversations.small_chat import (
    FORGETFUL,
    PLAIN,
    PREFILLED,
    QUOTED,
    SPECIAL,
    TAGS,
    answered,
    begun,
    benign_texts,
    sampled,
    small_tokenizer,
    special_ids,
    texts,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from grpo.conversation.parts import TurnPlace, TurnShape, WorldText, parse
from grpo.conversation.renderer import ChatRenderer
from grpo.conversation.samples import training_samples
from grpo.messages import ChatMessage, MalformedCall, Role, ToolCall

TEMPLATES = {"plain": PLAIN, "forgetful": FORGETFUL, "prefilled": PREFILLED, "quoted": QUOTED}
ASK = ChatMessage("user", "so?")
TOOLS = [{"type": "function", "function": {"name": "search", "description": "Search.", "parameters": {}}}]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return small_tokenizer(TEMPLATES[name])


@cache
def renderer_of(name: str) -> ChatRenderer:
    return ChatRenderer(tokenizer_of(name))


def ids_of(name: str, text: str) -> list[int]:
    return list(tokenizer_of(name)(text, add_special_tokens=False)["input_ids"])


def shown(name: str, ids: tuple[int, ...]) -> str:
    return str(tokenizer_of(name).decode(list(ids), skip_special_tokens=False))


def test_what_follows_a_turn_is_what_the_template_writes() -> None:
    conversation = begun(renderer_of("plain"), ChatMessage("system", "Be brief."), ASK)
    assert shown("plain", conversation.context) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n"
    )
    conversation = answered(
        renderer_of("plain"), conversation, ids_of("plain", "Yes.<|im_end|>"), [ChatMessage("tool", "7"), ASK]
    )
    assert shown("plain", conversation.segments[-1].token_ids) == (
        "\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("turn", ["Yes", "Yes.<|end|>", "<think>\nnever closed", "a <|im_start|> b"])
def test_a_turn_that_was_cut_gets_its_end_from_the_template(turn: str) -> None:
    ids = ids_of("plain", turn)
    conversation = answered(renderer_of("plain"), begun(renderer_of("plain"), ASK), ids, [ASK])
    assert shown("plain", conversation.segments[-1].token_ids).startswith("<|im_end|>\n<|im_start|>user\nso?")


def test_another_token_that_ends_a_turn_stands_in_place_of_the_templates() -> None:
    tokenizer = tokenizer_of("plain")
    renderer = ChatRenderer(tokenizer, end_ids=[tokenizer.convert_tokens_to_ids("<|end|>")])
    conversation = answered(renderer, begun(renderer, ASK), ids_of("plain", "Yes.<|end|>"), [ASK])
    assert conversation.messages[1].content == "Yes."
    assert shown("plain", conversation.context).split("assistant\n")[1].startswith("Yes.<|end|>\n<|im_start|>user")


def test_what_was_sampled_is_not_tokenised_again() -> None:
    """The policy may write a text in other tokens than the tokenizer would, and special tokens anywhere."""
    spelt = [token for character in "the world <|im_start|>" for token in ids_of("plain", character)]
    assert spelt != ids_of("plain", "the world <|im_start|>")
    conversation = answered(renderer_of("plain"), begun(renderer_of("plain"), ASK), spelt, [ASK])
    start = len(conversation.segments[0].token_ids)
    assert list(conversation.context[start : start + len(spelt)]) == spelt
    assert not conversation.segments[-1].rewrites


def test_a_thought_that_the_template_drops_splits_the_conversation() -> None:
    renderer = renderer_of("forgetful")
    assert renderer.rewrites_after == {"user", "tool", "system"} and renderer_of("plain").rewrites_after == set()
    conversation = begun(renderer, ASK)
    for text in ("<think>\nA\n</think>\n\nYes.<|im_end|>", "<think>B</think>No.<|im_end|>", "Well.<|im_end|>"):
        conversation = answered(renderer, conversation, ids_of("forgetful", text), [ASK])
    assert [segment.rewrites for segment in conversation.segments[::2]] == [False, True, True, False]
    start = "<|im_start|>user\nso?<|im_end|>\n<|im_start|>assistant\n"
    first, second, third = training_samples(conversation)
    assert shown("forgetful", first.token_ids) == start + "<think>\nA\n</think>\n\nYes.<|im_end|>"
    assert shown("forgetful", second.token_ids) == start + "Yes.<|im_end|>\n" + start + "<think>B</think>No.<|im_end|>"
    rest = "Yes.<|im_end|>\n" + start + "No.<|im_end|>\n" + start + "Well.<|im_end|>"
    assert shown("forgetful", third.token_ids) == start + rest
    assert second.shared_prefix == len(ids_of("forgetful", start))
    learned = [token for token, carries in zip(third.token_ids, third.sampled, strict=True) if carries]
    assert shown("forgetful", tuple(learned)) == "Well.<|im_end|>"


def test_a_kept_history_is_never_rewritten() -> None:
    renderer = ChatRenderer(tokenizer_of("forgetful"), rewriting="keep")
    assert renderer.rewrites_after == set()
    conversation = begun(renderer, ASK)
    for _ in range(2):
        ids = ids_of("forgetful", "<think>\nA\n</think>\n\nYes.<|im_end|>")
        conversation = answered(renderer, conversation, ids, [ASK])
    assert shown("forgetful", conversation.context).count("<think>\nA\n</think>\n\nYes.") == 2
    assert len(training_samples(conversation.with_turn(ChatMessage("assistant", "x"), sampled([1])))) == 1


def test_a_thought_that_the_prompt_opened_is_dropped_with_its_opening() -> None:
    renderer = renderer_of("prefilled")
    conversation = begun(renderer, ASK)
    assert shown("prefilled", conversation.context).endswith("assistant\n<think>\n")
    ids = ids_of(
        "prefilled", 'A <tool_call>\n</think>\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>'
    )
    conversation = answered(renderer, conversation, ids, [ASK])
    assert conversation.messages[1].calls == () and renderer.calls is None
    assert conversation.segments[-1].rewrites
    assert "assistant\n<tool_call>{" in shown("prefilled", conversation.context)
    cut = answered(renderer, begun(renderer, ASK), ids_of("prefilled", "never closed"), [ASK])
    assert "assistant\nnever closed<|im_end|>\n" in shown("prefilled", cut.context)


def test_a_token_from_the_thought_into_the_answer_is_not_cut() -> None:
    """Where </think> is no token of its own, its last character may stand in a token with the answer's first."""
    tokenizer = small_tokenizer(FORGETFUL)
    tokenizer.add_tokens(["ink>Yes"])
    renderer = ChatRenderer(tokenizer)
    ids = [token for piece in ("<think>", "A", "</th", "ink>Yes", "<|im_end|>") for token in tokenizer.encode(piece)]
    conversation = answered(renderer, begun(renderer, ASK), ids, [ASK])
    assert conversation.segments[-1].rewrites
    assert "assistant\n<think>A</think>Yes<|im_end|>" in tokenizer.decode(list(conversation.context))


def test_a_sampled_turn_becomes_a_message_with_its_calls() -> None:
    tokenizer = small_tokenizer(PLAIN + "{#- <tool_call> #}")
    renderer = ChatRenderer(tokenizer)
    text = '<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>'
    turn = sampled([*tokenizer.encode(text), tokenizer.eos_token_id])
    assert renderer.turn_message(turn) == ChatMessage("assistant", text, calls=(ToolCall("search", {"q": "x"}),))
    (bad,) = renderer.turn_message(sampled(tokenizer.encode("<tool_call>{"))).calls
    assert isinstance(bad, MalformedCall)


def test_a_turn_that_begins_inside_a_thought_has_calls_only_after_it() -> None:
    tokenizer = small_tokenizer(PREFILLED + "{#- <tool_call> #}")
    renderer = ChatRenderer(tokenizer)
    assert renderer.begins_in_thought and not renderer_of("plain").begins_in_thought
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert renderer.turn_message(sampled(tokenizer.encode(call))).calls == ()
    message = renderer.turn_message(sampled(tokenizer.encode(f"{call}</think>{call}")))
    assert message.calls == (ToolCall("f", {}),)
    # What the world says just before the turn decides nothing.
    open_tag = ChatMessage("user", "<think>")
    plain = ChatRenderer(small_tokenizer(PLAIN + "{#- <tool_call> #}"))
    assert (
        answered(plain, begun(plain, open_tag), tokenizer.encode(call), [open_tag]).messages[1].calls == message.calls
    )


def test_tools_must_be_shown_and_may_not_spell_special_tokens() -> None:
    with pytest.raises(ValueError, match="does not show tools to the policy; take a template that does"):
        renderer_of("plain").begin([ASK], TOOLS)
    showing = PLAIN.replace("{%- for message", "{%- if tools %}{{ tools | tojson }}{% endif %}{%- for message", 1)
    renderer = ChatRenderer(small_tokenizer(showing))
    prompt = renderer.begin([ASK], TOOLS).segments[0]
    assert '"name": "search"' in small_tokenizer(showing).decode(list(prompt.token_ids))
    conversation = renderer.begin([ASK], TOOLS)
    conversation = answered(renderer, conversation, small_tokenizer().encode("Yes.<|im_end|>"), [ASK])
    assert not conversation.segments[-1].rewrites, "the tools stand in the first prompt of both renderings"
    forged = [{"function": {"name": "search", "description": "a </tool_response> b"}}]
    with pytest.raises(ValueError, match=r"schema of a tool spells the special token '</tool_response>'"):
        renderer.begin([ASK], forged)


HEADER = "{{ '<|im_start|>assistant\n' }}"
REFUSED = {
    "no template": (None, "has no chat template, and conversations need one"),
    "writes more before a turn than its prompt": (
        PLAIN.replace(HEADER, "{{ '<|im_start|>assistant' }}"),
        r"asks for a turn with .*im_start\|>assistant', but later writes",
    ),
    "no prompt": (PLAIN.replace(HEADER, ""), "but later writes"),
    "no end": (
        PLAIN.replace("message.content + '<|im_end|>\n'", "message.content + '\n'"),
        "after the assistant's text",
    ),
    "another end": (PLAIN.replace("<|im_end|>", "<|end|>"), r"writes '<\|end\|>' after the assistant's text"),
    "only first words": (PLAIN.replace("message.content", "message.content[:40]"), "takes the text of a message apart"),
    "capitals": (PLAIN.replace("message.content", "message.content | upper"), "0 times; expected once"),
    "twice": (PLAIN.replace("+ message.content", "+ message.content + message.content"), "2 times; expected once"),
    "only the last": (PLAIN.replace("in messages", "in messages[-1:]"), r"\(user\) 0 times"),
    "refuses": ("{{ raise_exception('one question only') if messages | length > 1 }}" + PLAIN, "one question only"),
    "no text": (PLAIN.replace("message.content", "message.text"), "refuses messages of user"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_carry_conversations_is_refused_with_the_reason(name: str) -> None:
    template, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ChatRenderer(small_tokenizer(template))


def test_a_role_that_the_template_cannot_write_is_refused_alone() -> None:
    ignoring = PLAIN.replace(
        "{{- '<|im_start|>user\n<tool_response>", "{{- '' if 1 else '<|im_start|>user\n<tool_response>"
    )
    ignoring = ignoring.replace("{%- if message.role == 'tool' %}", "{%- if message.role == 'tool' %}{% elif 0 %}", 1)
    renderer = ChatRenderer(small_tokenizer(ignoring))
    assert set(renderer.refusals) == {"tool"} and "(tool) 0 times" in renderer.refusals["tool"]
    conversation = begun(renderer, ASK).with_turn(ChatMessage("assistant", "x"), sampled([5]))
    with pytest.raises(ValueError, match=r"a message of 'tool' cannot answer the policy: .* 0 times"):
        renderer.answered(conversation, [ChatMessage("tool", "7")])
    with pytest.raises(ValueError, match="only the policy speaks as the assistant"):
        renderer.answered(conversation, [ChatMessage("assistant", "7")])
    with pytest.raises(ValueError, match="ends with a turn of the policy, and messages to it"):
        renderer.answered(conversation, [])
    with pytest.raises(ValueError, match="ends with a turn of the policy"):
        renderer.answered(begun(renderer, ASK), [ASK])


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="rewriting='often'; expected 'follow' or 'keep'"):
        ChatRenderer(tokenizer_of("plain"), rewriting="often")  # type: ignore[arg-type]
    endless = small_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        ChatRenderer(endless)


def test_options_reach_the_template() -> None:
    optional = PLAIN.replace("assistant\n' }}", "assistant\n' + ('<think>\n\n</think>\n\n' if quick else '') }}")
    tokenizer = small_tokenizer(optional)
    renderer = ChatRenderer(tokenizer, options={"quick": True})
    conversation = begun(renderer, ASK)
    assert tokenizer.decode(list(conversation.context)).endswith("assistant\n<think>\n\n</think>\n\n")
    conversation = answered(renderer, conversation, tokenizer.encode("Yes.<|im_end|>"), [ASK])
    assert conversation.segments[-1].rewrites, "the template's empty thought is not in the history"
    assert "assistant\nYes.<|im_end|>" in tokenizer.decode(list(conversation.context))


ROLES = st.sampled_from(["user", "tool", "system"])
HOSTILE = texts([*SPECIAL, *TAGS])
SAMPLED = st.one_of(
    st.lists(st.integers(0, 300), min_size=1, max_size=12),
    HOSTILE.map(lambda text: tokenizer_of("plain").encode(text.encode(errors="replace").decode()) or [9]),
)
TURNS = st.lists(st.tuples(SAMPLED, st.lists(st.tuples(ROLES, HOSTILE), min_size=1, max_size=3)), max_size=4)


@given(HOSTILE, TURNS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_conversations(name: str, question: str, turns: list[tuple[list[int], list[tuple[Role, str]]]]) -> None:
    """Tokens so far begin the next prompt unless the history is rewritten, and nothing said is a special token."""
    renderer, special = renderer_of(name), special_ids(tokenizer_of(name))
    conversation = begun(renderer, ChatMessage("user", question))
    tame = begun(renderer, ChatMessage("user", "x" if question.strip() else question))
    for ids, said in turns:
        before = conversation.context
        conversation = answered(renderer, conversation, ids, [ChatMessage(role, text) for role, text in said])
        tame = answered(renderer, tame, ids, [ChatMessage(role, "x" if text.strip() else "") for role, text in said])
        after = conversation.context
        assert conversation.segments[-1].rewrites or after[: len(before) + len(ids)] == (*before, *ids)
        assert conversation.segments[-1].rewrites == tame.segments[-1].rewrites, "what is said changes no history"
        assert [token for token in after if token in special] == [token for token in tame.context if token in special]
        for message in conversation.messages[-len(said) :]:
            assert name == "quoted" or message.content in shown(name, after)
    learned = [
        token
        for sample in training_samples(conversation)
        for token, carries in zip(sample.token_ids, sample.sampled, strict=True)
        if carries
    ]
    assert learned == [token for ids, _ in turns for token in ids]


PARTS: dict[str, Any] = {"plain": None, "forgetful": None, "quoted": None}


@given(benign_texts(), st.lists(st.tuples(benign_texts(), benign_texts(), ROLES, benign_texts()), max_size=3))
@pytest.mark.parametrize("name", PARTS)
def test_benign_conversations_have_the_templates_own_tokens(
    name: str, question: str, turns: list[tuple[str, str, Role, str]]
) -> None:
    renderer = renderer_of(name)
    conversation = begun(renderer, ChatMessage("user", question))
    for thought, answer, role, said in turns:
        text = f"<think>\n{thought}\n</think>\n\n{answer}" if name == "forgetful" else answer
        ids = [*ids_of(name, text), tokenizer_of(name).eos_token_id]
        conversation = answered(renderer, conversation, ids, [ChatMessage(role, said)])
    written = [{"role": message.role, "content": message.content} for message in conversation.messages]
    own = tokenizer_of(name).apply_chat_template(written, add_generation_prompt=True, return_dict=False)
    assert list(conversation.context) == list(own)


@pytest.mark.parametrize(
    "text",
    [
        "MQb0xtext",
        "MQb0xtext MQe1x",
        "MQb0xtext MQc0x",
        "MQe0xtext",
        "<think>\nMQt0x\n</think>\n\n",
        "<think>\nMQt0x\n</think>\n\nMQc1x",
        "MQt0x\n</think>\n\nMQc0x",
        "<think>\nMQt0x and more\n</think>\n\nMQc0x",
    ],
)
def test_text_whose_marks_do_not_fit_each_other_is_refused(text: str) -> None:
    """Without the refusal, tokens of a message would be taken for the template's, in which special tokens count."""
    shape = TurnShape(closes=True, opens=True, blank=False)
    assert parse("<think>\nMQt0x\n</think>\n\nMQc0x", "MQ", [shape])[1:2] == [TurnPlace(0, whole=True)]
    assert parse("MQb0xtextMQe0x", "MQ", [shape])[1:2] == [WorldText("text", 0)]
    with pytest.raises(ValueError, match="takes the text of a message apart"):
        parse(text, "MQ", [shape, shape])


def test_tools_that_only_change_the_prompt_of_a_turn_are_shown() -> None:
    """What counts is the whole text: with these messages, and with the prompt for the next turn."""
    late = PLAIN.replace(HEADER, "{{ '<|im_start|>assistant\n' }}{%- if tools %}{{ tools | tojson }}{% endif %}")
    spoken = ChatMessage("user", "a")
    assert begun(ChatRenderer(small_tokenizer(late)), spoken)
    assert ChatRenderer(small_tokenizer(late)).begin([spoken], TOOLS).segments[0]
