"""Convert sampling settings to vLLM's settings, and convert vLLM's outputs to completions and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformers import AutoTokenizer
from vllm import RequestOutput
from vllm import SamplingParams as EngineSampling
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind

from grpo.policy.hub import at_revision, name_of
from grpo.policy.stored import end_tokens
from grpo.types import Completion, Request, SamplingParams, VersionSpan

# To score a sequence, vLLM must sample one more token. vLLM then returns the log-probabilities of all tokens.
SCORING = EngineSampling(
    max_tokens=1,
    temperature=0.0,
    prompt_logprobs=0,
    detokenize=False,
    flat_logprobs=True,
    output_kind=RequestOutputKind.FINAL_ONLY,
)


class SamplingTokens:
    """Knows which tokens of a policy end a completion, and decodes the other tokens to text."""

    def __init__(self, policy_path: str) -> None:
        """Load the tokenizer and the policy's generation config."""
        self._tokenizer = AutoTokenizer.from_pretrained(name_of(policy_path), **at_revision(policy_path))
        self._ends = end_tokens(policy_path, self._tokenizer)

    def engine_sampling(self, sampling: SamplingParams, request: Request) -> EngineSampling:
        """Return vLLM's sampling settings for a request, whose own limit of tokens comes before that of `sampling`."""
        return EngineSampling(
            n=sampling.samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens if request.max_tokens is None else request.max_tokens,
            stop=list(sampling.stop) or None,
            stop_token_ids=sorted(self._ends),
            include_stop_str_in_output=True,
            seed=request.seed,
            logprobs=0,
            flat_logprobs=True,
            # If `detokenize` is on, vLLM decodes the text token by token. This is needed only for stop strings.
            # If it is off, `completions` decodes all tokens of a finished completion at once.
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def completions(self, output: RequestOutput) -> tuple[Completion, ...]:
        """Return the completions of a finished request, in the order of the samples."""
        sampled = sorted(output.outputs, key=lambda sample: sample.index)
        texts = self._tokenizer.batch_decode(
            [ids[:-1] if ids[-1] in self._ends else ids for ids in (list(sample.token_ids) for sample in sampled)],
            skip_special_tokens=False,
        )
        completions = []
        for sample, text in zip(sampled, texts, strict=True):
            if sample.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a completion with {sample.finish_reason!r} instead of stop or length")
            ids = tuple(sample.token_ids)
            assert sample.weight_versions is not None
            logprobs = tuple(_logprobs(sample.logprobs, ids))
            # The engine records the version of the weights for each sampled token.
            spans = tuple(VersionSpan(span.start, span.end, int(span.version)) for span in sample.weight_versions)
            reason: Literal["stop", "length"] = "stop" if sample.finish_reason == "stop" else "length"
            completions.append(Completion(ids, logprobs, text, reason, spans))
        return tuple(completions)


def prompt_logprobs(output: RequestOutput) -> list[float]:
    """Return the log-probability of each token of a scored sequence except the first."""
    assert output.prompt_token_ids is not None
    return _logprobs(output.prompt_logprobs, output.prompt_token_ids[1:])


def _logprobs(flat: object, ids: Sequence[int]) -> list[float]:
    """Return the log-probabilities of `ids`, which vLLM keeps in one list, without an object for each token."""
    assert isinstance(flat, FlatLogprobs)
    if flat.token_ids != list(ids):
        raise RuntimeError(f"vLLM returned log-probabilities of {len(flat.token_ids)} tokens, not of these {len(ids)}")
    return flat.logprobs
