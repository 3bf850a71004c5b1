"""The vLLM room: one generator, which samples completions and scores given tokens.

The same synchronous engine runs everywhere: in this very process on CPU, where a second process would cost more than
it brings, and in processes of its own on GPU. Nothing here knows of Ray; `grpo.cluster` runs one per replica.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from vllm import EngineArgs, RequestOutput
from vllm import SamplingParams as EngineSampling
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.logprobs import Logprob
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from grpo import weight_transfer
from grpo.setups import GeneratorSetup
from grpo.types import Completion, Finished, Request, SamplingParams, VersionSpan

# A message costs Ray about as much as a small policy's engine needs for a step, so those of so many seconds are one.
HAND_ON_S = 0.05


class Generator:
    """One vLLM engine with the policy's weights and their version."""

    def __init__(self, setup: GeneratorSetup) -> None:
        """Load the policy. `grpo.cluster` has set the process's environment."""
        weight_transfer.register()
        on_cpu = setup.device == "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(setup.policy_path)
        self._ends = end_tokens(setup.policy_path, self._tokenizer)
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=setup.policy_path,
                dtype=setup.dtype,
                tensor_parallel_size=setup.generator.tensor_parallel_size,
                max_model_len=setup.max_sequence_tokens,
                max_num_seqs=setup.generator.max_sequences,
                # One step may take all prompts at once; on GPU vLLM's own choice suits the memory it profiled.
                max_num_batched_tokens=max(8192, setup.max_sequence_tokens) if on_cpu else None,
                gpu_memory_utilization=setup.generator.gpu_memory_share,
                enforce_eager=on_cpu or not setup.generator.compile,
                enable_prefix_caching=True,
                enable_sleep_mode=setup.sleeps,
                logprobs_mode="raw_logprobs" if setup.temperature == 1.0 else "processed_logprobs",
                weight_transfer_config=WeightTransferConfig(backend=weight_transfer.BACKEND),
                # The policy's own default temperature and top-k must not slip into the samples.
                generation_config="vllm",
                disable_log_stats=True,
                # Steps follow one another without guessing ahead: the same requests give the same batches.
                async_scheduling=False if on_cpu else None,
            )
        )
        self._engine.collective_rpc("init_weight_transfer_engine", args=({},))
        self._policy_version = 0
        self._requests = 0

    def generate(self, requests: Sequence[Request], sampling: SamplingParams) -> Iterator[Finished]:
        """Sample for all requests, handing groups on as they finish, those of `HAND_ON_S` together."""
        waiting: dict[str, int] = {}
        for request in requests:
            name = self._new_name()
            waiting[name] = request.index
            self._engine.add_request(
                name,
                {"prompt_token_ids": list(request.token_ids)},
                _engine_sampling(sampling, request.seed, self._ends),
            )
        finished: Finished = []
        handed_on = time.monotonic()
        while waiting:
            finished += [(waiting.pop(output.request_id), self._completions(output)) for output in self._step()]
            if finished and (not waiting or time.monotonic() - handed_on > HAND_ON_S):
                yield finished
                finished, handed_on = [], time.monotonic()

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token but the first of each sequence, at temperature 1."""
        # Cached prefixes have no log-probabilities to give, and may be another version's.
        self._engine.reset_prefix_cache()
        names = [self._new_name() for _ in sequences]
        for name, sequence in zip(names, sequences, strict=True):
            sampling = EngineSampling(
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=0,
                detokenize=False,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._engine.add_request(name, {"prompt_token_ids": list(sequence)}, sampling)
        scored: dict[str, list[float]] = {}
        while len(scored) < len(names):
            for output in self._step():
                ids, found = output.prompt_token_ids, output.prompt_logprobs
                assert ids is not None and found is not None
                scored[output.request_id] = [_logprob(found[i], ids[i]) for i in range(1, len(ids))]
        return [scored[name] for name in names]

    def begin_update(self) -> None:
        """Make ready for new weights. The engine must be idle."""
        self._engine.collective_rpc("start_weight_update")

    def update(self, bucket: np.ndarray) -> list[str]:
        """Load one bucket of weights: uint8, the bytes of a safetensors file. The names of its tensors."""
        # By file, as the engine may live in other processes of this node; in memory where there is room.
        with tempfile.NamedTemporaryFile(dir=_scratch(bucket.nbytes), suffix=".safetensors") as file:
            file.write(bucket.data)
            file.flush()
            self._engine.collective_rpc("update_weights", args=({"path": file.name},))
            with safe_open(file.name, framework="pt") as tensors:
                return list(tensors.keys())

    def finish_update(self, policy_version: int) -> None:
        """All buckets have come: sample from them, as `policy_version`, from now on."""
        self._engine.collective_rpc("finish_weight_update")
        self._engine.set_weight_version(str(policy_version))
        self._engine.reset_prefix_cache()
        self._policy_version = policy_version

    def sleep(self) -> None:
        """Move the weights into the host's memory and drop the cache. The engine must be idle; end with `wake`."""
        self._engine.sleep(level=1)

    def wake(self) -> None:
        """Take back what `sleep` gave."""
        self._engine.wake_up()
        self._engine.reset_prefix_cache()

    def _new_name(self) -> str:
        self._requests += 1
        return str(self._requests)

    def _step(self) -> list[RequestOutput]:
        return [output for output in self._engine.step() if isinstance(output, RequestOutput) and output.finished]

    def _completions(self, output: RequestOutput) -> tuple[Completion, ...]:
        sampled = sorted(output.outputs, key=lambda one: one.index)
        texts = self._tokenizer.batch_decode(
            [ids[:-1] if ids[-1] in self._ends else ids for ids in (list(one.token_ids) for one in sampled)],
            skip_special_tokens=False,
        )
        completions = []
        for one, text in zip(sampled, texts, strict=True):
            if one.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a completion with {one.finish_reason!r} instead of stop or length")
            ids = tuple(one.token_ids)
            assert one.logprobs is not None
            logprobs = tuple(_logprob(one.logprobs[position], token) for position, token in enumerate(ids))
            span = VersionSpan(0, len(ids), self._policy_version)
            reason: Literal["stop", "length"] = "stop" if one.finish_reason == "stop" else "length"
            completions.append(Completion(ids, logprobs, text, reason, (span,)))
        return tuple(completions)


def _logprob(of_position: Mapping[int, Logprob] | None, token: int) -> float:
    assert of_position is not None
    return of_position[token].logprob


def end_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a completion: the tokenizer's, and those that the policy's generation config adds."""
    ends = {tokenizer.eos_token_id}
    try:
        more = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:
        more = None  # a policy need not have one
    return frozenset(ends | set([more] if isinstance(more, int) else more or ())) - {None}


def _engine_sampling(sampling: SamplingParams, seed: int, ends: frozenset[int]) -> EngineSampling:
    return EngineSampling(
        n=sampling.samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop) or None,
        stop_token_ids=sorted(ends),
        include_stop_str_in_output=True,
        seed=seed,
        logprobs=0,
        flat_logprobs=True,
        # Text is made once, at the end; vLLM would do it token by token. Stop strings need it to.
        detokenize=bool(sampling.stop),
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _scratch(size: int) -> str | None:
    """Shared memory where it has room for `size` bytes twice over, else the system's temporary folder."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        return None
    return str(memory) if shutil.disk_usage(memory).free > 2 * size else None
