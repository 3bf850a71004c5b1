"""Parts of the GPU check that measure optimizer steps: tokens per second, MFU, and memory beside the plan."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import gpu_policies
import torch
from gpu_context import Context, Wrong, release
from gpu_outcomes import Result, Skipped
from gpu_policies import Lengths

from grpo.config import LearnerConfig, PolicyConfig
from grpo.config.algorithm import AlgorithmConfig
from grpo.config.cluster import Device
from grpo.planning.memory import learner_memory
from grpo.planning.policy_shape import shape_of
from grpo.policy.kernels import chosen_kernels

GIB = 1 << 30
WARM_UP, STEPS = 1, 3


def speed(shape: str, lengths: Lengths, **settings: object) -> Callable[[Context], Result]:
    """Return a part that measures steps of a policy with random weights.

    Args:
        shape: shape of the policy, a key of `gpu_policies.SHAPES`.
        lengths: sizes of the batch. Each step has a new batch, as in a real run, so kernels that prepare themselves for
            a shape prepare in every step.
        settings: settings of the learner beside the defaults.
    """

    def measured(context: Context) -> Result:
        if context.tiny:
            return _measure(context, "tiny", gpu_policies.TINY, settings)
        return _measure(context, shape, lengths, settings)

    return measured


def _measure(context: Context, shape: str, lengths: Lengths, settings: dict[str, object]) -> Result:
    from grpo.learner.rank import LearnerRank

    began = time.monotonic()
    if settings.get("attention") == "varlen" and not context.on_gpu:
        raise Skipped("FlashAttention needs a GPU")
    dtype = "bfloat16" if context.on_gpu else "float32"
    folder = context.folder / f"{shape}_{dtype}"
    learner_settings = {"microbatch_tokens": lengths.microbatch, **settings}
    if not folder.is_dir():
        gpu_policies.make_policy(shape, folder, context.device, getattr(torch, dtype))
        release(context.device)
    planned = _planned(context, folder, dtype, LearnerConfig.model_validate(learner_settings))
    if context.on_gpu and planned > (here := torch.cuda.mem_get_info()[0]):
        raise Skipped(f"the plan needs {planned / GIB:.0f} GiB, and {here / GIB:.0f} GiB of the GPU are free")
    setup = gpu_policies.learner_setup(folder, "cuda" if context.on_gpu else "cpu", dtype, learner_settings)
    learner = LearnerRank(setup, "127.0.0.1", gpu_policies.free_port())
    vocabulary = gpu_policies.SHAPES[shape][-1]
    seen: list[dict[str, float]] = []
    for step in range(WARM_UP + STEPS):
        if len(seen) > WARM_UP and time.monotonic() - began > context.seconds:
            break
        (part,) = gpu_policies.step_batch(lengths, vocabulary, seed=step).ranks
        metrics = learner.step(part)
        if metrics["skipped_steps"] or not 0 < metrics["gradient_norm"] < float("inf"):
            raise Wrong(f"step {step}: loss or gradient is not finite")
        seen.append({**metrics, "microbatches": len(part.microbatches)})
    steps = seen[WARM_UP:]
    names = ("tokens_per_s", "mfu", "compute_s", "tflops_per_s")
    figures = {name: statistics.median(one[name] for one in steps) for name in names if name in steps[0]}
    figures["peak_gib"] = max(one["peak_memory_gib"] for one in seen)
    figures |= {"planned_gib": planned / GIB, "steps": len(steps), "first_step_s": seen[0]["compute_s"]}
    module = learner._engine.module
    fused = chosen_kernels(setup.learner.kernels, setup.device, module.model.config.model_type)
    ran = f"{module._layout.__name__}, {fused}"
    learner._engine.destroy()
    return Result(
        f"{ran} kernels; {len(steps)} steps of {steps[0]['microbatches']:.0f} microbatches, {figures['compute_s']:.2f} "
        f"s each; the first {figures['first_step_s']:.2f} s",
        figures,
    )


def _planned(context: Context, folder: object, dtype: str, learner: LearnerConfig) -> float:
    """Return the learner's memory by the plan of `grpo check`, in bytes."""
    policy = PolicyConfig.model_validate({"path": str(folder), "dtype": dtype})
    device: Device = "cuda" if context.on_gpu else "cpu"
    shape = shape_of(policy, learner, device)
    assert shape is not None
    return learner_memory(shape, policy, learner, AlgorithmConfig(), device).needed


small_varlen = speed("0.6b", gpu_policies.RL, attention="varlen", gradient_checkpointing=1.0)
small_sdpa = speed("0.6b", gpu_policies.RL, attention="sdpa", gradient_checkpointing=1.0)
large_varlen = speed("1.7b", gpu_policies.RL, attention="varlen", gradient_checkpointing=1.0)
large_sdpa = speed("1.7b", gpu_policies.RL, attention="sdpa", gradient_checkpointing=1.0)
large_whole = speed("1.7b", gpu_policies.RL, attention="varlen")
long_varlen = speed("1.7b", gpu_policies.ONE_OF_16K, attention="varlen", gradient_checkpointing=1.0)
large_auto = speed("1.7b", gpu_policies.RL)
long_auto = speed("1.7b", gpu_policies.ONE_OF_16K)
long_sdpa = speed("1.7b", gpu_policies.ONE_OF_16K, attention="sdpa", gradient_checkpointing=1.0)
