"""Find a policy in a folder or on the hub, and load its tokenizer and its configuration."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from grpo import config
from grpo.policy.hub import at_revision, name_of, with_revision


def context_of(shape: PreTrainedConfig) -> int | None:
    """Return the length of the policy's longest sequence, in tokens; None if the config has no limit.

    vLLM uses the same rule.
    """
    text = shape.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    # With other types of scaled rotary embeddings, max_position_embeddings already includes the factor.
    if positions is not None and rope.get("rope_type") in ("linear", "dynamic"):
        return int(positions * (rope.get("factor") or 1.0))
    return positions


def local_or_hub(policy: config.PolicyConfig) -> str:
    """Return the policy's absolute path if it is a local folder, otherwise its hub name with the revision.

    The path is absolute because actors may run in other folders.

    Raises:
        ValueError: a revision is set for a local folder.
    """
    path = policy.path or ""
    if not Path(path).is_dir():
        return with_revision(path, policy.revision)
    if policy.revision:
        raise ValueError(
            f"policy.revision={policy.revision} needs a name on the hub, but policy.path={path} is a local folder; "
            "remove policy.revision"
        )
    return str(Path(path).absolute())


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the policy's tokenizer.

    Raises:
        ValueError: there is no tokenizer at `path`.
    """
    try:
        return AutoTokenizer.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError) as failure:
        raise ValueError(
            f"policy.path={path!r} is neither a folder with a policy nor a readable name on the hub; "
            f"to make a policy with a cold start, run `grpo sft configs/quickstart_sft.yaml`"
        ) from failure


def policy_config(policy: config.PolicyConfig) -> PreTrainedConfig | None:
    """Read the configuration of the policy's architecture. Return None if neither a folder nor the hub provides it."""
    path = local_or_hub(policy)
    try:
        shape: PreTrainedConfig = AutoConfig.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError):
        return None
    return shape


def check_positions(settings: config.TrainConfig | config.SftConfig) -> None:
    """Refuse sequences longer than the policy's context, if the policy's config is readable.

    Raises:
        ValueError: the longest prompt and the longest completion together, or the longest row, have too many tokens.
    """
    shape = policy_config(settings.policy) if settings.policy.path else None
    context = context_of(shape) if shape else None
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
            f"{keys} = {longest} tokens do not fit the {context} positions of the policy {settings.policy.path}; lower "
            "the limits, or take a policy with a longer context"
        )
