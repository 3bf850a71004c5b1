"""Compute advice for the next settings to try, from the mean metrics of a few steps. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from grpo.config import TrainConfig
from grpo.report.step_time import TIMED_PARTS

# A phase with a smaller share of a step gets no advice: improving it would save little time.
WORTH_A_LOOK = 0.10
# If operators take less than this share of a phase, Python and waiting take most of the phase.
BUSY = 0.5
# If the longest completion has more than this many times the mean length, a step waits for it alone.
LONG_TAIL = 4.0
# Settings that give each round of Python more to compute.
MORE_AT_ONCE = {
    "generate": "more completions at a time: a larger rollout.group_size or prompts_per_step, or fewer replicas",
    "learn": "a larger learner.microbatch_tokens, or fewer learner.ranks",
}


@dataclass(frozen=True, slots=True)
class Advice:
    """A change to try.

    Attributes:
        phase: phase that would become faster, from `TIMED_PARTS`; `sampling` for completions that teach nothing.
        share: share of the step's time in this phase; for `sampling`, share of the groups that teach nothing.
        seen: evidence, with its figures.
        try_next: change to try.
    """

    phase: str
    share: float
    seen: str
    try_next: str


def advice(
    settings: TrainConfig, metrics: Mapping[str, float], computing: Mapping[str, float], cores: int, on_gpu: bool
) -> list[Advice]:
    """Return the changes to try, sorted by share, the largest first.

    Args:
        settings: settings of the profiled run.
        metrics: name of a metric (docs/metrics.md) -> mean over the steps.
        computing: phase -> share of its time in operators, for the busiest actor.
        cores: number of processors of the machine.
        on_gpu: whether learner and generators computed on GPUs.
    """
    step_s = metrics["time/step_s"]
    shares = {phase: metrics.get(f"time/{phase}_s", 0.0) / step_s for phase in TIMED_PARTS}
    changes = [
        Advice(phase, share, seen, try_next)
        for phase, share in shares.items()
        if share >= WORTH_A_LOOK
        for seen, try_next in _of_phase(phase, settings, metrics, cores, on_gpu)
    ]
    changes += [
        Advice(
            phase,
            share,
            f"operators take {computing[phase]:.0%} of it, the rest is Python and waiting",
            MORE_AT_ONCE[phase],
        )
        for phase, share in shares.items()
        if share >= WORTH_A_LOOK and computing.get(phase, 1.0) < BUSY
    ]
    wasted = metrics.get("rollout/zero_variance_share", 0.0)
    if wasted > 0.5:
        changes.append(
            Advice(
                "sampling",
                wasted,
                f"{wasted:.0%} of the groups have equal rewards and teach nothing",
                "questions of another difficulty, a larger rollout.group_size, or algorithm.refill_rounds",
            )
        )
    return sorted(changes, key=lambda item: -item.share)


def _of_phase(
    phase: str, settings: TrainConfig, metrics: Mapping[str, float], cores: int, on_gpu: bool
) -> Iterator[tuple[str, str]]:
    match phase:
        case "generate":
            yield from _generate(settings, metrics, cores, on_gpu)
        case "verify":
            yield from _verify(settings, metrics)
        case "learn":
            yield from _learn(settings, metrics, on_gpu)
        case "sync":
            yield (
                "the weight push and its proof",
                "a larger weight_sync.bucket_mib; several algorithm.minibatches for one push; docs/cluster.md",
            )


def _generate(
    settings: TrainConfig, metrics: Mapping[str, float], cores: int, on_gpu: bool
) -> Iterator[tuple[str, str]]:
    rollout, generator = settings.rollout, settings.generator
    mean, longest = metrics["rollout/completion_tokens_mean"], metrics["rollout/completion_tokens_max"]
    if longest > LONG_TAIL * mean:
        yield (
            f"the longest completion has {longest:.0f} tokens, the mean {mean:.0f}: near the end, only few are sampled",
            "rollout.max_policy_lag=1, so that the next step's completions fill the gap",
        )
    at_once = rollout.prompts_per_step * rollout.group_size / generator.replicas
    if at_once > generator.max_sequences:
        yield (
            f"{at_once:.0f} completions for each replica, {generator.max_sequences} of them at a time",
            "a larger generator.max_sequences, or more replicas",
        )
    if on_gpu and not generator.compile:
        yield "generator.compile is off", "turn it on: captured graphs then launch the kernels"
    threads = generator.replicas * generator.threads
    if not on_gpu and threads != cores:
        yield (
            f"{threads} threads sample on {cores} processors",
            "as many generator.replicas x generator.threads as there are processors",
        )
    if metrics.get("rollout/truncated_share", 0.0) > 0.2:
        yield (
            f"{metrics['rollout/truncated_share']:.0%} of the completions reach the length limit",
            "a lower rollout.max_completion_tokens, or a `length` verifier that rewards brevity",
        )


def _verify(settings: TrainConfig, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    slowest = max(settings.verifiers, key=lambda verifier: metrics.get(f"verifier/{verifier.name}/p50_s", 0.0))
    typical, worst = (metrics.get(f"verifier/{slowest.name}/{which}_s", 0.0) for which in ("p50", "p99"))
    yield (
        f"{slowest.name!r} takes {typical:.3g} s (median) to {worst:.3g} s (p99) a completion",
        "more verification.workers, verification.per_node on a cluster, or a shorter verification.deadline_s",
    )


def _learn(settings: TrainConfig, metrics: Mapping[str, float], on_gpu: bool) -> Iterator[tuple[str, str]]:
    learner = settings.learner
    padding = metrics.get("learner/padding_share", 0.0)
    if padding > 0.05:
        yield f"{padding:.0%} of attention's work is padding", "a larger learner.microbatch_tokens"
    if learner.gradient_checkpointing:
        yield (
            f"gradient_checkpointing computes {learner.gradient_checkpointing:.0%} of the layers' forward passes twice",
            "a lower share, such as 0.5, or 0 if memory allows, perhaps with a lower learner.microbatch_tokens",
        )
    if learner.offload != "none":
        yield f"offload={learner.offload} moves states at every step", "learner.offload=none if memory allows"
    outside = 1 - metrics["learner/compute_s"] / metrics["time/learn_s"] if "learner/compute_s" in metrics else 0.0
    if outside > 0.3:
        yield (
            f"{outside:.0%} of the learner's time is packing and carrying batches, not computing",
            "more completions a step, or fewer algorithm.minibatches",
        )
    utilisation = metrics.get("learner/mfu")
    if on_gpu and utilisation is not None and utilisation < 0.25:
        yield (
            f"model FLOPs utilisation {utilisation:.0%}",
            "a larger learner.microbatch_tokens; policy.dtype=bfloat16; the longest kernels are in the trace",
        )
