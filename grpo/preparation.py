"""From a job's config to what its parts are started with. Nothing is claimed yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo import config
from grpo.cluster import Plan
from rewards.build import VerifierSpec


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
        generator.tensor_parallel_size,
        generator.threads,
        settings.cluster.share_gpus,
    )


def specs_of(verifiers: Sequence[config.VerifierConfig]) -> tuple[VerifierSpec, ...]:
    """The configured verifiers, as the pool and the reward need them."""
    return tuple(
        VerifierSpec(
            one.name,
            one.use,
            one.options,
            one.weight,
            one.gate,
            {column: value if isinstance(value, tuple) else (value,) for column, value in one.when.items()},
        )
        for one in verifiers
    )


def local_or_hub(path: str) -> str:
    """A local folder as an absolute path, since actors may run elsewhere; anything else is a hub name."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The policy's tokenizer.

    Raises:
        ValueError: there is none at `path`.
    """
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as failure:
        raise ValueError(
            f"policy.path={path!r} is neither a folder with a policy nor a name that the hub answers to; "
            f"a cold start makes one: grpo sft configs/quickstart_sft.yaml"
        ) from failure
