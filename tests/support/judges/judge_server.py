"""A judge's server in the test process, and judges over it."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from rewards.judges.server import JudgeServer, JudgeServerSettings

RUBRIC = "question: Is the answer polite?\nchoices: {good: 1, middling: 0.5, bad: 0}\ncorrect: [good]\n"
# What a judge says: (system message, user message) -> answer, or an HTTP response.
Says = Callable[[str, str], str | httpx.Response]


class StubTransport(httpx.AsyncBaseTransport):
    """Answers requests without a network, and keeps them."""

    def __init__(self, says: Says) -> None:
        self.says, self.asked, self.headers = says, [], []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body: dict[str, Any] = json.loads(request.content)
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        answer = self.says(body["messages"][0]["content"], body["messages"][1]["content"])
        return answer if isinstance(answer, httpx.Response) else completion(answer)


def completion(text: str, finish: str = "stop") -> httpx.Response:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 7}})


def quoted(user: str) -> dict[str, str]:
    """The texts that a question quotes, by name, as a judge reads them."""
    found = re.findall(r"^\[\[(\w{16}) ([A-Z0-9 ]+)\]\]\n(.*?)\n\[\[\1 END\]\]$", user, re.S | re.M)
    return {name: text for _, name, text in found}


def choosing(choose: Callable[[Mapping[str, str]], Any], key: str = "choice") -> Says:
    """A judge that decides by the texts."""
    return lambda _, user: json.dumps({"reason": "because", key: choose(quoted(user))})


class FakeTime:
    """A clock that only sleeps move."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def stub_server(
    says: Says, settings: JudgeServerSettings, time: FakeTime | None = None
) -> tuple[JudgeServer, StubTransport]:
    transport, clock = StubTransport(says), time or FakeTime()
    return JudgeServer(settings, clock=clock, sleep=clock.sleep, transport=transport), transport


@contextlib.contextmanager
def served(says: Says) -> Iterator[str]:
    """A judge on the network, for other processes; yields its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            return None

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = says(*(message["content"] for message in body["messages"][:2]))
            response = answer if isinstance(answer, httpx.Response) else completion(answer)
            self.send_response(response.status_code)
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rubric_file(folder: Path, text: str = RUBRIC) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "rubric.yaml"
    path.write_text(text)
    return str(path)
