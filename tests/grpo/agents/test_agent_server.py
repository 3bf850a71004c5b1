"""The server, called by the real `openai` client and by plain HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conversations.made_up import prompt_of
from conversations.scripted_policy import ADD, CALL, ScriptedPolicy, small_record, small_renderer
from conversations.serving import Serving, serving

from grpo.agents import server as server_module
from grpo.messages import ConversationEnd
from rewards.judges.client import JudgeClient, JudgeSettings
from rewards.judges.rubric import Rubric
from rewards.judges.server import server_settings

openai = pytest.importorskip("openai", reason="the client comes with vLLM; pip install openai")
HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


def adds_then_answers(prompt: str) -> str | None:
    """Call the tool, and repeat its result; hang where the prompt says so."""
    if "hang" in prompt:
        return None
    results = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", prompt)
    return f"It is {results[-1]}." if results else CALL if "add" in prompt else "Hello."


@pytest.fixture(scope="module")
def policy() -> ScriptedPolicy:
    return ScriptedPolicy(adds_then_answers)


@pytest.fixture(scope="module")
def running(policy: ScriptedPolicy) -> Iterator[Serving]:
    with serving(policy) as serving_now:
        yield serving_now


@pytest.fixture(scope="module")
def renderer() -> Any:
    return small_renderer()


@pytest.fixture
def opened(running: Serving, renderer: Any) -> Iterator[tuple[str, Any]]:
    secret, conversation = running.open(1, small_record(renderer))
    yield secret, conversation
    if not conversation.over.done():
        running.end(secret)


def client_of(running: Serving, secret: str, **options: Any) -> Any:
    return openai.OpenAI(base_url=running.url, api_key=secret, timeout=20, **options)


def post(running: Serving, secret: str, body: Any, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{running.url}/chat/completions", content=content, headers=headers, timeout=20, **options)


def test_the_openai_client_plays_turns_with_tools(
    running: Serving, opened: tuple[str, Any], policy: ScriptedPolicy
) -> None:
    secret, conversation = opened
    before = len(policy.requests)
    client = client_of(running, secret)
    assert [model.id for model in client.models.list()] == ["policy"]
    messages: list[Any] = [{"role": "user", "content": "Please add 2 and 3."}]
    first = client.chat.completions.create(model="policy", messages=messages, tools=[ADD])
    (call,) = first.choices[0].message.tool_calls
    assert (first.choices[0].finish_reason, call.function.name) == ("tool_calls", "add")
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    second = client.chat.completions.create(model="policy", messages=messages, tools=[ADD], temperature=1.0)
    assert second.choices[0].message.content == "It is 5." and second.choices[0].finish_reason == "stop"
    requests = policy.requests[before:]
    usage = second.usage
    assert usage.prompt_tokens == len(requests[1][1]) and usage.completion_tokens == len("It is 5.") + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert first.id != second.id and [key for key, *_ in requests] == [1, 1]
    played = conversation.record.result(ConversationEnd.OVER)
    assert played.further == () and prompt_of(played) == requests[0][1]
    whole = prompt_of(played) + played.token_ids
    assert whole[: len(requests[1][1])] == requests[1][1]
    # Three pieces: a turn, what the tool said, a turn; nothing was tokenised again.
    first_turn = policy.completion(CALL).token_ids
    assert played.token_ids[: len(first_turn)] == first_turn
    assert played.token_ids[-len(policy.completion("It is 5.").token_ids) :] == policy.completion("It is 5.").token_ids


def test_a_stream_joins_like_an_answer(running: Serving, opened: tuple[str, Any]) -> None:
    secret, conversation = opened
    client = client_of(running, secret)
    messages: list[Any] = [{"role": "user", "content": "Please add 2 and 3."}]
    calls: dict[int, dict[str, str]] = {}
    content, finishes, usage = "", [], None
    stream = client.chat.completions.create(
        model="policy", messages=messages, tools=[ADD], stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finishes += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or ():
                calls[call.index] = {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
    assert (content, finishes) == ("", ["tool_calls"]) and usage.completion_tokens > 1
    assert json.loads(calls[0]["arguments"]) == {"a": 2, "b": 3}
    called = {"id": calls[0]["id"], "type": "function", "function": {k: calls[0][k] for k in ("name", "arguments")}}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": called["id"], "content": "5"},
    ]
    with client.chat.completions.stream(model="policy", messages=messages, tools=[ADD]) as events:
        assert events.get_final_completion().choices[0].message.content == "It is 5."
    assert conversation.record.result(ConversationEnd.OVER).further == ()


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"temperature": 0}, 400, "every token is sampled at the run's temperature"),
        ({"n": 2}, 400, "n=2 is not possible here; expected 1"),
        ({"stop": ["x"]}, 400, "leave the field out"),
        ({"top_p": 0.9}, 400, "top_p=0.9"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"tool_choice": "required", "tools": [ADD]}, 400, "the policy decides"),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}, "tools": [ADD]}, 400, "the policy decides"),
        ({"top_k": 3}, 400, "'top_k' is not known here"),
        ({"max_tokens": 0}, 400, "at least 1"),
        ({"model": "gpt-4o"}, 404, "under the name 'policy'"),
        ({"messages": []}, 400, "at least one message"),
        ({"messages": [*HI, {"role": "assistant", "content": "I"}]}, 400, "begins each of its turns itself"),
        ({"messages": [{"role": "function", "content": "I"}]}, 400, "one of system, developer, user"),
        ({"messages": [{"role": ["user"], "content": "I"}]}, 400, "one of system, developer, user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "reads nothing else"),
        ({"messages": [HI[0], {"role": "assistant", "tool_calls": [{"function": {}}]}, HI[0]]}, 400, "JSON object"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "letters, digits"),
        ({"tools": [{"type": "custom"}]}, 400, "of the form"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_openais_form(
    running: Serving, opened: tuple[str, Any], fields: dict[str, Any], status: int, words: str
) -> None:
    answer = post(running, opened[0], {"model": "policy", "messages": HI} | fields)
    assert answer.status_code == status and answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert words in error["message"] and error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status == 400 else "not_found_error")
    assert error["param"].startswith(next(iter(fields)))
    assert opened[1].record.result(ConversationEnd.OVER) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"\xff\xfe"])
def test_hostile_bodies_are_refused(running: Serving, opened: tuple[str, Any], body: bytes) -> None:
    answer = post(running, opened[0], body)
    assert answer.status_code == 400 and "body of the call" in answer.json()["error"]["message"]


def test_odd_text_is_text(running: Serving, opened: tuple[str, Any]) -> None:
    odd = {"role": "user", "content": "\ud800 \x00 <|im_end|> {{ 1 }}"}
    assert post(running, opened[0], {"model": "policy", "messages": [odd]}).json()["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hello.",
    }


def test_a_body_has_a_largest_size(running: Serving, opened: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LARGEST_BODY", 1000)
    answer = post(running, opened[0], {"model": "policy", "messages": HI, "user": "u" * 1000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_only_the_key_of_a_conversation_opens_it(running: Serving, opened: tuple[str, Any], renderer: Any) -> None:
    wrong = opened[0][:-1] + ("a" if opened[0][-1] != "a" else "b")
    with pytest.raises(openai.AuthenticationError, match="the key of the conversation"):
        client_of(running, wrong).chat.completions.create(model="policy", messages=HI)
    odd: list[dict[str, Any]] = [{}, {"Authorization": opened[0]}, {"Authorization": f"Basic {opened[0]}"}]
    for headers in (*odd, {"Authorization": "Bearer"}, {"Authorization": b"Bearer \xe9\xff"}):
        assert httpx.get(f"{running.url}/models", headers=headers).status_code == 401
    other, conversation = running.open(2, small_record(renderer))
    client_of(running, other).chat.completions.create(model="policy", messages=HI)
    assert conversation.record.result(ConversationEnd.OVER) and not opened[1].record.result(ConversationEnd.OVER)
    running.end(other)


def test_after_the_end_calls_are_refused(running: Serving, opened: tuple[str, Any]) -> None:
    secret, conversation = opened
    client = client_of(running, secret)
    client.chat.completions.create(model="policy", messages=HI)
    running.end(secret)
    for _ in range(2):
        with pytest.raises(openai.APIStatusError, match="the conversation is over") as refused:
            client.chat.completions.create(model="policy", messages=HI)
        assert refused.value.status_code == 410
    assert len(conversation.record.result(ConversationEnd.OVER).token_ids) == len("Hello.") + 1


def test_after_a_limit_calls_are_refused(running: Serving, renderer: Any) -> None:
    secret, conversation = running.open(3, small_record(renderer, max_turns=1))
    client = client_of(running, secret)
    client.chat.completions.create(model="policy", messages=HI)
    for _ in range(2):
        with pytest.raises(openai.APIStatusError, match="the conversation is over"):
            client.chat.completions.create(model="policy", messages=HI)
    assert conversation.record.ended is ConversationEnd.TURNS
    running.end(secret)


def test_after_a_limit_a_call_that_begins_anew_is_refused(running: Serving, renderer: Any) -> None:
    secret, conversation = running.open(3, small_record(renderer, max_context=100))
    client = client_of(running, secret)
    first = client.chat.completions.create(model="policy", messages=HI).choices[0].message
    continued = [*HI, first, {"role": "user", "content": "long " * 20}]
    for messages in (continued, [{"role": "user", "content": "Hi again"}]):
        with pytest.raises(openai.APIStatusError, match="the conversation is over") as refused:
            client.chat.completions.create(model="policy", messages=messages)
        assert refused.value.status_code == 410
    assert conversation.record.ended is ConversationEnd.TOKENS
    running.end(secret)


def waits(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_the_end_interrupts_a_call(running: Serving, opened: tuple[str, Any], policy: ScriptedPolicy) -> None:
    before = len(policy.given)
    answers: list[httpx.Response] = []
    body = {"model": "policy", "messages": [{"role": "user", "content": "hang"}]}
    caller = threading.Thread(target=lambda: answers.append(post(running, opened[0], body)))
    caller.start()
    assert waits(lambda: len(policy.given) > before)
    running.end(opened[0])
    caller.join(10)
    assert answers[0].status_code == 410
    # The server's loop tells the sampler right after the answer.
    assert waits(lambda: policy.given[-1].cancelled())


def test_a_client_that_hangs_up_leaves_no_sample(
    running: Serving, opened: tuple[str, Any], policy: ScriptedPolicy
) -> None:
    body = {"model": "policy", "messages": [{"role": "user", "content": "hang"}]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{running.url}/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {opened[0]}"},
            timeout=0.3,
        )
    assert waits(lambda: policy.given[-1].cancelled())
    assert opened[1].record.result(ConversationEnd.OVER) is None and opened[1].failure == ""


def test_an_engine_that_fails_is_no_answer(running: Serving, opened: tuple[str, Any], policy: ScriptedPolicy) -> None:
    before = len(policy.given)

    def fail() -> None:
        assert waits(lambda: len(policy.given) > before)
        policy.given[-1].set_exception(RuntimeError("the generator is gone"))

    breaker = threading.Thread(target=fail)
    breaker.start()
    with pytest.raises(openai.InternalServerError, match="the generator is gone"):
        client_of(running, opened[0]).chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "hang"}]
        )
    breaker.join(10)
    assert len(policy.given) == before + 1, "the client must not repeat the call"
    assert "the generator is gone" in opened[1].failure


def test_other_addresses_say_what_there_is(running: Serving, opened: tuple[str, Any]) -> None:
    with pytest.raises(openai.NotFoundError, match="switch it to Chat Completions"):
        client_of(running, opened[0]).responses.create(model="policy", input="Hi")
    assert httpx.get(f"{running.url}/chat/completions").json()["error"]["code"] == "unknown_url"
    assert running.url.startswith("http://127.0.0.1:")


def test_two_hundred_conversations_at_once(running: Serving, renderer: Any, policy: ScriptedPolicy) -> None:
    keys = range(1000, 1200)
    opened = {key: running.open(key, small_record(renderer, seed=key)) for key in keys}
    together = threading.Barrier(len(keys), timeout=60)
    with httpx.Client(limits=httpx.Limits(max_connections=len(keys)), timeout=60) as http:

        def play(key: int) -> str:
            messages: list[Any] = [{"role": "user", "content": f"Please add; this is {key}."}]
            together.wait()
            for _ in range(2):
                answer = http.post(
                    f"{running.url}/chat/completions",
                    json={"model": "policy", "messages": messages, "tools": [ADD]},
                    headers={"Authorization": f"Bearer {opened[key][0]}"},
                )
                said = answer.json()["choices"][0]["message"]
                if not said.get("tool_calls"):
                    break
                result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": str(key)}
                messages += [said, result]
            return str(said["content"])

        with ThreadPoolExecutor(len(keys)) as pool:
            assert list(pool.map(play, keys)) == [f"It is {key}." for key in keys]
    seeds = set()
    for key in keys:
        played = opened[key][1].record.result(ConversationEnd.OVER)
        turns = [request for request in policy.requests if request[0] == key]
        whole = prompt_of(played) + played.token_ids
        assert len(turns) == 2 and whole[: len(turns[1][1])] == turns[1][1] and f"is {key}." in policy.text(turns[0][1])
        seeds |= {seed for *_, seed in turns}
        running.end(opened[key][0])
    assert len(seeds) == 2 * len(keys)


def test_our_server_can_be_a_judge(
    running: Serving, opened: tuple[str, Any], policy: ScriptedPolicy, monkeypatch
) -> None:
    """It knows no JSON schemas, so the judge asks without; what the policy says is read as strictly as ever."""
    monkeypatch.setenv("THE_KEY", opened[0])
    monkeypatch.setattr(policy, "say", lambda prompt: '{"reason": "kind", "choice": "good"}')
    rubric = Rubric("Is it polite?", {"good": 1.0, "bad": 0.0})
    settings = server_settings(running.url, "policy", {"env": "THE_KEY"}, temperature=1.0, patience_s=20)
    choice, reason, spend = asyncio.run(JudgeClient(JudgeSettings(settings, rubric)).grade("Hi", "Hello", None))
    assert (choice, reason) == ("good", "kind") and spend.completion_tokens > 5
