"""The DeepSpeed room: one rank of the learner, which owns the policy being trained.

Nothing here knows of Ray or vLLM: `grpo.cluster` runs one `LearnerRank` per device and calls all ranks alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import safetensors.torch
import torch
from deepspeed.comm.torch import build_shm_op
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from grpo import losses
from grpo.batching import RankBatch
from grpo.compiled_operators import compile_alone
from grpo.packing import Microbatch, TrainingSequence, pack
from grpo.policy_logprobs import DTYPES, PolicyLogprobs, load_model
from grpo.schedule import learning_rate
from grpo.setups import LearnerSetup


class LearnerRank:
    """One data-parallel rank: a policy under DeepSpeed."""

    def __init__(self, setup: LearnerSetup, master_address: str, master_port: int) -> None:
        """Join the other ranks and load the policy. Blocks until all ranks have come."""
        self._setup = setup
        os.environ.update(
            RANK=str(setup.rank),
            WORLD_SIZE=str(setup.world_size),
            LOCAL_RANK="0",
            MASTER_ADDR=master_address,
            MASTER_PORT=str(master_port),
        )
        torch.manual_seed(setup.seed)
        if setup.device == "cpu":
            torch.set_num_threads(setup.learner.threads)
            compile_alone(build_shm_op)
        deepspeed.init_distributed("gloo" if setup.device == "cpu" else "nccl", verbose=False)
        self._device = torch.device(setup.device)
        settings = deepspeed_settings(setup)
        self._tokenizer = AutoTokenizer.from_pretrained(setup.policy_path)
        module = PolicyLogprobs(_load_model(setup, setup.policy_path, settings))
        optimizer = torch.optim.AdamW(
            _parameter_groups(module, setup.learner.weight_decay), lr=0.0, betas=setup.learner.betas
        )
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self._reference = None
        if setup.algorithm and setup.algorithm.kl_coefficient > 0:
            reference = PolicyLogprobs(_load_model(setup, setup.reference_path, None))
            self._reference = reference.to(self._device).requires_grad_(False).eval()
        self._optimizer_steps = 0

    def step(self, batch: RankBatch) -> dict[str, float]:
        """One optimizer step: every microbatch forward and backward, then one update.

        The loss is the sum over all trained tokens of all ranks divided by their number, whichever way they were
        split: DeepSpeed averages gradients over ranks, so each rank's sum is multiplied by their number first.

        Returns:
            Global metrics, the same on every rank.
        """
        self._engine.train()
        rate = learning_rate(self._setup.learner, self._optimizer_steps, self._setup.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        ratio_max = torch.zeros(1, dtype=torch.float64)
        last = len(batch.microbatches) - 1
        for index, microbatch in enumerate(batch.microbatches):
            microbatch = microbatch.to(self._device)
            self._engine.set_gradient_accumulation_boundary(index == last)
            logprobs_T, entropy_T = self._engine(microbatch, self._setup.temperature)
            loss_sum, parts, largest = self._objective(microbatch, logprobs_T, entropy_T)
            self._engine.backward(loss_sum * (self._setup.world_size / batch.trained_tokens))
            sums += parts.cpu()
            ratio_max = torch.maximum(ratio_max, largest.cpu())
        self._engine.step()
        self._optimizer_steps += 1
        return self._metrics(sums, ratio_max, batch, rate)

    def _objective(self, batch: Microbatch, logprobs_T: Tensor, entropy_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss with gradient, summed metrics in the order of `_SUMS`, and the largest ratio."""
        weights_T = batch.weights_T
        algorithm = self._setup.algorithm
        if algorithm is None:
            loss_sum = -(logprobs_T * weights_T).sum()
            zero = loss_sum.detach().double() * 0
            summed = [loss_sum.detach(), weights_T.sum(), (entropy_T * weights_T).sum(), zero, zero, zero, zero]
            return loss_sum, torch.stack([value.double() for value in summed]), zero[None]
        policy = losses.clipped_policy_loss(
            logprobs_T,
            batch.old_logprobs_T,
            batch.advantages_T,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
        )
        loss_T, kl_T = policy.loss_T, torch.zeros_like(logprobs_T)
        if self._reference is not None:
            with torch.no_grad():
                reference_T, _ = self._reference(batch, self._setup.temperature)
            kl_T = losses.k3_kl(logprobs_T, reference_T)
            loss_T = loss_T + algorithm.kl_coefficient * kl_T
        loss_sum = (loss_T * weights_T).sum()
        with torch.no_grad():
            summed = [
                loss_sum,
                weights_T.sum(),
                *(
                    (values_T * weights_T).sum()
                    for values_T in (
                        entropy_T,
                        policy.clipped_low_T.float(),
                        policy.clipped_high_T.float(),
                        kl_T,
                        losses.k3_kl(batch.old_logprobs_T, logprobs_T),
                    )
                ),
            ]
            largest = (policy.ratio_T * weights_T).max().double()[None]
        return loss_sum, torch.stack([value.detach().double() for value in summed]), largest

    def _metrics(self, sums: Tensor, ratio_max: Tensor, batch: RankBatch, rate: float) -> dict[str, float]:
        if self._setup.world_size > 1:
            sums, ratio_max = sums.to(self._device), ratio_max.to(self._device)
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(ratio_max, op=torch.distributed.ReduceOp.MAX)
        metrics = dict(zip(_SUMS, sums.tolist(), strict=True))
        # Means are over the tokens that were computed; the loss's denominator also counts those without advantage.
        computed = metrics.pop("tokens")
        means = {"loss": metrics.pop("loss") / batch.trained_tokens}
        # A step that had only filler to compute knows nothing of the rest.
        if computed:
            means |= {name: total / computed for name, total in metrics.items()} | {"ratio_max": float(ratio_max)}
        if self._setup.algorithm is None:
            metrics = {name: means[name] for name in ("loss", "entropy")}
        else:
            metrics = {name: mean for name, mean in means.items() if name != "kl_reference" or self._reference}
        metrics["gradient_norm"] = float(self._engine.get_global_grad_norm())
        metrics["learning_rate"] = rate
        return metrics

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token but the first of each sequence, at temperature 1, as the policy is now."""
        self._engine.eval()
        packed = pack([TrainingSequence(tuple(ids), 1, (0.0,) * (len(ids) - 1), 0.0) for ids in sequences])
        logprobs_T, _ = self._engine(packed.to(self._device), 1.0)
        return [row.tolist() for row in logprobs_T.float().cpu().split(packed.lengths_S.tolist())]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the policy under its Hugging Face name, whole, in the policy's dtype, on the CPU.

        Tied tensors come once for each of their names: vLLM on CPU keeps an output head of its own even where the
        configuration ties it. All ranks must iterate together: ZeRO-3 gathers each tensor from all of them.
        """
        dtype = DTYPES[self._setup.dtype]
        for name, parameter in self._engine.module.model.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._setup.learner.zero_stage == 3):
                yield name, parameter.detach().to(device="cpu", dtype=dtype, copy=True)

    def tensor_names(self) -> list[str]:
        """Every name under which the policy has a parameter, tied ones under each of their names."""
        parameters = {name for name, _ in self._engine.module.model.named_parameters(remove_duplicate=False)}
        return [name for name in self._engine.module.model.state_dict() if name in parameters]

    def export_buckets(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        """The policy in pieces of about `bucket_bytes`: uint8 arrays, each the bytes of a safetensors file.

        Rank 0 yields them; the other ranks take part in the gathering and yield nothing. A piece ends only where a
        layer's block does (`self_attn`, `mlp`), as vLLM fuses tensors of one block and wants them together.
        """
        bucket: dict[str, Tensor] = {}
        size = 0
        for name, tensor in self.weights():
            if self._setup.rank == 0:
                if size >= bucket_bytes and block_of(name) != block_of(next(reversed(bucket))):
                    yield _serialise(bucket)
                    bucket, size = {}, 0
                bucket[name] = tensor
                size += tensor.nbytes
        if bucket:
            yield _serialise(bucket)

    def save(self, folder: str) -> None:
        """Write the training state (every rank its part) and the policy in Hugging Face format (rank 0)."""
        self._engine.save_checkpoint(
            str(Path(folder) / "learner"),
            tag="state",
            client_state={"optimizer_steps": self._optimizer_steps, "torch_rng": torch.get_rng_state()},
            save_latest=False,
        )
        self.export(str(Path(folder) / "policy"))

    def export(self, folder: str) -> None:
        """Write the policy alone in Hugging Face format, as `transformers` and vLLM load it."""
        # Every rank takes part in the gathering; only the first has room and use for the whole.
        weights = {name: tensor for name, tensor in self.weights() if self._setup.rank == 0}
        if self._setup.rank == 0:
            self._engine.module.model.save_pretrained(folder, state_dict=weights)
            self._tokenizer.save_pretrained(folder)

    def load(self, folder: str) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: there is nothing, or it was written by another number of ranks.
        """
        path, state = self._engine.load_checkpoint(str(Path(folder) / "learner"), tag="state")
        if path is None:
            raise ValueError(
                f"{folder} holds no learner state that {self._setup.world_size} ranks could read; "
                "resume with as many learner.ranks as wrote it"
            )
        self._optimizer_steps = state["optimizer_steps"]
        torch.set_rng_state(state["torch_rng"])


_SUMS = ("loss", "tokens", "entropy", "clip_low_share", "clip_high_share", "kl_reference", "mismatch_kl")


def block_of(name: str) -> str:
    """The block of a layer that a tensor belongs to: `model.layers.0.self_attn` for its `q_proj.weight`."""
    return name.rsplit(".", 2)[0]


def _serialise(tensors: dict[str, Tensor]) -> np.ndarray:
    return np.frombuffer(safetensors.torch.save(tensors), dtype=np.uint8)


def deepspeed_settings(setup: LearnerSetup) -> dict[str, Any]:
    """DeepSpeed's configuration for a rank.

    Microbatches are counted by `LearnerRank.step`, which sets the accumulation boundary itself; DeepSpeed is told of
    one microbatch per step, so that it does not divide the loss a second time.
    """
    bfloat16 = setup.dtype == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": setup.learner.gradient_clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": setup.learner.zero_stage},
        "bf16": {"enabled": bfloat16},
        # Gradients of many microbatches are summed in float32 even where they are computed in bfloat16.
        "data_types": {"grad_accum_dtype": "fp32"},
        "wall_clock_breakdown": False,
        "steps_per_print": 1 << 30,
    }


def _load_model(setup: LearnerSetup, path: str, settings: dict[str, Any] | None) -> PreTrainedModel:
    if settings and setup.learner.zero_stage == 3:
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        # Alive while from_pretrained runs, it makes each rank keep only its shard of every tensor.
        partitioned = HfDeepSpeedConfig(settings)
        model = load_model(path, setup.dtype)
        del partitioned
    else:
        model = load_model(path, setup.dtype)
    if setup.learner.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only; norms and biases have none."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    # ds_shape is the whole shape of a parameter of which ZeRO-3 left an empty shell here.
    dimensions = {name: len(getattr(p, "ds_shape", p.shape)) for name, p in named}
    return [
        {"params": [p for name, p in named if dimensions[name] >= 2], "weight_decay": weight_decay},
        {"params": [p for name, p in named if dimensions[name] < 2], "weight_decay": 0.0},
    ]
