"""Between our requests and completions and vLLM's: what is asked of the engine, and what its outputs say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from vllm import RequestOutput
from vllm import SamplingParams as EngineSampling
from vllm.logprobs import Logprob
from vllm.sampling_params import RequestOutputKind

from grpo.policy.hub import at_revision, name_of
from grpo.types import Completion, SamplingParams, VersionSpan

# To score a sequence vLLM is asked for one token after it, and for the log-probabilities of all before.
SCORING = EngineSampling(
    max_tokens=1,
    temperature=0.0,
    prompt_logprobs=0,
    detokenize=False,
    flat_logprobs=True,
    output_kind=RequestOutputKind.FINAL_ONLY,
)


class SamplingTokens:
    """The tokens of a policy: which end a completion, and the text of the others."""

    def __init__(self, policy_path: str) -> None:
        """Load the tokenizer and the policy's generation config."""
        self._tokenizer = AutoTokenizer.from_pretrained(name_of(policy_path), **at_revision(policy_path))
        self._ends = end_tokens(policy_path, self._tokenizer)

    def engine_sampling(self, sampling: SamplingParams, seed: int) -> EngineSampling:
        """How vLLM is to sample a request."""
        return EngineSampling(
            n=sampling.samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop) or None,
            stop_token_ids=sorted(self._ends),
            include_stop_str_in_output=True,
            seed=seed,
            logprobs=0,
            flat_logprobs=True,
            # Text is made once, at the end; vLLM would do it token by token. Stop strings need it to.
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def completions(self, output: RequestOutput) -> tuple[Completion, ...]:
        """A finished request's completions, in the order of its samples."""
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
            assert sample.logprobs is not None and sample.weight_versions is not None
            logprobs = tuple(_logprob(sample.logprobs[position], token) for position, token in enumerate(ids))
            # The engine stamps what each of its steps sampled, wherever it runs.
            spans = tuple(VersionSpan(span.start, span.end, int(span.version)) for span in sample.weight_versions)
            reason: Literal["stop", "length"] = "stop" if sample.finish_reason == "stop" else "length"
            completions.append(Completion(ids, logprobs, text, reason, spans))
        return tuple(completions)


def end_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a completion: the tokenizer's, and those that the policy's generation config adds."""
    ends = {tokenizer.eos_token_id}
    try:
        more = GenerationConfig.from_pretrained(name_of(path), **at_revision(path)).eos_token_id
    except OSError:
        more = None  # a policy need not have one
    return frozenset(ends | set([more] if isinstance(more, int) else more or ())) - {None}


def prompt_logprobs(output: RequestOutput) -> list[float]:
    """Log-probability of each token but the first of a scored sequence."""
    ids, scored = output.prompt_token_ids, output.prompt_logprobs
    assert ids is not None and scored is not None
    return [_logprob(scored[i], ids[i]) for i in range(1, len(ids))]


def _logprob(of_position: Mapping[int, Logprob] | None, token: int) -> float:
    assert of_position is not None
    return of_position[token].logprob
