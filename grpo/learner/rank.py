"""One rank of the learner, which trains the policy with DeepSpeed.

This module does not import Ray or vLLM: `grpo.cluster.cluster` runs a `LearnerRank` on each device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import deepspeed
import numpy as np
import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from grpo.algorithm.choices import load_on_rank
from grpo.algorithm.minibatches import RankBatch
from grpo.algorithm.objective import Terms, policy_terms, supervised_terms
from grpo.algorithm.packing import Microbatch, TrainingSequence, pack
from grpo.algorithm.preference_loss import PAIR_SUMS, PairTotals, preference_terms
from grpo.algorithm.rescoring import Source
from grpo.algorithm.reward_models.loss import REWARD_SUMS, reward_terms
from grpo.algorithm.totals import Totals
from grpo.config import RewardScheduleConfig
from grpo.learner.deepspeed_setup import deepspeed_settings, load_policy, parameter_groups
from grpo.learner.device import prepare_device
from grpo.learner.export import PolicyExport
from grpo.learner.kernels import choose_kernels
from grpo.learner.rendezvous import meet
from grpo.learner.schedule import learning_rate
from grpo.learner.setup import LearnerSetup
from grpo.learner.speed import SpeedMeter
from grpo.learner.state import Counts, LearnerState
from grpo.policy.adapters import adapters_off, add_adapters
from grpo.policy.head import Entropy
from grpo.policy.hub import at_revision, name_of
from grpo.policy.logprobs import DTYPES, PolicyLogprobs
from grpo.policy.scores import PolicyScores, set_padding
from grpo.policy.sequence_parallel import SequenceGroup, register_attention
from grpo.weights.outlet import WeightOutlet
from grpo.weights.source import PolicyWeights

logger = logging.getLogger(__name__)


class LearnerRank:
    """One rank: a policy under DeepSpeed. A rank has its own microbatches or shares them with neighbouring ranks."""

    def __init__(self, setup: LearnerSetup, master_address: str, master_port: int) -> None:
        """Join the other ranks and load the policy. Block until all ranks have joined."""
        self._setup = setup
        if setup.algorithm:
            # If this node lacks one of the user's functions, the error comes before the slow loading of the policy.
            load_on_rank(setup.algorithm)
        os.environ.update(
            RANK=str(setup.rank),
            WORLD_SIZE=str(setup.world_size),
            LOCAL_RANK="0",
            MASTER_ADDR=master_address,
            MASTER_PORT=str(master_port),
        )
        prepare_device(setup.device, setup.learner.threads)
        backend = "gloo" if setup.device == "cpu" else "nccl"
        meet(backend, setup.rank, setup.world_size, master_address, master_port, setup.collective_deadline_s)
        deepspeed.init_distributed(backend, verbose=False)
        self._device = torch.device(setup.device)
        settings = deepspeed_settings(setup)
        self._lora = setup.learner.lora
        self._group = self._form_group()
        # A checkpoint's policy contains merged adapters. So add adapters to the policy that the run started from.
        path = setup.reference_path if self._lora else setup.policy_path
        kernels = choose_kernels(setup)
        model = load_policy(setup, path, settings)
        module: PolicyLogprobs | PolicyScores = (
            PolicyScores(model, kernels.layout)
            if setup.scores
            else PolicyLogprobs(model, self._group, kernels.layout, kernels.head)
        )
        if self._lora:
            add_adapters(module.model, self._lora, setup.seed)
        # The fused step takes a tenth of the time on a CPU thread. On a GPU it needs no second copy of a moment.
        groups = parameter_groups(module, setup.learner.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=setup.learner.betas, fused=True)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        tokenizer = AutoTokenizer.from_pretrained(name_of(setup.policy_path), **at_revision(setup.policy_path))
        if setup.scores:
            set_padding(model, tokenizer)
        gather = self._gathered if setup.learner.zero_stage == 3 else None
        self._weights = PolicyWeights(self._engine.module.model, DTYPES[setup.dtype], gather)
        self._export = PolicyExport(self._engine.module.model, self._weights, tokenizer, setup, self._gathered)
        # Generators connect to rank 0, through the address that the ranks also use.
        self.outlet = WeightOutlet(self._weights, setup.rank, master_address)
        self._reference = None
        if setup.algorithm and setup.algorithm.needs_reference and not self._lora:
            frozen = load_policy(setup, setup.reference_path, None)
            reference = PolicyLogprobs(frozen, self._group, kernels.layout, kernels.head)
            self._reference = reference.to(self._device).requires_grad_(False).eval()
        self._teacher = None
        if setup.teacher_path:
            # The layout and the head of the policy's kernels serve any model of the policy's dtype.
            scoring = PolicyLogprobs(load_policy(setup, setup.teacher_path, None), None, kernels.layout, kernels.head)
            self._teacher = scoring.to(self._device).requires_grad_(False).eval()
        self._meter = SpeedMeter(
            self._engine.module.model.config,
            self._device,
            setup.learner.peak_tflops,
            frozen=setup.learner.lora is not None,
        )
        self._state = LearnerState(setup, self._engine, self._reference, self._export)
        self._counts = Counts()

    def _form_group(self) -> SequenceGroup | None:
        """Form the group of ranks that share microbatches and attention; None if this rank shares no microbatches."""
        size = self._setup.learner.sequence_parallel
        if size == 1:
            return None
        group = SequenceGroup(size)
        register_attention(
            AutoConfig.from_pretrained(name_of(self._setup.policy_path), **at_revision(self._setup.policy_path)), group
        )
        return group

    @property
    def _speaks(self) -> bool:
        """Whether this rank reports for its microbatches. If ranks share microbatches, the first rank reports."""
        return self._group is None or self._group.rank == 0

    def step(self, batch: RankBatch) -> dict[str, float]:
        """Do one optimizer step: forward and backward passes of all microbatches, then one update.

        The loss is the weighted sum over all trained tokens of all ranks, divided by the global denominator. The split
        over ranks does not change the loss: DeepSpeed averages gradients over ranks, so each rank first multiplies its
        sum by the number of ranks. Ranks that share a microbatch compute the same loss, but each rank computes only the
        gradient of its part of the tokens, so the sum of these gradients is the whole gradient. If loss or gradient is
        not finite, no rank updates the policy, and each rank writes its part of the batch.

        Returns:
            Global metrics, the same on every rank. A skipped step returns only `skipped_steps` and `learning_rate`.

        Raises:
            RuntimeError: the last `learner.max_skipped_steps` steps were all skipped.
        """
        self._meter.start()
        self._engine.train()
        # The step's number seeds dropout, so a resumed run drops the same values on every rank and device.
        torch.manual_seed(self._seed_of_step())
        rate = learning_rate(self._setup.learner, self._counts.optimizer_steps, self._setup.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        totals = self._totals()
        last = len(batch.microbatches) - 1
        with self._reduction(len(batch.microbatches)):
            for index, microbatch in enumerate(batch.microbatches):
                self._engine.set_gradient_accumulation_boundary(index == last)
                terms = self._terms(microbatch.to(self._device))
                # `finite` is 1 if the loss is finite, otherwise NaN, which makes the gradient NaN. DeepSpeed checks the
                # norm of all gradients. If the norm is NaN, DeepSpeed takes no step on any rank and clears the
                # collected gradients, at every ZeRO stage.
                finite = terms.loss_sum.detach() * 0 + 1
                self._engine.backward(terms.loss_sum * finite * (self._setup.world_size / batch.denominator))
                if self._speaks:
                    totals.add(terms)
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        self._counts.optimizer_steps += 1
        if not self._engine.was_step_applied():
            return self._skipped(batch, rate)
        self._counts.skipped_in_a_row = 0
        summed, largest = self._meter.stop(batch.microbatches)
        summed /= self._setup.learner.sequence_parallel
        totals.read()
        totals.added, summed = self._over_ranks("SUM", totals.added, summed)
        totals.largest, largest = self._over_ranks("MAX", totals.largest, largest)
        speed = self._meter.metrics(summed, largest, self._setup.world_size)
        metrics = totals.metrics(batch.denominator, self._setup.algorithm) | speed
        norm = float(self._engine.get_global_grad_norm())
        metrics |= {"gradient_norm": norm, "learning_rate": rate, "skipped_steps": 0.0}
        figures = ", ".join(f"{name} {metrics[name]:.4g}" for name in ("loss", "gradient_norm", "compute_s"))
        logger.info("optimizer step %d: %d microbatches, %s", self._counts.optimizer_steps, last + 1, figures)
        return metrics

    def _seed_of_step(self) -> int:
        entropy = (self._setup.seed % (1 << 32), self._setup.rank, self._counts.optimizer_steps)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _over_ranks(self, how: Literal["SUM", "MAX"], *tensors: Tensor) -> tuple[Tensor, ...]:
        """Reduce tensors (float64, on the CPU) over all ranks by sum or maximum, in one collective."""
        if self._setup.world_size == 1:
            return tensors
        joined = torch.cat(tensors).to(self._device)
        torch.distributed.all_reduce(joined, op=getattr(torch.distributed.ReduceOp, how))
        return torch.split(joined.cpu(), [len(tensor) for tensor in tensors])

    def _reduction(self, microbatches: int) -> AbstractContextManager[None]:
        """Delay the reduction of gradients to the end of the context, if there must be one reduction per step."""
        learner = self._setup.learner
        # ZeRO-1 always reduces at the last microbatch.
        held_back = learner.zero_stage > 1 and microbatches > 1 and self._setup.world_size > 1
        if held_back and learner.reduces_once(self._setup.dtype):
            return self._engine.coalesce_grad_reduction()  # type: ignore[no-any-return]
        return contextlib.nullcontext()

    def _totals(self) -> Totals:
        if not self._setup.preference:
            return Totals(self._device)
        return PairTotals(self._device, REWARD_SUMS if self._setup.scores else PAIR_SUMS)

    def _terms(self, batch: Microbatch) -> Terms:
        algorithm, preference = self._setup.algorithm, self._setup.preference
        if isinstance(preference, RewardScheduleConfig):
            return reward_terms(preference, batch, self._engine(batch)[0])
        if preference:
            return preference_terms(preference, batch, self._engine(batch, self._setup.temperature)[0])
        if algorithm is None:
            return supervised_terms(batch, *self._engine(batch, self._setup.temperature, "value"))
        reference_T = self._reference_logprobs(batch) if algorithm.kl_in_loss else None
        entropy: Entropy = "gradient" if algorithm.entropy_coefficient else "value"
        logprobs_T, entropy_T = self._engine(batch, self._setup.temperature, entropy)
        return policy_terms(algorithm, batch, logprobs_T, entropy_T, reference_T)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Microbatch) -> Tensor:
        """Return log-probabilities [T] of the reference: a second model or, with LoRA, the policy without adapters."""
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
        """Write a batch whose loss or gradient is not finite, for inspection; raise after too many in a row."""
        self._counts.skipped_in_a_row += 1
        folder = Path(self._setup.skipped_folder)
        if self._speaks:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"optimizer_step_{self._counts.optimizer_steps:06d}_rank_{self._setup.rank}.pt"
            # The file holds plain data and tensors, so torch.load(weights_only=True) can read it.
            microbatches = [dataclasses.asdict(microbatch) for microbatch in batch.microbatches]
            torch.save({"denominator": batch.denominator, "microbatches": microbatches}, path)
        logger.warning("optimizer step %d is skipped: loss or gradient is not finite", self._counts.optimizer_steps)
        if self._counts.skipped_in_a_row >= self._setup.learner.max_skipped_steps:
            raise RuntimeError(
                f"loss or gradient of {self._counts.skipped_in_a_row} optimizer steps in a row was not finite, as many "
                f"as learner.max_skipped_steps allows; their batches are in {folder}. Look there for log-probabilities "
                "that are not finite, lower learner.learning_rate, or resume from an earlier checkpoint"
            )
        return {"learning_rate": rate, "skipped_steps": 1.0}

    @torch.no_grad()
    def logprobs(self, microbatches: Sequence[Microbatch], source: Source) -> list[Tensor]:
        """Return each position's log-probability of its target at the sampling temperature: float32 [T] per microbatch.

        Args:
            microbatches: microbatches to score; every rank needs the same number of microbatches.
            source: model to score with: the current `policy`, the `reference` or the `teacher`.
        """
        self._engine.eval()
        scored = [self._logprobs_of(microbatch.to(self._device), source) for microbatch in microbatches]
        # One copy at the end: with a copy for each microbatch, the host would wait for each.
        whole = torch.cat([logprobs_T.float() for logprobs_T in scored]).cpu()
        return list(torch.split(whole, [len(logprobs_T) for logprobs_T in scored]))

    def _logprobs_of(self, microbatch: Microbatch, source: Source) -> Tensor:
        if source == "reference":
            return self._reference_logprobs(microbatch)
        if source == "teacher":
            assert self._teacher is not None
            teacher_T: Tensor = self._teacher(microbatch, self._setup.temperature)[0]
            return teacher_T
        logprobs_T: Tensor = self._engine(microbatch, self._setup.temperature)[0]
        return logprobs_T

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """Copy the current policy into the reference."""
        assert self._reference is not None
        reference = dict(self._reference.model.named_parameters(remove_duplicate=False))
        for name, tensor in self.weights():
            reference[name].copy_(tensor)

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the current policy's log-probabilities of all tokens but the first, by sequence, at temperature 1."""
        self._engine.eval()
        packed = pack([TrainingSequence(tuple(ids), 1, (0.0,) * (len(ids) - 1), 0.0) for ids in sequences])
        (logprobs_T,) = self._engine(packed.to(self._device), 1.0)
        return [row.tolist() for row in logprobs_T.float().cpu().split(packed.lengths_S.tolist())]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the policy's tensors in `PolicyWeights`. All ranks must iterate together."""
        return iter(self._weights)

    def export(self, folder: str) -> None:
        """Write the policy alone in Hugging Face format, as `transformers` and vLLM load it."""
        self._export.policy(folder)

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        enabled = self._setup.learner.zero_stage == 3
        return deepspeed.zero.GatheredParameters(parameters, enabled=enabled)  # type: ignore[no-any-return]

    def sleep(self) -> None:
        """Move optimizer states and float32 weights to host memory, unless offload keeps them there."""
        if self._setup.learner.offload == "none":
            states = (OffloadStateTypeEnum.optim_states, OffloadStateTypeEnum.hp_params)
            self._engine.offload_states(include=states, pin_memory=self._device.type == "cuda")
        if self._device.type == "cuda":
            # torch keeps freed memory of the backward pass for itself, so the generator on this GPU cannot use it.
            gc.collect()
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Undo `sleep`. Call `wake` after the generators have loaded the whole push."""
        self.outlet.release()
        if self._setup.learner.offload == "none":
            self._engine.reload_states()

    def save(self, folder: str) -> None:
        """Write the rank's part of a checkpoint (`LearnerState.save`)."""
        self._state.save(Path(folder), self._counts)
        logger.info("wrote a checkpoint into %s", folder)

    def load(self, folder: str) -> None:
        """Load the rank's part of a checkpoint, which `save` wrote (`LearnerState.load`)."""
        self._counts = self._state.load(Path(folder))
        logger.info("continues from %s", folder)
