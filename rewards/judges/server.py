"""The server of a judge: any server with OpenAI's Chat Completions."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from grpo.addresses import server_url

# Statuses that may pass: a timeout, a conflict, too many requests; all of 500 and above too.
_PASSING = (408, 409, 425, 429)
# Statuses with which servers refuse a `response_format` that they do not know.
_REFUSED_FORMAT = (400, 404, 415, 422, 501)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0


class JudgeFailed(RuntimeError):
    """A question without a usable answer. It never becomes a score."""


@dataclass(frozen=True, slots=True)
class JudgeServerSettings:
    """How to reach a judge.

    Attributes:
        url: base URL of the server, such as `http://127.0.0.1:8000/v1`.
        model: the model's name on the server.
        key_variable: environment variable with the key; None sends no key.
        patience_s: longest time for one question with all repeats, in seconds.
        timeout_s: longest time for one request, in seconds.
        temperature: temperature of the judge.
        max_tokens: longest answer, in tokens.
        schema: whether the JSON schema goes into `response_format`; `auto` stops with it if the server refuses it.
        extra_body: further fields of each request.
        plain_key: allow the key to travel unencrypted to another machine.
    """

    url: str
    model: str
    key_variable: str | None = None
    patience_s: float = 60.0
    timeout_s: float = 60.0
    temperature: float = 0.0
    max_tokens: int = 512
    schema: Literal["auto", "always", "never"] = "auto"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    plain_key: bool = False

    @property
    def identity(self) -> str:
        """What decides an answer besides the question, as text."""
        sent = (self.url, self.model, self.temperature, self.max_tokens, dict(self.extra_body))
        return json.dumps(sent, sort_keys=True)


def key_variable_of(key: Any) -> str | None:
    """Read the option `key`: None, or `{env: NAME}`.

    Raises:
        ValueError: the option has another form. The message does not show it, because it may be the key itself.
    """
    if key is None:
        return None
    if not isinstance(key, Mapping) or set(key) != {"env"} or not isinstance(key["env"], str) or not key["env"]:
        raise ValueError(
            "key must name an environment variable, as key: {env: JUDGE_KEY}; a key itself would be stored with the "
            "config"
        )
    return str(key["env"])


def server_settings(
    url: Any,
    model: Any,
    key: Any = None,
    *,
    patience_s: float = 60.0,
    timeout_s: float = 60.0,
    temperature: float = 0.0,
    max_tokens: int = 512,
    schema: str = "auto",
    extra_body: Mapping[str, Any] | None = None,
    plain_key: bool = False,
) -> JudgeServerSettings:
    """Check the options of a judge's server.

    Raises:
        ValueError: an option has a wrong value, or holds a secret that a stored config would show.
    """
    variable = key_variable_of(key)
    if not isinstance(url, str) or urlsplit(url).scheme.lower() not in ("http", "https"):
        raise ValueError("url must be the base URL of an OpenAI-style server, such as http://127.0.0.1:8000/v1")
    parts = server_url(url)
    if parts.login is not None or parts.query:
        raise ValueError(
            f"the url of {parts.address} holds a login or a query; use key: {{env: NAME}}, which no config shows"
        )
    if not isinstance(model, str) or not model:
        raise ValueError(f"model must be the judge's name on {parts.address}, got {model!r}")
    for name, value, least in (
        ("patience_s", patience_s, 0),
        ("timeout_s", timeout_s, 0),
        ("max_tokens", max_tokens, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or value < least:
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more, got {temperature!r}")
    if schema not in ("auto", "always", "never"):
        raise ValueError(f"schema must be auto, always or never, got {schema!r}")
    if variable and parts.is_plain and not plain_key:
        raise ValueError(
            f"the key in {variable} would travel unencrypted to {parts.address}: use https:// or a tunnel to this "
            "machine; plain_key: true sends it unencrypted"
        )
    return JudgeServerSettings(
        parts.address.rstrip("/"), model, variable, patience_s, timeout_s, temperature, int(max_tokens),
        schema, dict(extra_body or {}), plain_key,  # type: ignore[arg-type]
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What a server answered: text, tokens of the request and of the answer, and the number of requests."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    requests: int


class JudgeServer:
    """Sends questions. A request that fails for a passing reason is repeated after growing pauses."""

    def __init__(
        self,
        settings: JudgeServerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Make the client. Nothing is sent, and the key is read, when the first question comes.

        Args:
            settings: how to reach the server.
            clock: monotonic time in seconds.
            sleep: coroutine function that waits for some seconds.
            transport: what carries the requests; None is the network.
        """
        self.settings, self._clock, self._sleep, self._transport = settings, clock, sleep, transport
        self._sends_schema = settings.schema != "never"
        # A client belongs to an event loop, and a verifier may be called in several loops after each other.
        self._client: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient] | None = None

    async def ask(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None = None) -> JudgeReply:
        """Send a question and return the answer.

        Raises:
            JudgeFailed: the server refused the question, or gave no answer within `patience_s`.
        """
        begun, pause, requests = self._clock(), _FIRST_PAUSE_S, 0
        sends_schema = schema is not None and self._sends_schema
        while True:
            left = self.settings.patience_s - (self._clock() - begun)
            requests += 1
            wait_s = 0.0
            try:
                async with asyncio.timeout(min(self.settings.timeout_s, left)):
                    response = await self._post(self._body(messages, schema if sends_schema else None))
            except TimeoutError:
                why = "no answer in time"
            except httpx.TransportError as problem:
                why = f"{type(problem).__name__}: {self._shown(str(problem))}"
            else:
                if response.status_code == 200:
                    # The server took the question only without the schema, so it will not take other schemas.
                    self._sends_schema = self._sends_schema and (sends_schema or schema is None)
                    return self._read(response, requests)
                why = f"HTTP {response.status_code}: {self._shown(response.text)}"
                if sends_schema and self.settings.schema == "auto" and response.status_code in _REFUSED_FORMAT:
                    sends_schema = False
                    continue
                if response.status_code not in _PASSING and response.status_code < 500:
                    raise JudgeFailed(f"the judge {self.settings.url} refused: {why}{self._hint(response)}")
                wait_s = _retry_after(response)
            # Repeats of many calls must not come at the same time.
            wait_s = max(wait_s, pause * random.uniform(0.5, 1.5))
            if self._clock() - begun + wait_s >= self.settings.patience_s:
                raise JudgeFailed(
                    f"the judge {self.settings.url} gave no answer to {requests} requests within "
                    f"patience_s={self.settings.patience_s:g}; the last: {why}"
                )
            await self._sleep(wait_s)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _body(self, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.settings.model,
            "messages": list(messages),
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        if schema is not None:
            named = {"name": "verdict", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body | dict(self.settings.extra_body)

    async def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            # `asyncio.timeout` above limits the whole request; httpx would limit each read.
            self._client = loop, httpx.AsyncClient(timeout=None, transport=self._transport)
        return await self._client[1].post(f"{self.settings.url}/chat/completions", json=body, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _key(self) -> str | None:
        if self.settings.key_variable is None:
            return None
        key = os.environ.get(self.settings.key_variable)
        if not key:
            raise JudgeFailed(f"the environment variable {self.settings.key_variable} with the judge's key is not set")
        return key

    def _read(self, response: httpx.Response, requests: int) -> JudgeReply:
        try:
            answer = response.json()
            choice = answer["choices"][0]
            text, ended = choice["message"]["content"], choice.get("finish_reason")
            usage = answer.get("usage") or {}
            tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise JudgeFailed(
                f"the judge {self.settings.url} sent no chat completion: {self._shown(response.text)}"
            ) from problem
        if ended == "length":
            raise JudgeFailed(f"the judge's answer was cut off at max_tokens={self.settings.max_tokens}; raise it")
        if not isinstance(text, str) or not text.strip():
            raise JudgeFailed("the judge's answer is empty")
        return JudgeReply(text, *tokens, requests)

    def _shown(self, text: str) -> str:
        """A server's message in one line, without the key, which a server may repeat."""
        key = os.environ.get(self.settings.key_variable or "")
        return " ".join((text.replace(key, "***") if key else text).split())[:200]

    def _hint(self, response: httpx.Response) -> str:
        if response.status_code == 404 and "/v1" not in self.settings.url:
            return f"; the address of most servers ends with /v1: try {self.settings.url}/v1"
        if response.status_code == 401 and self.settings.key_variable is None:
            return "; no key was sent: set key: {env: NAME}"
        return ""


def _retry_after(response: httpx.Response) -> float:
    """Seconds that a server asks to wait; 0 if it says nothing, or names a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
