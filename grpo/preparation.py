"""From a job's config to what its parts are started with. Nothing is claimed yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from grpo import config
from grpo.cluster import Plan
from grpo.data import PromptSet
from grpo.hub import at_revision, name_of, with_revision
from grpo.judging import columns_of
from grpo.policy import context_of
from rewards.build import VerifierSpec
from rewards.gold_forms import GoldRow
from rewards.thinking import READ_AFTER_THINKING


def plan_of(settings: config.TrainConfig | config.SftConfig) -> Plan:
    """The actors that a job needs."""
    learner = settings.learner
    if isinstance(settings, config.SftConfig):
        return Plan(learner.ranks, learner.threads)
    generator = settings.generator
    return Plan(
        learner.ranks,
        learner.threads,
        generator.replicas,
        generator.devices,
        generator.threads,
        settings.cluster.share_gpus,
    )


_PLAIN = config.Verification()


def specs_of(
    verifiers: Sequence[config.VerifierConfig], verification: config.Verification = _PLAIN
) -> tuple[VerifierSpec, ...]:
    """The configured verifiers, as the pool and the reward need them; those without reasoning tags get the run's."""
    tags = {} if verification.thinking is None else {"thinking": verification.thinking}
    return tuple(
        VerifierSpec(
            one.name,
            one.use,
            {**tags, **one.options} if one.use in READ_AFTER_THINKING else one.options,
            one.weight,
            one.gate,
            {column: value if isinstance(value, tuple) else (value,) for column, value in one.when.items()},
        )
        for one in verifiers
    )


def local_or_hub(policy: config.Policy) -> str:
    """A local folder as an absolute path, since actors may run elsewhere; else a name on the hub with its revision.

    Raises:
        ValueError: a revision of a folder.
    """
    path = policy.path or ""
    if not Path(path).is_dir():
        return with_revision(path, policy.revision)
    if policy.revision:
        raise ValueError(
            f"policy.revision={policy.revision} is one of the hub, and policy.path={path} is a folder here: take it out"
        )
    return str(Path(path).absolute())


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The policy's tokenizer.

    Raises:
        ValueError: there is none at `path`.
    """
    try:
        return AutoTokenizer.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError) as failure:
        raise ValueError(
            f"policy.path={path!r} is neither a folder with a policy nor a name that the hub answers to; "
            f"a cold start makes one: grpo sft configs/quickstart_sft.yaml"
        ) from failure


def wants_gpus(cluster: config.Cluster) -> bool:
    """Whether the job computes on GPUs, as far as this machine can tell."""
    return cluster.device == "gpu" or (cluster.device == "auto" and torch.cuda.is_available())


def policy_config(policy: config.Policy) -> PreTrainedConfig | None:
    """What `policy.path` says of its architecture; None where it can be read neither locally nor from the hub."""
    path = local_or_hub(policy)
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError):
        return None
    return found


def check_positions(settings: config.TrainConfig | config.SftConfig) -> None:
    """Refuse sequences that are longer than the policy was made for, where its config can be read.

    Raises:
        ValueError: the longest prompt with the longest completion, or the longest row, has too many tokens.
    """
    found = policy_config(settings.policy) if settings.policy.path else None
    context = context_of(found) if found else None
    if context is None:
        return
    if isinstance(settings, config.SftConfig):
        longest, keys = settings.sft.max_tokens, "sft.max_tokens"
    else:
        longest, keys = settings.max_sequence_tokens, "rollout.max_prompt_tokens + rollout.max_completion_tokens"
        if longest > settings.rollout.max_prompt_tokens + settings.rollout.max_completion_tokens:
            keys = "rollout.max_prompt_tokens + evaluation.max_completion_tokens"
    if longest > context:
        raise ValueError(
            f"{keys} = {longest} tokens do not fit the {context} positions that the policy {settings.policy.path} was "
            "made for; lower the limits, or take a policy of longer context"
        )


def check_prompt_count(prompts: PromptSet, rollout: config.Rollout, left_out: int = 0) -> None:
    """Refuse data of which a step would ask the same question twice.

    Args:
        prompts: those that fit.
        rollout: says how many a step asks.
        left_out: prompts that are not asked, as their reference answers cannot be used.

    Raises:
        ValueError: fewer prompts than a step asks.
    """
    count = len(prompts.prompts) - left_out
    if count < rollout.prompts_per_step:
        usable = " and have a reference that can be used" if left_out else ""
        raise ValueError(
            f"the data has {count} prompts that fit{usable}, fewer than rollout.prompts_per_step="
            f"{rollout.prompts_per_step}: a step would ask the same question twice; lower it or add data"
        )


def gold_rows(prompts: PromptSet) -> list[GoldRow]:
    """The prompts' reference answers, with the columns that a run hands to their verifiers."""
    return [GoldRow(each.reference, columns_of(each.text, each.row), each.id) for each in prompts.prompts]
