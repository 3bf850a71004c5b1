"""Sample completions from an OpenAI-compatible server."""

from __future__ import annotations

import base64
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from grpo.addresses import ServerUrl, server_url
from grpo.config.evaluation import EndpointConfig
from grpo.evaluation.questions import Question, Sample
from grpo.types import SamplingParams

if TYPE_CHECKING:
    from openai import OpenAI

# Fields of a model in the server's list: its files, the model under an adapter, and its context in tokens. vLLM and
# SGLang have them.
_SAID = ("root", "parent", "max_model_len")
# HTTP statuses of servers that do not list their models, or not for this key.
_LISTS_NOTHING = (403, 404, 405)


class EndpointSampler:
    """Requests completions from a server, several at a time.

    If a request fails for a temporary reason (429, 5xx, a lost connection, a timeout), the `openai` package repeats it
    after growing pauses. If the request fails again and again, the evaluation ends. The user can resume it.
    """

    def __init__(self, url: str, settings: EndpointConfig) -> None:
        """Connect to the server, and find the model to request.

        Args:
            url: URL of the server. It may hold a login and a query; both are sent with every request and never shown.
            settings: settings of the requests.

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
        self._errors, self._refusals = openai.OpenAIError, openai.BadRequestError
        self._keyless = None if key else settings.key_variable
        self._settings = settings
        self._address = server.address
        self._secrets = tuple(filter(None, (key, *server.secrets)))
        login = base64.b64encode(server.login.encode()).decode() if server.login else None
        self._client: OpenAI = openai.OpenAI(
            base_url=server.address,
            # The client requires a key, even if a local server needs no key.
            api_key=key or "none",
            default_query=dict(server.query),
            default_headers={"Authorization": f"Basic {login}"} if login else None,
            timeout=settings.timeout_s,
            max_retries=settings.retries,
        )
        # What the server lists: name -> model; None before the first request for it.
        self._models: dict[str, Any] | None = None
        self.model = settings.model or self._only_model()

    def _only_model(self) -> str:
        models = self._listed()
        if len(models) != 1:
            names = ", ".join(models) or "no model"
            raise ValueError(f"{self._address} serves {names}; choose a model with endpoint.model=...")
        return next(iter(models))

    def _listed(self) -> dict[str, Any]:
        if self._models is not None:
            return self._models
        try:
            self._models = {str(model.id): model for model in self._client.models.list()}
        except self._errors as failure:
            if not self._settings.model or getattr(failure, "status_code", None) not in _LISTS_NOTHING:
                raise RuntimeError(
                    f"the endpoint {self._address} does not list its models: {self._shown(failure)}"
                    f"{self._hint(failure)}"
                ) from failure
            self._models = {}
        return self._models

    def served(self) -> dict[str, Any]:
        """Return what the server says about the model, to tell models with the same name apart.

        Raises:
            RuntimeError: the server does not answer.
        """
        if self._settings.identity is not None:
            return {"identity": self._settings.identity}
        fields = {name: getattr(self._listed().get(self.model), name, None) for name in _SAID}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def context(self) -> int | None:
        """The model's context in tokens, as the server said it; None if it said nothing."""
        said = getattr((self._models or {}).get(self.model), "max_model_len", None)
        return said if isinstance(said, int) else None

    def _hint(self, failure: BaseException) -> str:
        """Return what to change if the server does not know the address or the model; empty if it knows both."""
        if getattr(failure, "status_code", None) != 404:
            return ""
        if self._models:
            listed = f". The server lists {', '.join(self._models)}, not {self.model}: choose with endpoint.model=..."
            return listed if self.model not in self._models else ""
        address = self._address.rstrip("/")
        return "" if "/v1" in address else f". The address of most servers ends with /v1: try {address}/v1"

    def _shown(self, failure: BaseException) -> str:
        """Return the server's error message without secrets: the server may quote the request."""
        message = str(failure)
        for secret in self._secrets:
            message = message.replace(secret, "***")
        if self._keyless and getattr(failure, "status_code", None) == 401:
            message += f" (no key was sent: the environment variable {self._keyless} is not set; endpoint.key_variable)"
        return message

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (index, completion) in the order of arrival.

        If the server refuses a single question, the sample has a `refusal`.

        Raises:
            RuntimeError: the server refuses the key, or fails repeatedly.
            TimeoutError: no completion came for `deadline_s`.
        """
        unsent: queue.SimpleQueue[tuple[int, Question]] = queue.SimpleQueue()
        for numbered in enumerate(questions):
            unsent.put(numbered)
        came: queue.SimpleQueue[tuple[int, Sample | BaseException]] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                try:
                    index, question = unsent.get_nowait()
                except queue.Empty:
                    return
                try:
                    came.put((index, self._ask(question, sampling)))
                except BaseException as failure:  # `sample` raises it again, whatever its type
                    came.put((index, failure))
                    return

        # Daemon threads: a hanging request must not delay the end of the process.
        for number in range(min(self._settings.concurrency, len(questions))):
            threading.Thread(target=work, name=f"endpoint-{number}", daemon=True).start()
        try:
            for _ in questions:
                try:
                    index, outcome = came.get(timeout=deadline_s)
                except queue.Empty:
                    raise TimeoutError(
                        f"no completion came from {self._address} within deadline_s={deadline_s:g}; raise it, "
                        "or lower endpoint.concurrency"
                    ) from None
                if isinstance(outcome, BaseException):
                    raise outcome
                yield index, outcome
        finally:
            # Running requests cannot be cancelled. Queued questions are not sent any more.
            stopped.set()

    def _ask(self, question: Question, sampling: SamplingParams) -> Sample:
        common: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": question.seed % (1 << 31),
            "stop": list(sampling.stop) or None,
            "extra_body": {**_narrowing(sampling), **self._settings.extra_body} or None,
        }
        try:
            answer: Any
            if question.chat:
                system = [{"role": "system", "content": question.system}] if question.system else []
                messages: Any = [*system, {"role": "user", "content": question.text}]
                answer = self._client.chat.completions.create(messages=messages, **common)
                text = _text_of(answer.choices[0].message)
            else:
                answer = self._client.completions.create(prompt=question.text, **common)
                text = answer.choices[0].text or ""
        except self._refusals as failure:
            return _refused(f"the server refused the request: {self._shown(failure)}")
        except self._errors as failure:
            then = self._hint(failure) or ". Earlier completions are stored; run the same command again to continue"
            raise RuntimeError(
                f"{self._address} gave no completion: {type(failure).__name__}: {self._shown(failure)}{then}"
            ) from failure
        choice = answer.choices[0]
        if choice.finish_reason not in ("stop", "length"):
            return _refused(f"the server ended the completion with {choice.finish_reason!r} instead of stop or length")
        if answer.usage is None:
            return _refused(
                "the server did not say how many tokens the completion has; it, or a proxy before it, must send `usage`"
            )
        # The project's own engine keeps the stop string in the completion. vLLM's server removes it and names it here.
        stopped_by = getattr(choice, "stop_reason", None)
        if isinstance(stopped_by, str) and stopped_by in sampling.stop and not text.endswith(stopped_by):
            text += stopped_by
        return Sample(text, answer.usage.completion_tokens, choice.finish_reason)


def _narrowing(sampling: SamplingParams) -> dict[str, Any]:
    """Fields that vLLM and SGLang know and OpenAI refuses. So they are sent only if they are set."""
    fields = {"top_k": sampling.top_k, "min_p": sampling.min_p}
    return {name: value for name, value in fields.items() if value}


def _refused(why: str) -> Sample:
    return Sample("", 0, "refused", why)


def _refuse_plain_secrets(server: ServerUrl, key: str | None, settings: EndpointConfig) -> None:
    sent = [f"the key in {settings.key_variable}"] if key else []
    sent += ["the login in the URL"] if server.login else []
    sent += ["the query of the URL"] if server.query else []
    if sent and server.is_plain and not settings.plain_key:
        raise ValueError(
            f"{' and '.join(sent)} would travel unencrypted to {server.address}: use https:// or a tunnel to this "
            "machine; endpoint.key_variable=null sends no key; endpoint.plain_key=true sends them unencrypted"
        )


def _text_of(message: Any) -> str:
    content = message.content or ""
    # Some servers, such as vLLM, return a reasoning model's thoughts separately. Verifiers read the text after them.
    thoughts = getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None)
    if not thoughts:
        return content
    closing = "</think>\n" if content else ""
    return f"<think>{thoughts}{closing}{content}"
