"""The part of a run's configuration that the page shows before the curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from grpo.config import FINE_TUNING

# The keys that say where rows come from.
_PLACES = ("path", "hub", "generator")
# Labels, and the configuration keys of each label. The page shows the value of the first key that is set.
_RECIPE = (
    ("policy", ("policy.path", "policy.new")),
    # Sources replace the other keys, which the configuration may still hold.
    ("data", ("data.sources", *(f"data.{key}" for key in _PLACES))),
    ("prompts per step", ("rollout.prompts_per_step",)),
    ("completions per prompt", ("rollout.group_size",)),
    ("completion limit, tokens", ("rollout.max_completion_tokens",)),
    ("verifiers", ("verifiers",)),
    ("temperature", ("rollout.temperature",)),
    ("minibatches", ("algorithm.minibatches",)),
    ("advantage", ("algorithm.advantage",)),
    ("ratio", ("algorithm.ratio",)),
    ("aggregation", ("algorithm.aggregation",)),
    ("clip low", ("algorithm.clip_low",)),
    ("clip high", ("algorithm.clip_high",)),
    ("KL coefficient", ("algorithm.kl_coefficient",)),
    ("loss", ("dpo.loss", "reward.loss")),
    ("beta", ("dpo.beta",)),
    ("label smoothing", ("dpo.label_smoothing",)),
    ("SFT weight", ("dpo.sft_weight",)),
    ("learning rate", ("learner.learning_rate",)),
    ("learner ranks", ("learner.ranks",)),
    ("ZeRO stage", ("learner.zero_stage",)),
    ("generators", ("generator.replicas",)),
    ("seed", ("run.seed",)),
)


def read_config(text: str) -> Any:
    """A configuration's text as plain data. If it is not YAML, return None; the page then shows the unchanged text."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def recipe(config: Any) -> list[tuple[str, str]]:
    """Label and value of each recipe setting in a configuration."""
    rows = []
    for label, keys in _RECIPE:
        value = next((value for key in keys if (value := _look_up(config, key)) not in (None, [])), None)
        if value is not None:
            rows.append((label, _sources_in_short(value) if label == "data" else _in_short(value)))
    return rows


def mismatch_alarm_of(config: Any) -> float | None:
    """The threshold of `report.mismatch_alarm`, in nats; None if the threshold is not set."""
    value = _look_up(config, "report.mismatch_alarm")
    return float(value) if isinstance(value, int | float) else None


def policy_path_of(config: Any) -> str | None:
    """The folder of the policy that a run started from; None for a new policy."""
    value = _look_up(config, "policy.path")
    return value if isinstance(value, str) else None


def is_supervised(config: Any) -> bool:
    """Whether a configuration is for a job that samples nothing (`grpo sft`, `grpo dpo`, `grpo reward`)."""
    return isinstance(config, Mapping) and not FINE_TUNING.keys().isdisjoint(config) and "rollout" not in config


def _look_up(tree: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree


def _sources_in_short(value: Any) -> str:
    """The place of the data; for several sources, the name, the place and the ratio of each source."""
    if not isinstance(value, list) or not all(isinstance(source, Mapping) for source in value):
        return str(value)
    return ", ".join(
        f"{source.get('name', '?')} ({next((place for key in _PLACES if (place := source.get(key))), '?')}, "
        f"ratio {source.get('ratio', 1)})"
        for source in value
    )


def _in_short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(item.get("name", "?")) if isinstance(item, Mapping) else str(item) for item in value)
    return "made from nothing" if isinstance(value, Mapping) else str(value)
