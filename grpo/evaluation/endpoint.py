"""An OpenAI-compatible server as a generator of completions."""

from __future__ import annotations

import base64
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from grpo.config.addresses import ServerUrl, server_url
from grpo.config.evaluation import EndpointConfig
from grpo.evaluation.questions import Question, Sample
from grpo.types import SamplingParams

if TYPE_CHECKING:
    from openai import OpenAI


class EndpointSampler:
    """Asks a server for completions, several at a time.

    A request that fails for a passing reason (429, 5xx, a lost connection, a timeout) is asked again by the `openai`
    package after growing pauses; one that goes on failing ends the evaluation, which can be gone on with.
    """

    def __init__(self, url: str, settings: EndpointConfig) -> None:
        """Connect, and see which model is served.

        Args:
            url: may hold a login and a query, which are sent with every request and shown nowhere.
            settings: how to ask.

        Raises:
            ValueError: the `openai` package is missing, a key would travel unencrypted, or the server does not say
                which model to ask.
            RuntimeError: the server does not answer.
        """
        try:
            import openai
        except ImportError as missing:
            raise ValueError(
                "an endpoint needs the package openai; install it (it comes with vLLM: pip install 'verigrpo[cpu]')"
            ) from missing
        server = server_url(url)
        key = os.environ.get(settings.key_variable or "")
        _refuse_plain_secrets(server, key, settings)
        self._errors = openai.OpenAIError
        self._settings = settings
        self._address = server.address
        self._secrets = tuple(filter(None, (key, *server.secrets)))
        login = base64.b64encode(server.login.encode()).decode() if server.login else None
        self._client: OpenAI = openai.OpenAI(
            base_url=server.address,
            # Local servers want none, and the client insists on one.
            api_key=key or "none",
            default_query=dict(server.query),
            default_headers={"Authorization": f"Basic {login}"} if login else None,
            timeout=settings.timeout_s,
            max_retries=settings.retries,
        )
        self.model = settings.model or self._only_model()

    def _only_model(self) -> str:
        try:
            served = [model.id for model in self._client.models.list()]
        except self._errors as failure:
            raise RuntimeError(
                f"the endpoint {self._address} does not list its models: {self._shown(failure)}"
            ) from failure
        if len(served) != 1:
            names = ", ".join(served) or "no model"
            raise ValueError(f"{self._address} serves {names}; name one with endpoint.model=...")
        return served[0]

    def _shown(self, failure: BaseException) -> str:
        """What a server says of a failure, which may quote what it was sent."""
        told = str(failure)
        for secret in self._secrets:
            told = told.replace(secret, "***")
        return told

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """(index, completion) as they come.

        Raises:
            RuntimeError: the server refuses a request, or goes on failing.
            TimeoutError: no completion came for `deadline_s`.
        """
        left: queue.SimpleQueue[tuple[int, Question]] = queue.SimpleQueue()
        for numbered in enumerate(questions):
            left.put(numbered)
        came: queue.SimpleQueue[tuple[int, Sample | BaseException]] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    index, question = left.get_nowait()
                except queue.Empty:
                    return
                try:
                    came.put((index, self._ask(question, sampling)))
                except BaseException as failure:  # whatever it is, it is raised where the completion is waited for
                    came.put((index, failure))
                    return

        # Daemons: a request that hangs must not hold up the end of the process.
        for number in range(min(self._settings.concurrency, len(questions))):
            threading.Thread(target=work, name=f"endpoint-{number}", daemon=True).start()
        try:
            for _ in questions:
                try:
                    index, found = came.get(timeout=deadline_s)
                except queue.Empty:
                    raise TimeoutError(
                        f"no completion came from {self._address} within deadline_s={deadline_s:g}; raise it, "
                        "or lower endpoint.concurrency"
                    ) from None
                if isinstance(found, BaseException):
                    raise found
                yield index, found
        finally:
            # What is being asked cannot be called back; what is queued is not asked any more.
            stopped.set()

    def _ask(self, question: Question, sampling: SamplingParams) -> Sample:
        common: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": question.seed % (1 << 31),
            "stop": list(sampling.stop) or None,
        }
        try:
            answer: Any
            if self._settings.chat:
                system = [{"role": "system", "content": question.system}] if question.system else []
                messages: Any = [*system, {"role": "user", "content": question.text}]
                answer = self._client.chat.completions.create(messages=messages, **common)
                text = _text_of(answer.choices[0].message)
            else:
                answer = self._client.completions.create(prompt=question.text, **common)
                text = answer.choices[0].text or ""
        except self._errors as failure:
            raise RuntimeError(
                f"{self._address} gave no completion: {type(failure).__name__}: {self._shown(failure)}. What came "
                "before is stored; the same command goes on"
            ) from failure
        reason = answer.choices[0].finish_reason
        if reason not in ("stop", "length") or answer.usage is None:
            raise RuntimeError(
                f"{self._address} ended a completion with {reason!r} and usage={answer.usage!r}; expected stop "
                "or length, and the number of tokens"
            )
        return Sample(text, answer.usage.completion_tokens, reason)


def _refuse_plain_secrets(server: ServerUrl, key: str | None, settings: EndpointConfig) -> None:
    sent = [f"the key in {settings.key_variable}"] if key else []
    sent += ["the login in the URL"] if server.login else []
    sent += ["the query of the URL"] if server.query else []
    if sent and server.is_plain and not settings.plain_key:
        raise ValueError(
            f"{' and '.join(sent)} would travel unencrypted to {server.address}: use https:// or a tunnel to this "
            "machine; endpoint.key_variable=null sends no key; endpoint.plain_key=true sends it all the same"
        )


def _text_of(message: Any) -> str:
    content = message.content or ""
    # vLLM and others hand a reasoning model's thoughts over apart; verifiers read what follows them.
    thoughts = getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None)
    if not thoughts:
        return content
    closing = "</think>\n" if content else ""
    return f"<think>{thoughts}{closing}{content}"
