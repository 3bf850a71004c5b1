"""The metrics of one step, with the names of `docs/metrics.md`."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from torch import Tensor

from grpo.algorithm.advantages import informative_groups
from grpo.config import TrainConfig
from grpo.messages import ConversationEnd
from grpo.rollout.groups import reward_tensors
from grpo.run.stopwatch import Stopwatch
from grpo.types import Group, Rollout
from grpo.weights.patches import Pushed
from rewards.pool.stats import Tally
from rewards.verdict import Status


def rollout_metrics(groups: Sequence[Group], settings: TrainConfig, kl_PG: Tensor) -> dict[str, float]:
    """Return the metrics of a step's groups; `kl_PG` is the KL divergence from the reference, if the reward uses it."""
    algorithm = settings.algorithm
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards_PG, valid_PG = reward_tensors(groups)
    known = rewards_PG[valid_PG]
    metrics = {f"rollout/{name}": value for name, value in _of_groups(groups).items()}
    if algorithm.refill_rounds:
        metrics["rollout/refilled_groups"] = float(len(groups) - settings.rollout.prompts_per_step)
    if algorithm.overlong_filter:
        metrics["rollout/overlong_filtered"] = float(
            sum(rollout.completion.finish_reason == "length" and rollout.reward is not None for rollout in rollouts)
        )
    if algorithm.kl_in_reward:
        scored = sum(rollout.completion.sampled_tokens for rollout in rollouts if rollout.reward is not None)
        metrics["rollout/kl_reference"] = float(kl_PG.sum()) / max(1, scored)
    if len(known):
        metrics["reward/mean"] = float(known.mean())
        metrics["reward/std"] = float(known.std(correction=0))
    # In mixed data a verifier judges only some of the rollouts, so its metrics cover only these rollouts.
    for name in dict.fromkeys(name for rollout in rollouts for name in rollout.verdicts):
        verdicts = [rollout.verdicts[name] for rollout in rollouts if name in rollout.verdicts]
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        if scores:
            metrics[f"reward/{name}"] = sum(scores) / len(scores)
        for part in dict.fromkeys(part for verdict in verdicts for part in verdict.parts):
            values = [verdict.parts[part] for verdict in verdicts if part in verdict.parts]
            metrics[f"reward/{name}/{part}"] = sum(values) / len(values)
        for status in Status:
            share = sum(verdict.status is status for verdict in verdicts) / len(verdicts)
            metrics[f"verdict/{name}/{status}"] = share
    return metrics | source_metrics(groups) | conversation_metrics(groups)


def conversation_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of the groups' conversations; empty if there are none."""
    talked = [
        (rollout.completion, rollout.completion.dialogue)
        for group in groups
        for rollout in group.rollouts
        if rollout.completion.dialogue is not None
    ]
    if not talked:
        return {}
    dialogues = [dialogue for _, dialogue in talked]
    count, calls = len(dialogues), sum(dialogue.calls for dialogue in dialogues)
    turns = sum(m.role == "assistant" for dialogue in dialogues for m in dialogue.messages[dialogue.opening :])
    given = sum(stop - start for completion, _ in talked for start, stop in completion.given)
    given += sum(stop - start for dialogue in dialogues for part in dialogue.further for start, stop in part.given)
    waited, lasted = sum(each.waited_s for each in dialogues), sum(each.lasted_s for each in dialogues)
    failures: collections.Counter[str] = collections.Counter()
    for dialogue in dialogues:
        failures.update(dialogue.failures)
    metrics = {
        "turns_mean": turns / count,
        "calls_mean": calls / count,
        "waited_s_mean": waited / count,
        "waited_share": waited / lasted if lasted else 0.0,
        "observation_tokens_mean": given / count,
    }
    metrics |= {f"call_failures_{kind}": number / max(1, calls) for kind, number in failures.items()}
    metrics |= {f"ended_{end}": sum(each.ended is end for each in dialogues) / count for end in ConversationEnd}
    return {f"conversation/{name}": value for name, value in metrics.items()}


def source_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of the groups of each named source in `data.sources`."""
    metrics: dict[str, float] = {}
    for source, part in by_source(groups).items():
        rewards_PG, valid_PG = reward_tensors(part)
        values = _of_groups(part)
        if valid_PG.any():
            values["reward_mean"] = float(rewards_PG[valid_PG].mean())
        metrics |= {f"source/{source}/{name}": value for name, value in values.items()}
    return metrics


def evaluation_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of the answers to held-out prompts, also of each named source."""
    metrics = {f"eval/{name}": value for name, value in _of_answers(groups).items()}
    answers = [group.rollouts[0] for group in groups]
    for name in dict.fromkeys(name for answer in answers for name in answer.verdicts):
        scores = [v.score for answer in answers if (v := answer.verdicts.get(name)) and v.score is not None]
        if scores:
            metrics[f"eval/reward/{name}"] = sum(scores) / len(scores)
    for source, part in by_source(groups).items():
        metrics |= {f"eval/{source}/{name}": value for name, value in _of_answers(part).items()}
    return metrics


def by_source(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups of each named source, by its name."""
    parts: dict[str, list[Group]] = {}
    for group in groups:
        if group.prompt.source:
            parts.setdefault(group.prompt.source, []).append(group)
    return parts


def _of_groups(groups: Sequence[Group]) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [rollout.completion.sampled_tokens for rollout in rollouts]
    return {
        "groups": float(len(groups)),
        "accuracy": sum(rollout.correct for rollout in rollouts) / len(rollouts),
        "completion_tokens_mean": sum(lengths) / len(lengths),
        "completion_tokens_max": float(max(lengths)),
        "truncated_share": sum(r.completion.finish_reason == "length" for r in rollouts) / len(rollouts),
        "zero_variance_share": float(1 - informative_groups(*reward_tensors(groups)).float().mean()),
        "failed_verdicts": float(
            sum(verdict.status.failed for rollout in rollouts for verdict in rollout.verdicts.values())
        ),
    }


def _of_answers(groups: Sequence[Group]) -> dict[str, float]:
    rollouts = [group.rollouts[0] for group in groups]
    judged = [rollout for rollout in rollouts if not next(iter(rollout.verdicts.values())).status.failed]
    return {
        "accuracy": sum(rollout.correct for rollout in judged) / max(1, len(judged)),
        "completion_tokens_mean": sum(each.completion.sampled_tokens for each in rollouts) / len(rollouts),
        "failed_verdicts": float(len(rollouts) - len(judged)),
    }


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each metric's mean over the optimizer steps of a training step, with some exceptions.

    For ratio and memory, the result is the maximum; for skipped steps and seconds, the sum; for the learning rate, the
    last value; for speeds, the total amount divided by the total time. For the mismatch, the result has both the mean
    and the first value.

    If no rollout had a reward, there was no optimizer step, and the result is empty.
    """
    if not updates:
        return {}
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        metrics[f"learner/{name}"] = sum(values) / len(values)
    for name in ("ratio_max", "peak_memory_gib"):
        if f"learner/{name}" in metrics:
            metrics[f"learner/{name}"] = max(update[name] for update in updates if name in update)
    for name in ("skipped_steps", "compute_s"):
        if f"learner/{name}" in metrics:
            metrics[f"learner/{name}"] = sum(update[name] for update in updates if name in update)
    for name in ("tokens_per_s", "tflops_per_s", "mfu"):
        if f"learner/{name}" in metrics:
            timed = [(update[name], update["compute_s"]) for update in updates if name in update]
            metrics[f"learner/{name}"] = sum(rate * s for rate, s in timed) / sum(s for _, s in timed)
    if "mismatch_kl" in updates[0]:
        metrics["learner/mismatch_kl_first"] = updates[0]["mismatch_kl"]
    metrics["learner/learning_rate"] = updates[-1]["learning_rate"]
    return metrics


def verifier_metrics(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """Return the pool's metrics of a step: seconds per verdict, and the share of verdicts from the verifier's cache."""
    metrics: dict[str, float] = {}
    for name, tally in tallies.items():
        stats = tally.stats()
        metrics[f"verifier/{name}/p50_s"] = stats.p50_s
        metrics[f"verifier/{name}/p99_s"] = stats.p99_s
        metrics[f"verifier/{name}/cache_hit_share"] = stats.cache_hit_rate
    return metrics


def lag_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Return the age of the tokens of a step's groups, in policy versions.

    Args:
        groups: the groups of the step.
        version: the policy's version at the start of the step.
    """
    spans = [span for group in groups for rollout in group.rollouts for span in rollout.completion.spans]
    tokens = sum(span.stop - span.start for span in spans)
    carried = [any(_oldest(rollout) < version for rollout in group.rollouts) for group in groups]
    return {
        "rollout/policy_lag_mean": sum((span.stop - span.start) * (version - span.policy_version) for span in spans)
        / tokens,
        "rollout/policy_lag_max": float(max(version - span.policy_version for span in spans)),
        "rollout/groups_carried_over": float(sum(carried)),
    }


def _oldest(rollout: Rollout) -> int:
    return min(span.policy_version for span in rollout.completion.spans)


def push_metrics(pushed: Pushed) -> dict[str, float]:
    """Return the metrics of sparse pushes: size, and share of changed elements."""
    return {
        "sync/pushed_mib": pushed.nbytes / (1 << 20),
        "sync/changed_share": pushed.changed / max(1, pushed.elements),
    }


def speed_metrics(watch: Stopwatch, groups: Sequence[Group]) -> dict[str, float]:
    """Return the seconds of each phase, and the completions and tokens sampled per second of the whole step."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tokens = sum(rollout.completion.sampled_tokens for rollout in rollouts)
    times = watch.metrics()
    return {
        **times,
        "time/learner_idle_s": times.get("time/generate_s", 0.0) + times.get("time/verify_s", 0.0),
        **watch.starts(),
        "throughput/completions_per_s": len(rollouts) / times["time/step_s"],
        "throughput/tokens_per_s": tokens / times["time/step_s"],
    }
