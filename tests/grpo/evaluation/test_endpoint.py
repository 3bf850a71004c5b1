"""The client of OpenAI-compatible servers, against one that misbehaves."""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config.evaluation import EndpointConfig
from grpo.evaluation.endpoint import EndpointSampler
from grpo.evaluation.questions import Question, Sample
from grpo.types import SamplingParams

SAMPLING = SamplingParams(1, 20, 0.6, ("END",), 0.95)


@dataclass
class Server:
    """Answers with what it was asked; `failures` is what it answers first."""

    url: str = ""
    models: tuple[str, ...] = ("only",)
    says: dict[str, Any] = field(default_factory=dict)
    lists: bool = True
    failures: list[int] = field(default_factory=list)
    reasoning: str | None = None
    finish_reason: str = "stop"
    stop_reason: str | int | None = None
    usage: bool = True
    hangs: bool = False
    said: str = "not now"
    asked: list[dict[str, Any]] = field(default_factory=list)
    listed: tuple[str, str] = ("", "")
    at_once: int = 0
    most_at_once: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    state, lock, released = Server(), threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            return None

        def reply(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            state.listed = (self.path, self.headers["Authorization"])
            listed = [{"id": one, "object": "model", **state.says} for one in state.models]
            self.reply(200 if state.lists else 404, {"object": "list", "data": listed})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.asked.append({**body, "path": self.path, "key": self.headers["Authorization"]})
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
                failure = state.failures.pop() if state.failures else None
            released.wait(30 if state.hangs else 0.02)
            with lock:
                state.at_once -= 1
            if failure is not None:
                self.reply(failure, {"error": {"message": state.said}})
                return
            text = f"you said {body['messages'][-1]['content'] if 'messages' in body else body['prompt']}"
            message = {"role": "assistant", "content": text, "reasoning_content": state.reasoning}
            choice = {"index": 0, "finish_reason": state.finish_reason, "message": message, "text": text}
            choice["stop_reason"] = state.stop_reason
            usage = {"completion_tokens": 5, "prompt_tokens": 1} if state.usage else None
            self.reply(200, {"choices": [choice], "usage": usage})

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    released.set()
    http.shutdown()
    http.server_close()


def questions(count: int, system: str | None = None) -> list[Question]:
    return [Question(f"q{number}", system, None, 2**40 + number) for number in range(count)]


def ask(server: Server, count: int = 1, system: str | None = None, deadline_s: float = 20.0, **settings: Any) -> Any:
    sampler = EndpointSampler(server.url, EndpointConfig(**settings))
    return dict(sampler.sample(questions(count, system), SAMPLING, deadline_s))


def test_every_question_is_asked_as_it_should_be(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sesame")
    found = ask(server, 40, system="be brief", concurrency=3, key_variable="MY_KEY")
    assert found == {number: Sample(f"you said q{number}", 5, "stop") for number in range(40)}
    assert 1 < server.most_at_once <= 3
    first = next(one for one in server.asked if one["messages"][-1]["content"] == "q7")
    assert first["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q7"}]
    asked = {name: first[name] for name in ("model", "temperature", "top_p", "max_tokens", "seed", "stop")}
    assert asked == {"model": "only", "temperature": 0.6, "top_p": 0.95, "max_tokens": 20, "seed": 7, "stop": ["END"]}
    assert first["path"] == "/v1/chat/completions" and first["key"] == "Bearer sesame"


def test_plain_completions_and_thoughts(server: Server) -> None:
    plain = EndpointSampler(server.url, EndpointConfig()).sample([Question("q0", None, None, 1, False)], SAMPLING, 20.0)
    assert dict(plain)[0].text == "you said q0" and server.asked[-1]["path"] == "/v1/completions"
    server.reasoning, server.finish_reason = "hm", "length"
    assert ask(server)[0] == Sample("<think>hm</think>\nyou said q0", 5, "length")


def test_passing_failures_are_asked_again_and_lasting_ones_end_it(server: Server) -> None:
    server.failures = [503, 429]
    assert ask(server)[0].text == "you said q0" and len(server.asked) == 3
    server.failures = [404]
    with pytest.raises(RuntimeError, match=r"gave no completion: NotFoundError.*not now.*run the same command again"):
        ask(server)


def test_what_is_refused_ends_nothing(server: Server) -> None:
    server.failures = [400]
    found = ask(server, 3, concurrency=1)
    assert found[0].finish_reason == "refused" and "refused the request" in found[0].refusal and "not now" in str(found)
    assert found[1] == Sample("you said q1", 5, "stop")
    server.finish_reason = "content_filter"
    assert ask(server)[0].refusal == "the server ended the completion with 'content_filter' instead of stop or length"
    server.finish_reason, server.usage = "stop", False
    assert "did not say how many tokens" in ask(server)[0].refusal


def test_an_unknown_model_or_address_is_named(server: Server) -> None:
    server.models, server.failures = ("m1", "m9"), [404]
    sampler = EndpointSampler(server.url, EndpointConfig(model="mX"))
    sampler.served()
    with pytest.raises(
        RuntimeError, match=r"not now.*The server lists m1, m9, not mX: choose with endpoint\.model="
    ) as it:
        dict(sampler.sample(questions(1), SAMPLING, 20.0))
    assert "run the same command" not in str(it.value)
    server.url, server.lists = server.url.removesuffix("/v1"), False
    with pytest.raises(RuntimeError, match=r"does not list its models.*ends with /v1: try http://127[\d.:]*/v1"):
        ask(server)
    server.failures = [404]
    with pytest.raises(RuntimeError, match=r"gave no completion.*ends with /v1: try"):
        ask(server, model="m1")


def test_a_missing_key_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.failures = [401]
    with pytest.raises(RuntimeError, match=r"no key was sent: the environment variable OPENAI_API_KEY is not set"):
        ask(server)


def test_more_fields_are_sent_and_a_removed_stop_string_comes_back(server: Server) -> None:
    server.stop_reason = "END"
    assert ask(server, extra_body={"top_k": 20, "max_tokens": 9})[0].text == "you said q0END"
    assert server.asked[-1]["top_k"] == 20 and server.asked[-1]["max_tokens"] == 9
    server.stop_reason = 151645
    assert ask(server)[0].text == "you said q0"


def test_only_a_set_narrowing_is_sent(server: Server) -> None:
    ask(server)
    assert not {"top_k", "min_p"} & server.asked[-1].keys(), "some servers refuse unknown fields"
    narrow = SamplingParams(1, 20, 0.6, (), 0.95, 20, 0.1)
    for body, top_k in (({}, 20), ({"top_k": 5}, 5)):
        dict(EndpointSampler(server.url, EndpointConfig(extra_body=body)).sample(questions(1), narrow, 20.0))
        assert (server.asked[-1]["top_k"], server.asked[-1]["min_p"]) == (top_k, 0.1)


def test_what_the_server_says_about_its_model(server: Server) -> None:
    server.says = {"root": "/models/a", "parent": None, "max_model_len": 4096, "created": 123}
    assert EndpointSampler(server.url, EndpointConfig()).served() == {"root": "/models/a", "max_model_len": 4096}
    assert EndpointSampler(server.url, EndpointConfig(identity="mine")).served() == {"identity": "mine"}
    server.lists = False
    assert EndpointSampler(server.url, EndpointConfig(model="only")).served() == {}
    with pytest.raises(RuntimeError, match="does not list its models"):
        EndpointSampler(server.url, EndpointConfig())


def test_which_model_is_asked(server: Server) -> None:
    server.models = ("a", "b")
    with pytest.raises(ValueError, match=r"serves a, b; choose a model with endpoint\.model"):
        EndpointSampler(server.url, EndpointConfig())
    assert ask(server, model="b")[0].text == "you said q0" and server.asked[-1]["model"] == "b"
    with pytest.raises(RuntimeError, match="does not list its models"):
        EndpointSampler("http://127.0.0.1:9/v1", EndpointConfig(retries=0))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://user:PASSWORD@{}/v1?api_key=QQ99", "http://{}/v1"),
        ("HTTP://user:P%40SSWORD@{}/v1#QQ99", "HTTP://{}/v1"),
        ("http://user:PASS@WORD@{}/v1/?api_key=QQ99&x=QQ99", "http://{}/v1/"),
        ("http://QQ99@{}/v1", "http://{}/v1"),
    ],
)
def test_what_a_url_holds_of_secrets_is_sent_and_stored_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, shown: str
) -> None:
    host = server.url.removeprefix("http://").removesuffix("/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "SESAME")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q{number}", "answer": f"q{number}"}) + "\n" for number in range(3)))
    task = {"name": "mini", "source": "a test", "data": {"path": str(rows)}, "verifier": {"use": "exact"}}
    (tmp_path / "mini.yaml").write_text(json.dumps(task))
    monkeypatch.chdir(tmp_path)
    command = ["eval", "run", given.format(host), "--task", str(tmp_path / "mini.yaml")]
    monkeypatch.setattr(sys, "argv", ["grpo", *command])
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, command)
    assert result.exit_code == 0, result.output
    written = {path: path.read_bytes().decode("latin-1") for path in (tmp_path / "evals").rglob("*") if path.is_file()}
    assert {path.name for path in written} >= {"card.json", "results.json"}
    for text in (result.output, *written.values(), *map(str, written)):
        assert not re.search("PASS|WORD|QQ99|SESAME", text)
    (card,) = (tmp_path / "evals").rglob("card.json")
    assert json.loads(card.read_text())["settings"]["model"] == shown.format(host)
    path, authorization = server.listed
    login = unquote(given.partition("//")[2].rpartition("@")[0])
    assert authorization == f"Basic {base64.b64encode(login.encode()).decode()}"
    assert path == "/v1/models" + ("?" + given.partition("?")[2] if "?" in given else "")
    # An answer may quote what was sent.
    server.failures = [400]
    server.said = f"no {login.rpartition(':')[2]} SESAME"
    ((_, sample),) = EndpointSampler(given.format(host), EndpointConfig()).sample(questions(1), SAMPLING, 20.0)
    assert "the server refused" in str(sample.refusal) and not re.search("PASS|WORD|QQ99|SESAME", str(sample))
    server.failures = [404]
    with pytest.raises(RuntimeError) as failed:
        list(EndpointSampler(given.format(host), EndpointConfig()).sample(questions(1), SAMPLING, 20.0))
    assert not re.search("PASS|WORD|QQ99|SESAME", str(failed.value))


@pytest.mark.parametrize(
    ("url", "key", "settings", "refused"),
    [
        ("http://10.0.0.5/v1", "k", {}, True),
        ("http://localhost.evil.example/v1", "k", {}, True),
        ("http://127.0.0.1@evil.example/v1", None, {}, True),
        ("http://evil.example/v1?api_key=k", None, {}, True),
        ("http://10.0.0.5/v1", None, {}, False),
        ("http://10.0.0.5/v1", "k", {"key_variable": None}, False),
        ("http://10.0.0.5/v1", "k", {"plain_key": True}, False),
        ("https://api.example/v1", "k", {}, False),
        ("http://127.9.9.9:1/v1", "k", {}, False),
        ("http://[::1]:1/v1", "k", {}, False),
        ("http://LOCALHOST:1/v1", "k", {}, False),
    ],
)
def test_a_key_leaves_this_machine_encrypted_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, url: str, key: str | None, settings: dict[str, Any], refused: bool
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="would travel unencrypted to http://") if refused else nullcontext():
        EndpointSampler(url, EndpointConfig(model="named", **settings))


def test_a_server_that_hangs_is_not_waited_for(server: Server) -> None:
    server.hangs = True
    with pytest.raises(TimeoutError, match=r"no completion came from http://127.* within deadline_s=0"):
        ask(server, 9, deadline_s=0.3, concurrency=2)
    assert len(server.asked) <= 2, "what was queued is not asked any more"
