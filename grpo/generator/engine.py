"""A generator: a vLLM engine that samples completions and scores given tokens.

The engine is synchronous. On a CPU, by default, it runs in this process, because a second process would only take time.
On a GPU, it runs in separate processes. This module does not use Ray; `grpo.cluster.cluster` starts a generator for
each replica.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from vllm import EngineArgs, RequestOutput
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.v1.engine.core_client import MPClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.llm_engine import LLMEngine

from grpo.generator import cpu_norm, cpu_sampler, cpu_slots
from grpo.generator.sampling import SCORING, SamplingTokens, prompt_logprobs
from grpo.generator.setup import GeneratorSetup
from grpo.generator.worker import EXTENSION, read_profile
from grpo.policy.hub import name_of, revision_of
from grpo.types import EngineDied, EngineFinished, Request, SamplingParams
from grpo.weights import registry as weight_transfer
from grpo.weights.buckets import Bucket, further_names_in, safetensors_header, under_all_names
from grpo.weights.patches import PatchReader
from grpo.weights.source import as_bytes

if TYPE_CHECKING:
    from grpo.report.profiling import ActorProfile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pending:
    request: Request
    sampling: SamplingParams


class Generator:
    """A vLLM engine with the policy's weights and their version.

    An update of the weights runs between two engine steps, while the running requests are paused. After the update, the
    requests continue with the new version. If `rollout.partial` is `restart`, they start again from the prompt.
    """

    def __init__(self, setup: GeneratorSetup) -> None:
        """Load the policy. The caller must have set the process's environment, as `grpo.cluster.cluster` does."""
        weight_transfer.register()
        cpu_norm.register()
        cpu_sampler.register()
        cpu_slots.register()
        on_cpu = setup.device == "cpu"
        own_process = setup.generator.in_own_process(setup.device)
        self._tokens = SamplingTokens(setup.policy_path)
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=name_of(setup.policy_path),
                revision=revision_of(setup.policy_path),
                tokenizer_revision=revision_of(setup.policy_path),
                dtype=setup.dtype,
                tensor_parallel_size=setup.generator.tensor_parallel_size,
                pipeline_parallel_size=setup.generator.pipeline_parallel_size,
                # In a Ray actor, vLLM would start its workers with Ray. But Ray has already given the devices to this
                # actor, so vLLM must start the workers as plain processes.
                distributed_executor_backend="mp" if setup.generator.devices > 1 else None,
                max_model_len=setup.max_sequence_tokens,
                max_num_seqs=setup.generator.max_sequences,
                # A step may process many prompts at once. vLLM's default for an engine of this kind is 2,048 tokens.
                max_num_batched_tokens=max(8192, setup.max_sequence_tokens),
                gpu_memory_utilization=setup.generator.gpu_memory_share,
                enforce_eager=on_cpu or not setup.generator.compile,
                # The cache holds whole blocks of 128 tokens on a CPU. Shorter sequences never fill a block, and the
                # look-ups of such sequences take 3 % of the time.
                enable_prefix_caching=not on_cpu or setup.max_sequence_tokens > 128,
                enable_sleep_mode=setup.sleeps,
                logprobs_mode="raw_logprobs" if setup.temperature == 1.0 else "processed_logprobs",
                weight_transfer_config=WeightTransferConfig(backend=weight_transfer.BACKENDS[setup.transport]),
                # The policy's default temperature and top-k must not change the samples.
                generation_config="vllm",
                disable_log_stats=True,
                # Without scheduling ahead, the same requests give the same batches. Also, when it is paused, only an
                # engine in a separate process waits for a step that was scheduled ahead.
                async_scheduling=None if own_process else False,
                worker_extension_cls=EXTENSION,
            )
        )
        # At the first request, vLLM asks the engine's process which tasks it supports. Ask now: if the process dies
        # before the first request, the error then says that the engine is dead, not that a call failed.
        self._engine.get_supported_tasks()
        if on_cpu and setup.generator.pipeline_parallel_size > 1:
            # Later pipeline stages allocate their inputs in a warm-up, which vLLM omits for eager models on a CPU.
            self._engine.collective_rpc("execute_dummy_batch")
        if setup.transport == "object_store":
            self._engine.collective_rpc("init_weight_transfer_engine", args=({},))
        self._engine.set_weight_version("0")
        self._replica = setup.replica
        self._restart = setup.partial == "restart"
        # Unfinished requests. The key is vLLM's name of the request: the request's id as text.
        self._pending: dict[str, _Pending] = {}
        self._finished: EngineFinished = []
        self._scored: dict[str, RequestOutput] = {}
        # During a weight update: requests to start after the update. None if no update runs.
        self._held: list[_Pending] | None = None
        # With other transports, the engine's processes keep the copies to which sparse changes are applied.
        self._patches = PatchReader() if setup.sparse and setup.transport == "object_store" else None

    @property
    def alive(self) -> bool:
        """Whether the engine's processes are alive."""
        core = self._engine.engine_core
        return not (isinstance(core, MPClient) and core.resources.engine_dead)

    @property
    def busy(self) -> bool:
        """Whether `step` has work to do."""
        return bool(self._finished) or (bool(self._pending) and self._held is None)

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        """Begin to sample for all requests."""
        for request in requests:
            self._start(_Pending(request, sampling))

    def step(self) -> EngineFinished:
        """Sample a token of each running completion; return all groups that finished since the last call.

        Raises:
            EngineDied: the engine's process is gone.
        """
        if self._pending and self._held is None:
            self._advance()
        finished, self._finished = self._finished, []
        return finished

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each token of a sequence except the first, at temperature 1."""
        assert self._held is None, "a paused engine scores nothing"
        names = [f"score-{number}" for number in range(len(sequences))]
        for name, sequence in zip(names, sequences, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": list(sequence)}, SCORING)
        while len(self._scored) < len(names):
            self._advance()
        scored, self._scored = self._scored, {}
        return [prompt_logprobs(scored[name]) for name in names]

    def join_sender(self, invitation: dict[str, Any]) -> None:
        """Connect to the learner for later pushes (`grpo.weights.link`). The engine must be idle."""
        self._engine.collective_rpc("init_weight_transfer_engine", args=(invitation,))

    def begin_update(self) -> None:
        """Prepare for new weights: pause the running requests."""
        # Level 0 only pauses the engine. A step that was scheduled ahead finishes first, with the old version.
        self._engine.sleep(level=0, mode="keep")
        self._held = []
        if self._restart:
            self._engine.abort_request(list(self._pending))
            self._held = list(self._pending.values())
            self._pending.clear()
        self._engine.collective_rpc("start_weight_update")

    def update(self, bucket: np.ndarray | Bucket) -> list[str]:
        """Load one bucket of weights; return the names of its tensors.

        Args:
            bucket: either a uint8 array or a `Bucket`. The array holds the bytes of a safetensors file with the
                tensors; if `sparse` is set, with the changes of the tensors (`PatchWriter.file`). A `Bucket` describes
                a bucket that another transport brings.

        Raises:
            WeightsDiffer: after the changes are applied, a tensor differs from the learner's tensor.
        """
        if isinstance(bucket, Bucket):
            self._engine.collective_rpc("update_weights", args=(bucket.update_info(),))
            return bucket.names
        if self._patches is None:
            return self._load([bucket.data], bucket.nbytes)
        tensors = self._patches.read(bucket)
        whole = Bucket(0, tuple(info for info, _ in tensors))
        parts = (as_bytes(tensor).numpy().data for _, tensor in tensors)
        return self._load(itertools.chain([safetensors_header(whole)], parts), whole.nbytes)

    def _load(self, parts: Iterable[bytes | memoryview], nbytes: int) -> list[str]:
        """Write a safetensors file from `parts` and load it; return the names of its tensors."""
        # The engine may run in other processes of this node, so the tensors are passed in a file.
        with tempfile.NamedTemporaryFile(dir=_scratch(nbytes), suffix=".safetensors") as file:
            file.writelines(parts)
            file.flush()
            self._engine.collective_rpc("update_weights", args=({"path": file.name},))
            with safe_open(file.name, framework="pt") as tensors:
                unnamed = dict.fromkeys(list(tensors.keys()))
                return [name for name, _ in under_all_names(unnamed.items(), further_names_in(tensors.metadata()))]

    def finish_update(self, policy_version: int) -> None:
        """Sample from the new weights from now on, and call them `policy_version`. Call this after the last bucket."""
        self._engine.collective_rpc("finish_weight_update")
        # Cached keys and values come from the old weights, so running requests compute them again from their tokens.
        self._engine.reset_prefix_cache(reset_running_requests=True)
        self._engine.set_weight_version(str(policy_version))
        self._engine.wake_up(tags=["scheduling"])
        held, self._held = self._held or [], None
        for pending in held:
            self._start(pending)
        logger.info("samples with the weights of policy version %d", policy_version)

    def sleep(self) -> None:
        """Move the weights to host memory and drop the cache, until `wake`. The engine must be idle."""
        assert not self._pending, "running requests would be lost"
        self._engine.sleep(level=1)

    def wake(self) -> None:
        """Move the weights back to the device and make an empty cache."""
        self._engine.wake_up()
        self._engine.reset_prefix_cache()

    def start_profile(self) -> None:
        """Start to profile the operators of every process that computes the model."""
        self._engine.collective_rpc("start_operator_profile", args=(self._replica,))

    def stop_profile(self, folder: str) -> list[ActorProfile]:
        """Stop profiling. Write a trace of each process into `folder`, and return the profiles."""
        name = f"generator_{self._replica}"
        profiles = self._engine.collective_rpc("stop_operator_profile", args=(folder, name))
        return [read_profile(self._replica, profile) for profile in profiles]

    def _start(self, pending: _Pending) -> None:
        if self._held is not None:
            self._held.append(pending)
            return
        name = str(pending.request.id)
        with _alive():
            self._engine.add_request(
                name,
                {"prompt_token_ids": list(pending.request.token_ids)},
                self._tokens.engine_sampling(pending.sampling, pending.request),
            )
        self._pending[name] = pending

    def _advance(self) -> None:
        with _alive():
            outputs = self._engine.step()
        for output in outputs:
            if not isinstance(output, RequestOutput) or not output.finished:
                continue
            pending = self._pending.pop(output.request_id, None)
            if pending is None:
                self._scored[output.request_id] = output
            else:
                self._finished.append((pending.request.id, self._tokens.completions(output)))


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except EngineDeadError as dead:
        # The driver may run without vLLM, and then it cannot unpickle vLLM's error.
        raise EngineDied("the process of a generator's engine is gone") from dead


def _scratch(size: int) -> str | None:
    """Return the folder of shared memory if it has more than twice `size` bytes free.

    Otherwise return None, which means the temporary folder.
    """
    memory = Path("/dev/shm")
    if not memory.is_dir():
        return None
    return str(memory) if shutil.disk_usage(memory).free > 2 * size else None
