"""Parts of the GPU check that run the learner itself: optimizer steps, and its sleep beside a generator."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gpu_policies
import torch
from gpu_context import Context, Wrong, difference, release
from gpu_numbers import small_policy
from gpu_outcomes import Result

from grpo.algorithm.minibatches import RankBatch
from grpo.algorithm.objective import policy_terms
from grpo.config import Dtype
from grpo.config.algorithm import AlgorithmConfig
from grpo.learner.deepspeed_setup import parameter_groups
from grpo.learner.rank import LearnerRank
from grpo.policy.logprobs import PolicyLogprobs, load_model

STEPS, RATE, DECAY = 2, 1e-3, 0.1
# Number format, ZeRO stage and offload of the learners that sleep.
SLEEPS: tuple[tuple[Dtype, int, str], ...] = (
    ("float32", 1, "none"),
    ("bfloat16", 2, "none"),
    ("bfloat16", 2, "optimizer"),
)
# Adam divides a gradient by its own size, so a step amplifies the rounding of small gradients. Two steps without
# anything in common differ by 1.4.
LARGEST_STEP_DIFFERENCE = {"float32": 1e-2, "bfloat16": 0.5}
# Largest relative difference of loss and gradient norm between the device and the CPU.
LARGEST_METRIC_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.1}


def start(context: Context, folder: Path, dtype: Dtype, **learner: object) -> LearnerRank:
    """Start a learner with one rank on the device."""
    settings = {"learning_rate": RATE, "weight_decay": DECAY, "microbatch_tokens": 4096, **learner}
    setup = gpu_policies.learner_setup(folder, "cuda" if context.on_gpu else "cpu", dtype, settings)
    return LearnerRank(setup, "127.0.0.1", gpu_policies.free_port())


def stop(learner: LearnerRank, context: Context) -> None:
    """Free the learner's memory."""
    learner._engine.destroy()
    release(context.device)


def batches(context: Context, count: int) -> list[RankBatch]:
    """Return the batches of several optimizer steps for the small policy, each of several microbatches."""
    lengths = gpu_policies.TINY if context.tiny else gpu_policies.Lengths(6, 4, 40, 60, 300, 1500)
    vocabulary = gpu_policies.SHAPES["tiny" if context.tiny else "check"][-1]
    made = [gpu_policies.step_batch(lengths, vocabulary, seed=20 + step) for step in range(count)]
    return [one.ranks[0] for one in made]


def steps(context: Context) -> Result:
    """Optimizer steps at every ZeRO stage against a plain loop of torch in float32 on the CPU."""
    folder, parts = small_policy(context), batches(context, STEPS)
    before, after, expected = _plain_steps(folder, parts)
    moved = {name: after[name] - before[name] for name in after}
    # transformers asks for accelerate before it loads a policy in shards.
    stages = (1, 2, 3) if importlib.util.find_spec("accelerate") else (1, 2)
    notes, figures = [], {}
    for dtype in ("float32", "bfloat16"):
        farthest = 0.0
        for stage in stages:
            learner = start(context, folder, dtype, zero_stage=stage)
            seen = [learner.step(part) for part in parts]
            weights = {name: tensor.float().cpu() for name, tensor in learner.weights()}
            stop(learner, context)
            where = f"zero_stage={stage} in {dtype}"
            for step, (metrics, right) in enumerate(zip(seen, expected, strict=True)):
                for name, value in right.items():
                    off = abs(metrics.get(name, float("nan")) - value) / max(abs(value), 1e-2)
                    if not off <= LARGEST_METRIC_DIFFERENCE[dtype]:
                        raise Wrong(f"step {step} with {where}: {name} is {metrics.get(name)} in place of {value:.6g}")
            names = [name for name in moved if name in weights]
            if len(names) < len(moved):
                raise Wrong(f"{where} exports {len(names)} of {len(moved)} tensors")
            found = torch.cat([(weights[name] - before[name]).flatten() for name in names])
            far = difference(found, torch.cat([moved[name].flatten() for name in names]))
            if not far <= LARGEST_STEP_DIFFERENCE[dtype]:
                raise Wrong(f"{where}: the step differs by {far:.1e} of its size from a step on the CPU")
            farthest = max(farthest, far)
        figures[f"step_difference_{dtype}"] = farthest
        notes.append(f"{dtype} within {farthest:.0e}")
    named = f"stages {', '.join(map(str, stages))}" + ("" if 3 in stages else " (3 needs accelerate)")
    return Result(f"{STEPS} steps at {named} equal plain torch on the CPU: {', '.join(notes)}", figures)


def _plain_steps(
    folder: Path, parts: list[RankBatch]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[dict[str, float]]]:
    """Return the weights before and after the steps, and each step's loss and gradient norm, without DeepSpeed."""
    model = load_model(str(folder), "float32")
    policy, algorithm = PolicyLogprobs(model), AlgorithmConfig()
    groups = parameter_groups(policy, DECAY)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    metrics = []
    for part in parts:
        optimizer.zero_grad()
        loss = 0.0
        for batch in part.microbatches:
            logprobs_T, entropy_T = policy(batch, 1.0, "value")
            term = policy_terms(algorithm, batch, logprobs_T, entropy_T, None).loss_sum / part.denominator
            term.backward()
            loss += float(term.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0))
        optimizer.step()
        metrics.append({"loss": loss, "gradient_norm": norm})
    return before, {name: one.detach().clone() for name, one in model.named_parameters()}, metrics


def sleep(context: Context) -> Result:
    """A learner that slept takes the same step as a learner that did not, and frees its states while it sleeps."""
    folder, parts = small_policy(context), batches(context, 2)
    freed = []
    for dtype, stage, offload in SLEEPS:
        where = f"zero_stage={stage}, offload={offload} in {dtype}"
        learner = start(context, folder, dtype, zero_stage=stage, offload=offload)
        learner.step(parts[0])
        expected = learner.step(parts[1])
        stop(learner, context)
        learner = start(context, folder, dtype, zero_stage=stage, offload=offload)
        learner.step(parts[0])
        awake = torch.cuda.memory_allocated() if context.on_gpu else 0
        learner.sleep()
        asleep = torch.cuda.memory_allocated() if context.on_gpu else 0
        learner.wake()
        found = learner.step(parts[1])
        parameters = sum(one.numel() for one in learner._engine.module.parameters())
        stop(learner, context)
        for name in ("loss", "gradient_norm"):
            off = abs(found[name] - expected[name]) / max(abs(expected[name]), 1e-2)
            if not off <= LARGEST_METRIC_DIFFERENCE[dtype]:
                raise Wrong(f"{name} after a sleep with {where} is {found[name]:.6g} in place of {expected[name]:.6g}")
        # Two moments of 4 bytes, and in bfloat16 the weights in float32.
        least = parameters * (12 if dtype == "bfloat16" else 8)
        if context.on_gpu and offload == "none":
            if awake - asleep < 0.9 * least:
                raise Wrong(f"a sleep with {where} frees {awake - asleep:,} bytes of at least {least:,}")
            freed.append((awake - asleep) / 2**20)
    what = f"frees {' and '.join(f'{one:.0f} MiB' for one in freed)}" if freed else "memory is not measured on a CPU"
    return Result(f"the step after a sleep equals the step without; {what}")
