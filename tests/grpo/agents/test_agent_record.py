"""Calls as sequences: token in, token out, forks, sub-agents, rewritten histories, limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conversations.made_up import prompt_of
from conversations.scripted_policy import ADD, CALL, WITH_TOOLS, ScriptedPolicy, small_record, small_renderer
from conversations.small_chat import FORGETFUL
from transformers import PreTrainedTokenizerFast

from grpo.agents import record as record_module
from grpo.agents.record import AgentRecord
from grpo.agents.replies import AgentReply, completed
from grpo.agents.requests import RefusedCall, read_call
from grpo.conversation.renderer import ChatRenderer
from grpo.messages import ConversationEnd
from grpo.types import Completion, VersionSpan

USER: dict[str, Any] = {"role": "user", "content": "What is 2+3?"}


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return small_renderer()


@pytest.fixture(scope="module")
def policy() -> ScriptedPolicy:
    return ScriptedPolicy(lambda prompt: None)


class Client:
    """A client of a record, without the server between them."""

    def __init__(self, record: AgentRecord, policy: ScriptedPolicy) -> None:
        self.record, self.policy = record, policy
        self.prompts: list[tuple[int, ...]] = []
        self.seeds: list[int] = []
        self.turns: list[Completion] = []

    def say(self, messages: list[dict[str, Any]], answer: str, **fields: Any) -> dict[str, Any]:
        """Call with messages, let the policy say `answer`, and return the message that the client gets."""
        return json.loads(completed(self.reply(messages, answer, **fields), "policy"))["choices"][0]["message"]

    def reply(self, messages: list[dict[str, Any]], answer: str, **fields: Any) -> AgentReply:
        body = json.dumps({"model": "policy", "messages": messages, **fields}).encode()
        opened = self.record.begin(read_call(body, "policy", 1.0))
        self.prompts.append(opened.prompt_ids)
        self.seeds.append(opened.seed)
        self.turns.append(self.policy.completion(answer, opened.max_tokens, version=len(self.turns)))
        return self.record.answer(opened, self.turns[-1], f"chatcmpl-{len(self.turns)}")

    def played(self) -> Completion:
        played = self.record.result(ConversationEnd.OVER)
        assert played is not None
        return played


def loss_tokens(played: Completion) -> list[tuple[int, float]]:
    """(token, log-probability) of each token that carries loss."""
    pairs = []
    for part in (played, *played.further):
        given = {at for start, stop in part.given for at in range(start, stop)}
        pairs += [
            (token, logprob)
            for at, (token, logprob) in enumerate(zip(part.token_ids, part.logprobs, strict=True))
            if at not in given
        ]
    return pairs


def sampled_tokens(client: Client) -> list[tuple[int, float]]:
    return [pair for turn in client.turns for pair in zip(turn.token_ids, turn.logprobs, strict=True)]


def test_a_continued_call_reads_the_tokens_that_were_sampled(renderer: ChatRenderer, policy: ScriptedPolicy) -> None:
    client = Client(small_record(renderer), policy)
    first = client.say([USER], CALL, tools=[ADD])
    assert first["content"] is None and first["tool_calls"][0]["function"]["name"] == "add"
    assert json.loads(first["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}
    result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "5 <|im_end|>"}
    second = client.say([USER, first, result], "It is so: five", tools=[ADD])
    assert second == {"role": "assistant", "content": "It is so: five"}

    between = client.prompts[1][len(client.prompts[0]) + len(client.turns[0].token_ids) :]
    assert client.prompts[1] == client.prompts[0] + client.turns[0].token_ids + between
    # What a tool says has no special tokens: the only end of a turn in it is the template's.
    eos = policy.tokenizer.eos_token_id
    assert between.count(eos) == 1 and "5 <|im_end|>" in policy.text(between)
    played = client.played()
    assert prompt_of(played) == client.prompts[0]
    assert played.token_ids == client.turns[0].token_ids + between + client.turns[1].token_ids
    start = len(client.turns[0].token_ids)
    assert played.given == ((start, start + len(between)),)
    stop = start + len(between)
    assert played.spans == (VersionSpan(0, stop, 0), VersionSpan(stop, len(played.token_ids), 1))
    assert played.further == () and loss_tokens(played) == sampled_tokens(client)
    assert played.text == "It is so: five" and played.dialogue
    assert [message.role for message in played.dialogue.messages] == ["user", "assistant", "tool", "assistant"]
    assert (played.dialogue.opening, played.dialogue.calls) == (1, 1)


def test_what_clients_add_or_drop_does_not_begin_another_sample(renderer: ChatRenderer, policy: ScriptedPolicy) -> None:
    client = Client(small_record(renderer), policy)
    first = client.say([USER], "Let me see.\n" + CALL, tools=[ADD])
    assert first["content"] == "Let me see."
    call = first["tool_calls"][0]
    again = {
        "role": "assistant",
        "content": [{"type": "text", "text": "Let me see. "}],
        "refusal": None,
        "name": "agent",
        "audio": None,
        "function_call": None,
        "tool_calls": [call | {"id": "mine", "function": {"name": "add", "arguments": '{"b":3,"a":2}'}, "index": 0}],
    }
    question = {"role": "user", "content": [{"type": "text", "text": USER["content"]}], "name": None}
    tool = {"type": "function", "function": ADD["function"] | {"strict": None}}
    said = [question, again, {"role": "tool", "tool_call_id": "mine", "content": "5"}]
    client.say(said, "5", tools=[tool], temperature=1, max_tokens=None)
    assert client.played().further == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said | {"content": "Other words."},
        lambda said: said | {"tool_calls": [said["tool_calls"][0] | {"function": {"name": "add", "arguments": "{}"}}]},
        lambda said: {"role": "assistant", "content": said["content"]},
    ],
    ids=["content", "arguments", "no calls"],
)
def test_an_edited_history_is_a_sample_of_its_own(renderer: ChatRenderer, policy: ScriptedPolicy, change: Any) -> None:
    client = Client(small_record(renderer), policy)
    first = client.say([USER], "Let me see.\n" + CALL, tools=[ADD])
    client.say([USER, change(first), {"role": "user", "content": "Go on."}], "No", tools=[ADD])
    played = client.played()
    (other,) = played.further
    assert (other.prompt_ids, other.token_ids) == (client.prompts[1], client.turns[1].token_ids)
    assert loss_tokens(played) == sampled_tokens(client)
    assert policy.text(other.prompt_ids).count("<tool_call>") == policy.text(client.prompts[0]).count("<tool_call>") + (
        "tool_calls" in change(first)
    )


def test_forks_share_their_prefix_and_each_token_carries_loss_once(
    renderer: ChatRenderer, policy: ScriptedPolicy
) -> None:
    client = Client(small_record(renderer), policy)
    first = client.say([USER], "Left or right?")
    branch = [USER, first, {"role": "user", "content": "left"}]
    second = client.say(branch, "Going left")
    client.say([USER, first, {"role": "user", "content": "right"}], "Going right")
    client.say([*branch, second, {"role": "user", "content": "on"}], "There")
    played = client.played()
    (fork,) = played.further
    start = len(client.prompts[0])
    assert client.prompts[3][:start] + client.prompts[3][start:] == client.prompts[3]
    assert prompt_of(played) + played.token_ids == client.prompts[3] + client.turns[3].token_ids
    assert fork.prompt_ids == client.prompts[2] and fork.token_ids == client.turns[2].token_ids
    shared = start + len(client.turns[0].token_ids)
    assert client.prompts[2][:shared] == client.prompts[1][:shared]
    assert sorted(loss_tokens(played)) == sorted(sampled_tokens(client))
    assert [message.content for message in played.dialogue.messages[-2:]] == ["on", "There"]  # type: ignore[union-attr]


def test_a_sub_agent_and_other_tools_are_samples_of_their_own(renderer: ChatRenderer, policy: ScriptedPolicy) -> None:
    client = Client(small_record(renderer), policy)
    first = client.say([USER], "Ask another.", tools=[ADD])
    client.say([{"role": "system", "content": "You only add."}, USER], "5")
    client.say([USER, first, {"role": "user", "content": "On."}], "without tools now")
    client.say([USER, first, {"role": "user", "content": "On."}], "with tools", tools=[ADD])
    played = client.played()
    assert [part.prompt_ids for part in played.further] == client.prompts[1:3]
    assert played.token_ids[-len(client.turns[3].token_ids) :] == client.turns[3].token_ids
    assert sorted(loss_tokens(played)) == sorted(sampled_tokens(client))


def test_a_template_that_forgets_thoughts_divides_the_conversation() -> None:
    client = Client(small_record(small_renderer(FORGETFUL)), ScriptedPolicy(lambda prompt: None, FORGETFUL))
    first = client.say([USER], "<think>\nHm.\n</think>\n\nFour.")
    assert first["content"] == "<think>\nHm.\n</think>\n\nFour."
    client.say([USER, first, {"role": "user", "content": "Sure?"}], "Five.")
    played = client.played()
    assert played.token_ids == client.turns[0].token_ids
    (later,) = played.further
    assert later.prompt_ids == client.prompts[1] and "Hm." not in client.policy.text(later.prompt_ids)
    assert loss_tokens(played) == sampled_tokens(client)


def test_results_of_parallel_calls_stand_in_the_order_of_the_calls(
    renderer: ChatRenderer, policy: ScriptedPolicy
) -> None:
    client = Client(small_record(renderer), policy)
    first = client.say([USER], CALL + "\n" + CALL, tools=[ADD])
    first_id, second_id = (call["id"] for call in first["tool_calls"])
    results = [
        {"role": "tool", "tool_call_id": second_id, "content": "second"},
        {"role": "tool", "tool_call_id": first_id, "content": "first"},
    ]
    client.say([USER, first, *results], "Done", tools=[ADD])
    text = policy.text(client.prompts[1])
    assert text.index("first") < text.index("second") and client.played().further == ()


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ('<tool_call>\n{"name": "add"\n</tool_call>', "malformed"),
        (CALL + "<tool_call>", "malformed"),
        (CALL.replace("add", "rm"), "unknown_tool"),
    ],
)
def test_a_call_that_no_client_could_run_stays_text(
    renderer: ChatRenderer, policy: ScriptedPolicy, answer: str, failure: str
) -> None:
    client = Client(small_record(renderer), policy)
    first = client.say([USER], answer, tools=[ADD])
    assert first == {"role": "assistant", "content": answer}
    client.say([USER, first, {"role": "user", "content": "Write a call."}], "No", tools=[ADD])
    dialogue = client.played().dialogue
    assert dialogue and dialogue.failures == {failure: 1} and dialogue.further == ()


def test_without_tools_a_call_is_text(renderer: ChatRenderer, policy: ScriptedPolicy) -> None:
    client = Client(small_record(renderer), policy)
    for fields in ({}, {"tools": [ADD], "tool_choice": "none"}):
        assert client.say([USER], CALL, **fields) == {"role": "assistant", "content": CALL}
    assert client.played().dialogue.calls == 0  # type: ignore[union-attr]


def test_limits_end_the_conversation(renderer: ChatRenderer, policy: ScriptedPolicy) -> None:
    turns = Client(small_record(renderer, max_turns=1), policy)
    turns.say([USER], "one")
    with pytest.raises(RefusedCall, match=r"limit of 1 calls \(conversation.max_turns\)"):
        turns.say([USER], "two")
    assert turns.record.ended is ConversationEnd.TURNS

    tokens = Client(small_record(renderer, max_tokens=20), policy)
    first = tokens.reply([USER], "x" * 50)
    assert (len(tokens.turns[0].token_ids), first.finish) == (20, "length")
    with pytest.raises(RefusedCall, match="limit of tokens") as refused:
        tokens.say([USER], "more")
    assert refused.value.status == 410 and tokens.record.ended is ConversationEnd.TOKENS
    assert tokens.played().finish_reason == "length"

    both = Client(small_record(renderer, max_turn_tokens=7), policy)
    assert both.reply([USER], "x" * 50).completion_tokens == 7
    assert both.reply([USER], "x" * 50, max_completion_tokens=5, max_tokens=9).completion_tokens == 5
    assert both.record.ended is None


def test_what_the_client_says_counts_in_the_tokens(renderer: ChatRenderer, policy: ScriptedPolicy) -> None:
    client = Client(small_record(renderer, max_tokens=300), policy)
    first = client.say([USER], "short")
    with pytest.raises(RefusedCall, match="limit of tokens"):
        client.say([USER, first, {"role": "user", "content": "long " * 200}], "no")


def test_a_prompt_that_is_too_long_is_the_clients_mistake(renderer: ChatRenderer, policy: ScriptedPolicy) -> None:
    client = Client(small_record(renderer, max_context=100), policy)
    with pytest.raises(RefusedCall, match="at most 100") as refused:
        client.say([{"role": "user", "content": "long " * 200}], "no")
    assert (refused.value.code, client.record.ended) == ("context_length_exceeded", None)
    reply = client.reply([USER], "x" * 200)
    assert reply.prompt_tokens + reply.completion_tokens == 100


def test_seeds_depend_on_the_tokens_and_not_on_the_order_of_calls(
    renderer: ChatRenderer, policy: ScriptedPolicy
) -> None:
    questions = [[USER], [{"role": "user", "content": "And 3+4?"}], [USER]]
    forwards, backwards, other = (Client(small_record(renderer, seed), policy) for seed in (7, 7, 8))
    for at in (0, 1, 2):
        forwards.say(questions[at], "x")
        backwards.say(questions[2 - at], "x")
        other.say(questions[at], "x")
    assert len(set(forwards.seeds)) == 3 and set(forwards.seeds) == set(backwards.seeds)
    assert forwards.seeds[1] == backwards.seeds[1] and not set(forwards.seeds) & set(other.seeds)


def test_the_time_of_the_world_is_that_without_an_open_call(
    renderer: ChatRenderer, policy: ScriptedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(record_module.time, "monotonic", lambda: clock[0])
    record = small_record(renderer)
    call = read_call(json.dumps({"model": "policy", "messages": [USER]}).encode(), "policy", 1.0)
    clock[0] = 101.0
    first = record.begin(call)
    clock[0] = 102.0
    second = record.begin(call)
    clock[0] = 104.0
    record.answer(first, policy.completion("x"), "a")
    clock[0] = 108.0
    record.answer(second, policy.completion("x"), "b")
    clock[0] = 116.0
    played = record.result(ConversationEnd.OVER)
    assert played and played.dialogue
    # From the first request to the end 15 s, of which 7 s had a call under way.
    assert (played.dialogue.lasted_s, played.dialogue.waited_s) == (15.0, 8.0)


def test_a_template_without_calls_refuses_tools(policy: ScriptedPolicy) -> None:
    plain = WITH_TOOLS.replace("<tool_call>", "a word")
    client = Client(small_record(small_renderer(plain)), policy)
    with pytest.raises(RefusedCall, match="does not show how tool calls are written"):
        client.say([USER], "x", tools=[ADD])
    spelt = ADD | {"function": ADD["function"] | {"description": "<|im_end|>"}}
    with pytest.raises(RefusedCall, match="spells the special token"):
        Client(small_record(small_renderer()), policy).say([USER], "x", tools=[spelt])


CALLS = {
    "qwen3": CALL,
    "llama3_1": '{"name": "add", "parameters": {"a": 2, "b": 3}}',
    "deepseek_v3": "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function"
    '<\uff5ctool\u2581sep\uff5c>add\n```json\n{"a": 2, "b": 3}\n```<\uff5ctool\u2581call\u2581end\uff5c>'
    "<\uff5ctool\u2581calls\u2581end\uff5c>",
}


@pytest.mark.parametrize("family", CALLS)
def test_real_families_join_their_turns(family: str, data_folder: Path) -> None:
    folder = data_folder / "tokenizers" / family
    if not folder.is_dir():
        pytest.skip(f"no tokenizer at {folder}")
    policy = ScriptedPolicy(lambda prompt: None)
    policy.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    renderer = ChatRenderer(policy.tokenizer)
    client = Client(small_record(renderer), policy)
    # The other two templates show no tools. There an agent describes them itself, and a call stays text.
    fields = {"tools": [ADD]} if family == "qwen3" else {}
    first = client.say([USER], CALLS[family], **fields)
    assert ("tool_calls" in first) == bool(fields)
    calls = first.get("tool_calls", [{"id": "none"}])
    said = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "5"} if fields else USER
    client.say([USER, first, said], "Five", **fields)
    played = client.played()
    assert played.further == () and loss_tokens(played) == sampled_tokens(client)
    assert prompt_of(played) + played.token_ids == client.prompts[1] + client.turns[1].token_ids
    # The same history from another client, with other words, is written as the policy would have written it.
    edited = [USER, first | {"content": "Hm."}, said]
    client.say(edited, "Five", **fields)
    (other,) = client.played().further
    assert "add" in policy.text(other.prompt_ids) or not fields
