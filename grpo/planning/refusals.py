"""The part of `grpo check` that reports why a run would not start: all reasons at once, from policy, data and code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from grpo import config
from grpo.cluster.device import planned_device
from grpo.config.verifiers import specs_of
from grpo.data.described import describe
from grpo.data.rows import HubUnreachable
from grpo.data.supervised import supervised_turns
from grpo.generator.head_sizes import cpu_head_sizes
from grpo.planning.gold import check_verifiers
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions, load_tokenizer, local_or_hub, policy_config
from grpo.policy.teacher import check_teacher
from grpo.report.trackers import require_trackers
from grpo.run.functions import Callbacks
from rewards.build import REWARD_MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def checked_tokenizer(settings: config.JobConfig) -> PreTrainedTokenizerBase | None:
    """Check packages, policy, functions and verifiers; return the policy's tokenizer, or None for a new policy.

    If there is a problem, the data are read too, without the tokenizer, so that one message has all problems.

    Raises:
        ValueError: there are problems.
    """
    tokenizers: list[PreTrainedTokenizerBase] = []
    checks: list[Callable[[], object]] = [
        lambda: require_peft(settings.learner),
        lambda: require_trackers(settings.report.trackers),
        lambda: check_positions(settings),
    ]
    if not settings.policy.new:
        checks.append(lambda: tokenizers.append(load_tokenizer(local_or_hub(settings.policy))))
    if isinstance(settings, config.TrainConfig):
        memory_mib, specs = settings.verification.memory_mib, specs_of(settings.verifiers, settings.verification)
        train = settings
        checks += [
            lambda: check_head_size(train),
            lambda: Callbacks(train),
            lambda: check_verifiers(specs, memory_mib),
            # Without a tokenizer, an earlier check has failed.
            lambda: check_teacher(train, tokenizers[0]) if tokenizers else None,
        ]
        if not settings.policy.new:
            checks.append(lambda: _check_reward_models(train, tokenizers))
    problems = list(_problems(checks))
    if problems:
        problems += _problems(_readings(settings))
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return tokenizers[0] if tokenizers else None


def _check_reward_models(settings: config.TrainConfig, tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """Check the reward models among the verifiers, if the policy's tokenizer could be loaded."""
    if tokenizers and any(verifier.use == REWARD_MODEL for verifier in settings.verifiers):
        from grpo.cluster.reward_models.opening import check_models  # It imports torch.

        check_models(settings, tokenizers[0])


def check_head_size(settings: config.TrainConfig) -> None:
    """Refuse a policy whose attention vLLM does not compute on a CPU, before its generators fail at their start.

    Raises:
        ValueError: the job runs on a CPU, and vLLM has no attention for the policy's head size there.
    """
    shape = policy_config(settings.policy) if planned_device(settings.cluster) == "cpu" else None
    if shape is None:
        return
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    if problem := _head_size_problem(size):
        raise ValueError(
            f"the policy {settings.policy.path} has heads of size {size}, and {problem}; take another policy, or for a "
            "new policy set policy.new.hidden_size or policy.new.heads in its `grpo sft` so that their quotient is one "
            "of these sizes"
        )


def head_size_warning(settings: config.FineTuningConfig) -> str | None:
    """Return a warning if a new policy has heads with which `grpo train` cannot sample on a CPU; else None."""
    new = settings.policy.new
    if new is None or planned_device(settings.cluster, samples=False) != "cpu":
        return None
    size = new.hidden_size // new.heads
    if problem := _head_size_problem(size):
        return (
            f"policy.new has heads of size {size} (hidden_size / heads), and {problem}: `grpo train` could not sample "
            "from this policy on a CPU. Change policy.new.hidden_size or policy.new.heads"
        )
    return None


def _head_size_problem(size: int) -> str:
    """Return why generators on a CPU refuse a head size; empty if they accept it, or if vLLM is not installed."""
    sizes = cpu_head_sizes()
    if not sizes or size in sizes:
        return ""
    return f"vLLM's attention on a CPU has only the sizes {', '.join(map(str, sizes))}"


def _readings(settings: config.JobConfig) -> list[Callable[[], object]]:
    """Functions that read each source of the data without a tokenizer."""
    if isinstance(settings, config.PreferenceJobConfig):
        from grpo.data.preferences import ranked_answers  # It imports torch.

        preferences = settings.data
        return [lambda: ranked_answers(preferences)]
    if isinstance(settings, config.FineTuningConfig):
        data = settings.data
        return [lambda: supervised_turns(data)]
    sources: Mapping[str, config.DatasetConfig] = {
        settings.data.section(name): rows for name, rows in settings.data.by_name.items()
    }
    if settings.evaluation and settings.evaluation.data:
        sources = {**sources, "evaluation.data": settings.evaluation.data}
    return [functools.partial(describe, rows, where) for where, rows in sources.items()]


def _problems(checks: list[Callable[[], object]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except HubUnreachable:
            # Nothing is known about these rows. `grpo check` says so when nothing else stops it.
            continue
        except ValueError as problem:
            yield str(problem)
