"""The DeepSpeed room: one rank of the learner, which owns the policy being trained.

Nothing here knows of Ray or vLLM: `grpo.cluster.cluster` runs one `LearnerRank` per device and calls all ranks alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import deepspeed
import numpy as np
import torch
from deepspeed.comm.torch import build_shm_op
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from grpo.algorithm.choices import load_on_rank
from grpo.algorithm.minibatches import RankBatch
from grpo.algorithm.objective import Terms, policy_terms, supervised_terms
from grpo.algorithm.packing import Microbatch, TrainingSequence, pack
from grpo.algorithm.rescoring import Source
from grpo.algorithm.totals import Totals
from grpo.learner.compiled_operators import compile_alone
from grpo.learner.deepspeed_setup import (
    attention_layout,
    deepspeed_settings,
    load_policy,
    parameter_groups,
    plain_data_only,
)
from grpo.learner.export import PolicyExport
from grpo.learner.rendezvous import meet
from grpo.learner.schedule import learning_rate
from grpo.learner.setup import LearnerSetup
from grpo.learner.speed import SpeedMeter
from grpo.policy.adapters import adapters_off, add_adapters, check_adapter
from grpo.policy.hub import at_revision, name_of
from grpo.policy.logprobs import DTYPES, PolicyLogprobs
from grpo.policy.sequence_parallel import SequenceGroup, register_attention
from grpo.report import run_files
from grpo.weights.buckets import Bucket, TensorInfo, cut
from grpo.weights.patches import PatchWriter, Pushed
from grpo.weights.sender import GroupTransport, Handle, Sender
from grpo.weights.senders import make_sender
from grpo.weights.source import PolicyWeights

# In a checkpoint: the reference, where it is no longer the starting policy.
REFERENCE = "reference.pt"
# In a checkpoint: LoRA's adapters alone.
ADAPTER = "adapter"
# What DeepSpeed's part of a checkpoint holds beside tensors and plain data: a few records.
_IN_A_CHECKPOINT = (fragment_address, LossScaler, DynamicLossScaler, ZeroStageEnum)


class LearnerRank:
    """One rank: a policy under DeepSpeed, with microbatches of its own or shared with its neighbours."""

    def __init__(self, setup: LearnerSetup, master_address: str, master_port: int) -> None:
        """Join the other ranks and load the policy. Blocks until all ranks have come."""
        self._setup = setup
        if setup.algorithm:
            # A node that lacks a function of the user's says so before it loads the policy.
            load_on_rank(setup.algorithm)
        os.environ.update(
            RANK=str(setup.rank),
            WORLD_SIZE=str(setup.world_size),
            LOCAL_RANK="0",
            MASTER_ADDR=master_address,
            MASTER_PORT=str(master_port),
        )
        if setup.device == "cpu":
            torch.set_num_threads(setup.learner.threads)
            compile_alone(build_shm_op)
        backend = "gloo" if setup.device == "cpu" else "nccl"
        meet(backend, setup.rank, setup.world_size, master_address, master_port)
        deepspeed.init_distributed(backend, verbose=False)
        self._device = torch.device(setup.device)
        settings = deepspeed_settings(setup)
        self._lora = setup.learner.lora
        self._group = self._form_group()
        # A checkpoint's policy has its adapters merged; they belong into what the run started from.
        path = setup.reference_path if self._lora else setup.policy_path
        layout = attention_layout(setup)
        module = PolicyLogprobs(load_policy(setup, path, settings), self._group, layout)
        if self._lora:
            add_adapters(module.model, self._lora, setup.seed)
        optimizer = torch.optim.AdamW(
            parameter_groups(module, setup.learner.weight_decay), lr=0.0, betas=setup.learner.betas
        )
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        tokenizer = AutoTokenizer.from_pretrained(name_of(setup.policy_path), **at_revision(setup.policy_path))
        gather = self._gathered if setup.learner.zero_stage == 3 else None
        self._weights = PolicyWeights(self._engine.module.model, DTYPES[setup.dtype], gather)
        self._export = PolicyExport(self._engine.module.model, self._weights, tokenizer, setup, self._gathered)
        self._patches = PatchWriter(self._weights, wanted=setup.rank == 0)
        self._sender: Sender | None = None
        self._reference = None
        if setup.algorithm and setup.algorithm.needs_reference and not self._lora:
            reference = PolicyLogprobs(load_policy(setup, setup.reference_path, None), self._group, layout)
            self._reference = reference.to(self._device).requires_grad_(False).eval()
        self._meter = SpeedMeter(
            self._engine.module.model.config,
            self._device,
            setup.learner.peak_tflops,
            frozen=setup.learner.lora is not None,
        )
        self._optimizer_steps = 0
        self._skipped_in_a_row = 0

    def _form_group(self) -> SequenceGroup | None:
        """The ranks that share this one's microbatches, and their attention; None where it has its own."""
        size = self._setup.learner.sequence_parallel
        if size == 1:
            return None
        group = SequenceGroup(size)
        register_attention(
            AutoConfig.from_pretrained(name_of(self._setup.policy_path), **at_revision(self._setup.policy_path)), group
        )
        return group

    @property
    def _counts(self) -> bool:
        """Whether this rank speaks for its microbatches; of ranks that share them, the first does."""
        return self._group is None or self._group.rank == 0

    def step(self, batch: RankBatch) -> dict[str, float]:
        """One optimizer step: every microbatch forward and backward, then one update.

        The loss is the weighted sum over all trained tokens of all ranks divided by the global denominator, whichever
        way they were split: DeepSpeed averages gradients over ranks, so each rank's sum is multiplied by their number
        first. Ranks that share a microbatch compute the same loss, each with the gradient of its own tokens, so that
        their gradients add up as any others do. Where loss or gradient is not finite, no rank takes the step, and each
        writes its part of the batch.

        Returns:
            Global metrics, the same on every rank; of a step that was skipped little but `skipped_steps`.

        Raises:
            RuntimeError: the last `learner.max_skipped_steps` steps were all skipped.
        """
        self._meter.start()
        self._engine.train()
        # Dropout of a step is drawn from its number, and so the same after a resume, on every rank and device.
        torch.manual_seed(self._seed_of_step())
        rate = learning_rate(self._setup.learner, self._optimizer_steps, self._setup.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        totals = Totals()
        last = len(batch.microbatches) - 1
        with self._reduction(len(batch.microbatches)):
            for index, microbatch in enumerate(batch.microbatches):
                self._engine.set_gradient_accumulation_boundary(index == last)
                terms = self._terms(microbatch.to(self._device))
                # 1, or no number where the loss is none: the gradient is none either then, and DeepSpeed, which looks
                # at the norm of the whole, takes no step on any rank and clears what it has gathered, at every stage.
                finite = terms.loss_sum.detach() * 0 + 1
                self._engine.backward(terms.loss_sum * finite * (self._setup.world_size / batch.denominator))
                if self._counts:
                    totals.add(terms)
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        self._optimizer_steps += 1
        if not self._engine.was_step_applied():
            return self._skipped(batch, rate)
        self._skipped_in_a_row = 0
        summed, largest = self._meter.stop(batch.microbatches)
        summed /= self._setup.learner.sequence_parallel
        totals.added, summed = self._over_ranks("SUM", totals.added, summed)
        totals.largest, largest = self._over_ranks("MAX", totals.largest, largest)
        speed = self._meter.metrics(summed, largest, self._setup.world_size)
        return (
            totals.metrics(batch.denominator, self._setup.algorithm)
            | speed
            | {
                "gradient_norm": float(self._engine.get_global_grad_norm()),
                "learning_rate": rate,
                "skipped_steps": 0.0,
            }
        )

    def _seed_of_step(self) -> int:
        entropy = (self._setup.seed % (1 << 32), self._setup.rank, self._optimizer_steps)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _over_ranks(self, how: Literal["SUM", "MAX"], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Each tensor, float64 on the CPU, summed over all ranks or its maximum, in one collective."""
        if self._setup.world_size == 1:
            return tensors
        joined = torch.cat(tensors).to(self._device)
        torch.distributed.all_reduce(joined, op=getattr(torch.distributed.ReduceOp, how))
        return torch.split(joined.cpu(), [len(one) for one in tensors])

    def _reduction(self, microbatches: int) -> AbstractContextManager[None]:
        """Holds back the reduction of gradients to its end, where it is to happen once and would not by itself."""
        learner = self._setup.learner
        # ZeRO-1 reduces at the last microbatch anyway.
        held_back = learner.zero_stage > 1 and microbatches > 1 and self._setup.world_size > 1
        if held_back and learner.reduces_once(self._setup.dtype):
            return self._engine.coalesce_grad_reduction()  # type: ignore[no-any-return]
        return contextlib.nullcontext()

    def _terms(self, batch: Microbatch) -> Terms:
        algorithm = self._setup.algorithm
        if algorithm is None:
            return supervised_terms(batch, *self._engine(batch, self._setup.temperature))
        reference_T = self._reference_logprobs(batch) if algorithm.kl_in_loss else None
        logprobs_T, entropy_T = self._engine(batch, self._setup.temperature, bool(algorithm.entropy_coefficient))
        return policy_terms(algorithm, batch, logprobs_T, entropy_T, reference_T)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Microbatch) -> Tensor:
        """Log-probabilities under the reference, [T]: a second model, or with LoRA the policy without adapters."""
        if self._reference is not None:
            logprobs_T: Tensor = self._reference(batch, self._setup.temperature)[0]
            return logprobs_T
        assert self._lora is not None
        training = self._engine.training
        self._engine.eval()
        with adapters_off(self._engine.module):
            logprobs_T = self._engine(batch, self._setup.temperature)[0]
        self._engine.train(training)
        return logprobs_T

    def _skipped(self, batch: RankBatch, rate: float) -> dict[str, float]:
        """Keep a batch whose loss or gradient is not finite for inspection, and stop where there are too many."""
        self._skipped_in_a_row += 1
        folder = Path(self._setup.skipped_folder)
        if self._counts:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"optimizer_step_{self._optimizer_steps:06d}_rank_{self._setup.rank}.pt"
            # Plain data and tensors, which torch.load(weights_only=True) reads.
            microbatches = [dataclasses.asdict(one) for one in batch.microbatches]
            torch.save({"denominator": batch.denominator, "microbatches": microbatches}, path)
        if self._skipped_in_a_row >= self._setup.learner.max_skipped_steps:
            raise RuntimeError(
                f"loss or gradient of {self._skipped_in_a_row} optimizer steps in a row was not finite, as many as "
                f"learner.max_skipped_steps allows; their batches are in {folder}. Look for log-probabilities that are "
                "not finite in them, lower learner.learning_rate, or resume from an earlier checkpoint"
            )
        return {"learning_rate": rate, "skipped_steps": 1.0}

    @torch.no_grad()
    def logprobs(self, microbatches: Sequence[Microbatch], source: Source) -> list[Tensor]:
        """Log-probability of each position's target at the training temperature: float32 [T] for each microbatch.

        Args:
            microbatches: as many on every rank.
            source: `policy` as it is now, or the `reference`.
        """
        self._engine.eval()
        on_device = (one.to(self._device) for one in microbatches)
        if source == "reference":
            return [self._reference_logprobs(one).float().cpu() for one in on_device]
        return [self._engine(one, self._setup.temperature)[0].float().cpu() for one in on_device]

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """Make the reference the policy as it is now."""
        assert self._reference is not None
        reference = dict(self._reference.model.named_parameters(remove_duplicate=False))
        for name, tensor in self.weights():
            reference[name].copy_(tensor)

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token but the first of each sequence, at temperature 1, as the policy is now."""
        self._engine.eval()
        packed = pack([TrainingSequence(tuple(ids), 1, (0.0,) * (len(ids) - 1), 0.0) for ids in sequences])
        logprobs_T, _ = self._engine(packed.to(self._device), 1.0)
        return [row.tolist() for row in logprobs_T.float().cpu().split(packed.lengths_S.tolist())]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the policy, as `PolicyWeights` gives it. All ranks must iterate together."""
        return iter(self._weights)

    def export(self, folder: str) -> None:
        """Write the policy alone in Hugging Face format, as `transformers` and vLLM load it."""
        self._export.policy(folder)

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        enabled = self._setup.learner.zero_stage == 3
        return deepspeed.zero.GatheredParameters(parameters, enabled=enabled)  # type: ignore[no-any-return]

    def tensors(self) -> list[TensorInfo]:
        """Name, dtype and whole shape of every tensor, tied ones under each of their names."""
        return self._weights.infos()

    def export_buckets(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        """The policy in pieces of at most `bucket_bytes`: uint8 arrays, each the bytes of a safetensors file.

        Rank 0 yields them; the other ranks take part in the gathering and yield nothing. A piece's memory is used again
        for the next one. A piece ends only where a layer's block does (`self_attn`, `mlp`), and is as large as that
        where a block is larger.
        """
        return self._weights.files(bucket_bytes, wanted=self._setup.rank == 0)

    @torch.no_grad()
    def export_changes(self, bucket_bytes: int, *, whole: bool) -> Iterator[np.ndarray]:
        """Likewise, of each tensor only what changed since the last time (`PatchWriter.file`).

        Args:
            bucket_bytes: of the whole tensors of one piece.
            whole: send all, as some generator has not got what came the last time.
        """
        if whole:
            self._patches.forget()
        for bucket in cut(self.tensors(), bucket_bytes):
            file = self._patches.file(bucket)
            if file is not None:
                yield file

    def take_pushed(self) -> Pushed:
        """What sparse pushes have carried since this was last asked."""
        pushed, self._patches.pushed = self._patches.pushed, Pushed()
        return pushed

    def open_sender(self, transport: GroupTransport, address: str, members: Sequence[str], deadline_s: float) -> int:
        """Make ready to send buckets to generators; the port at which they find this rank (`Sender.open`)."""
        if self._sender is None:
            self._sender = make_sender(transport, self._weights, self._setup.rank, self._patches)
        return self._sender.open(address, members, deadline_s)

    def join_receivers(self) -> None:
        """Wait for the generators that were told of this rank."""
        assert self._sender is not None
        self._sender.join()

    @torch.no_grad()
    def send_bucket(self, bucket: Bucket) -> Handle | None:
        """Gather a bucket, all ranks together, and send it to the generators (`Sender.send`)."""
        assert self._sender is not None
        return self._sender.send(bucket)

    def sleep(self) -> None:
        """Move optimizer states and float32 weights into the host's memory, unless they live there; end with `wake`."""
        if self._setup.learner.offload == "none":
            states = (OffloadStateTypeEnum.optim_states, OffloadStateTypeEnum.hp_params)
            self._engine.offload_states(include=states, pin_memory=self._device.type == "cuda")

    def wake(self) -> None:
        """Move back what `sleep` moved. The generators have loaded all that was sent."""
        if self._sender is not None:
            self._sender.release()
        if self._setup.learner.offload == "none":
            self._engine.reload_states()

    def save(self, folder: str) -> None:
        """Write the training state (every rank its part) and the policy in Hugging Face format (rank 0).

        With LoRA the state is that of the adapters, which are also written by themselves as peft reads them.
        """
        self._engine.save_checkpoint(
            str(Path(folder) / "learner"),
            tag="state",
            client_state={
                "optimizer_steps": self._optimizer_steps,
                "skipped_in_a_row": self._skipped_in_a_row,
                "frozen_sum": self._export.frozen_sum(),
            },
            save_latest=False,
            exclude_frozen_parameters=self._lora is not None,
        )
        algorithm = self._setup.algorithm
        if self._reference is not None and algorithm and algorithm.reference_refresh and self._setup.rank == 0:
            torch.save(self._reference.state_dict(), Path(folder) / REFERENCE)
        if self._lora:
            self._export.adapter(Path(folder) / ADAPTER)
        self.export(str(Path(folder) / run_files.POLICY))

    def load(self, folder: str) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: there is nothing, it was written by another number of ranks, it holds what may run code, or its
                adapters are not those that `learner.lora` asks for or belong into other weights.
        """
        adapter = Path(folder) / ADAPTER
        if adapter.is_dir() != (self._lora is not None):
            raise ValueError(
                f"{folder} was written {'with' if adapter.is_dir() else 'without'} learner.lora; resume with the "
                "learner.lora that the run started with"
            )
        if self._lora:
            check_adapter(self._engine.module.model, adapter)
        with plain_data_only(folder, _IN_A_CHECKPOINT):
            path, state = self._engine.load_checkpoint(
                str(Path(folder) / "learner"), tag="state", load_module_strict=self._lora is None
            )
        if path is None:
            raise ValueError(
                f"{folder} holds no learner state that {self._setup.world_size} ranks could read; "
                "resume with as many learner.ranks as wrote it"
            )
        if self._lora and not math.isclose(state["frozen_sum"], self._export.frozen_sum(), rel_tol=1e-9):
            raise ValueError(
                f"the adapters in {folder} were trained on other weights than those of {self._setup.reference_path}; "
                "resume with the policy.path and policy.dtype that the run started from"
            )
        self._optimizer_steps = state["optimizer_steps"]
        self._skipped_in_a_row = state.get("skipped_in_a_row", 0)
        reference = Path(folder) / REFERENCE
        if self._reference is not None and reference.exists():
            self._reference.load_state_dict(torch.load(reference, weights_only=True, map_location=self._device))
