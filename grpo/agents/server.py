"""An OpenAI-style server over the policy, for programs on this machine: Chat Completions with tools and streaming.

The server listens on loopback only. Each conversation has a random key; without it nobody can read or continue the
conversation. A call asks for exactly what the server does, or gets an error in OpenAI's form with a sentence. Clients
must not repeat a refused call, so every error has OpenAI's header `x-should-retry: false`.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from grpo.agents import replies
from grpo.agents.record import AgentRecord, OpenCall
from grpo.agents.requests import RefusedCall, read_call
from grpo.types import Completion

# Largest body of a call, in bytes: a few times the text of the longest contexts.
LARGEST_BODY = 16 << 20
# Ended conversations whose calls are answered with "over". A call with an older key is answered as an unknown key.
_REMEMBERED = 10_000
# Clients keep connections open between calls; an end of theirs by the server can meet their next call.
_KEEP_ALIVE_S = 24 * 3600


class PolicySampler(Protocol):
    """Where the answers of the policy come from. The agents' thread calls it, so it must be thread-safe."""

    def sample(self, key: int, token_ids: Sequence[int], max_tokens: int, seed: int) -> Future[Completion]:
        """Request a completion, at the run's temperature, and return at once.

        Args:
            key: key of the conversation.
            token_ids: tokens of the prompt.
            max_tokens: largest length of the completion, in tokens.
            seed: seed of the completion.

        Returns:
            The completion later. The server cancels it if nobody waits for it any more. An exception in it means that
            the engine failed, and the conversation ends without a score.
        """
        ...


class OpenConversation:
    """A conversation whose agent may call.

    Attributes:
        key: key of the conversation in the run.
        record: calls of the conversation.
        over: is done when the conversation is over.
        failure: why the policy could not be sampled; empty if it could.
    """

    def __init__(self, key: int, record: AgentRecord) -> None:
        self.key, self.record = key, record
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure = ""


class AgentServer:
    """The server. Its event loop alone may use it; `listen` gives the base URL."""

    def __init__(self, sampler: PolicySampler, *, model: str, temperature: float) -> None:
        """Make the server.

        Args:
            sampler: where the answers come from.
            model: name under which clients ask for the policy.
            temperature: temperature of the run.
        """
        self._sampler, self._model, self._temperature = sampler, model, temperature
        # SHA-256 of the key that a client sends -> its conversation. Looking up a hash leaks nothing of the keys.
        self._open: dict[bytes, OpenConversation] = {}
        self._ended: dict[bytes, None] = {}
        self._answers = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                _make_app(self),
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
            )
        )

    async def serve(self) -> None:
        """Serve until `stop`."""
        await self._uvicorn.serve([self._socket])

    def stop(self) -> None:
        """Let `serve` return, within about a second."""
        self._uvicorn.should_exit = True

    def open(self, key: int, record: AgentRecord) -> tuple[str, OpenConversation]:
        """Begin a conversation. Return the secret that its clients must send, and the conversation."""
        secret = secrets.token_urlsafe(32)
        conversation = OpenConversation(key, record)
        self._open[_hashed(secret)] = conversation
        return secret, conversation

    def end(self, secret: str) -> None:
        """End a conversation: open calls are cancelled, and later calls are refused."""
        conversation = self._open.pop(_hashed(secret))
        conversation.over.set_result(None)
        self._ended[_hashed(secret)] = None
        while len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    async def chat(self, request: Request) -> Response:
        """Answer a call of Chat Completions.

        Raises:
            RefusedCall: the call is not answered.
        """
        conversation = self.conversation_of(request)
        call = read_call(await _body(request), self._model, self._temperature)
        # The body may have come in after the end of the conversation.
        _require_running(conversation)
        opened = conversation.record.begin(call)
        completion = await self._sampled(conversation, opened, request)
        self._answers += 1
        try:
            reply = conversation.record.answer(opened, completion, f"chatcmpl-{conversation.key}-{self._answers}")
        except ValueError as problem:
            conversation.failure = f"the engine's answer cannot be used: {problem}"
            raise RefusedCall(conversation.failure, 500, "engine_failed") from problem
        if call.stream:
            return StreamingResponse(replies.streamed(reply, self._model, call.counts), media_type="text/event-stream")
        return _json(replies.completed(reply, self._model))

    def models(self, request: Request) -> Response:
        """Answer with the list of models.

        Raises:
            RefusedCall: the key is wrong.
        """
        self.conversation_of(request)
        return _json(replies.models(self._model))

    def conversation_of(self, request: Request) -> OpenConversation:
        """Return the conversation whose key a request has.

        Raises:
            RefusedCall: the key is unknown, or its conversation is over.
        """
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        hashed = _hashed(secret.strip())
        if scheme.lower() == "bearer" and (conversation := self._open.get(hashed)):
            _require_running(conversation)
            return conversation
        if scheme.lower() == "bearer" and hashed in self._ended:
            raise _over()
        raise RefusedCall(
            "this server answers only the program of a conversation; send the key of the conversation "
            "(OPENAI_API_KEY) as 'Authorization: Bearer KEY'",
            401,
            "invalid_api_key",
        )

    async def _sampled(self, conversation: OpenConversation, opened: OpenCall, request: Request) -> Completion:
        """Wait for the policy's answer, for the end of the conversation, or until the client hangs up."""
        future = asyncio.wrap_future(
            self._sampler.sample(conversation.key, opened.prompt_ids, opened.max_tokens, opened.seed)
        )
        hung_up = asyncio.create_task(_hang_up(request))
        try:
            waited: list[asyncio.Future[Any]] = [future, conversation.over, hung_up]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hung_up.cancel()
            sampled = future.done() and not future.cancelled() and not conversation.over.done()
            problem = future.exception() if sampled else None
            if not sampled or problem:
                # Cancels the request in the engine, too.
                future.cancel()
                conversation.record.drop()
        if problem:
            conversation.failure = f"the policy could not be sampled: {type(problem).__name__}: {problem}"
            raise RefusedCall(conversation.failure, 500, "engine_failed")
        if sampled:
            return future.result()
        if conversation.over.done():
            raise _over()
        raise RefusedCall("the client closed the connection before the answer", 499, "client_closed")


def _make_app(server: AgentServer) -> FastAPI:
    # FastAPI's documentation pages would load scripts from other sites, so these pages are switched off.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await server.chat(request)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return server.models(request)

    @app.exception_handler(RefusedCall)
    async def refuse(_: Request, problem: RefusedCall) -> Response:
        return _json(replies.refused(problem), problem.status)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, _: Exception) -> Response:
        problem = RefusedCall(
            f"this server has POST /v1/chat/completions and GET /v1/models, not {request.method} "
            f"{request.url.path[:100]}; if your framework calls /v1/responses, switch it to Chat Completions",
            404,
            "unknown_url",
        )
        return _json(replies.refused(problem), 404)

    @app.exception_handler(500)
    async def broken(_: Request, problem: Exception) -> Response:
        fault = RefusedCall(f"a fault of the server, and not of the call: {type(problem).__name__}", 500)
        return _json(replies.refused(fault), 500)

    return app


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_BODY:
            raise RefusedCall(f"a call may have at most {LARGEST_BODY:,} bytes", 413, "too_large")
    return bytes(body)


async def _hang_up(request: Request) -> None:
    """Return when the client has closed its connection. The body of the request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require_running(conversation: OpenConversation) -> None:
    if conversation.over.done() or conversation.record.ended is not None:
        raise _over()


def _over() -> RefusedCall:
    return RefusedCall("the conversation is over, so the policy answers no more of its calls", 410, "conversation_over")


def _hashed(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _json(body: bytes, status: int = 200) -> Response:
    headers = {"x-should-retry": "false"} if status >= 400 else None
    return Response(body, status, headers, "application/json")
