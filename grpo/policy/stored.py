"""Find a policy in a folder or on the hub, and load its tokenizer and its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grpo import config
from grpo.deferred import deferred
from grpo.hub_access import PAGE
from grpo.policy.hub import ask_hub, at_revision, may_be_on_hub, name_of, with_revision
from grpo.policy.plain import PlainConfig, plain_config, plain_tokenizer

if TYPE_CHECKING:
    import transformers
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase
else:
    transformers = deferred("transformers")


def context_of(shape: PreTrainedConfig | PlainConfig) -> int | None:
    """Return the length of the policy's longest sequence, in tokens; None if the config has no limit.

    vLLM uses the same rule.
    """
    if isinstance(shape, PlainConfig):
        return shape.max_position_embeddings
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
    if not _may_exist(path):
        raise _absent(path)
    ask_hub(path)
    try:
        return plain_tokenizer(path) or transformers.AutoTokenizer.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError) as failure:
        raise _absent(path) from failure


def end_tokens(path: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a completion, as the tokenizer and the policy's generation config define them."""
    ends = {tokenizer.eos_token_id}
    ask_hub(path)
    try:
        more = transformers.GenerationConfig.from_pretrained(name_of(path), **at_revision(path)).eos_token_id
    except OSError:
        more = None  # The generation config is optional.
    return frozenset(ends | set([more] if isinstance(more, int) else more or ())) - {None}


def _absent(path: str) -> ValueError:
    as_path = "check the path (`grpo sft configs/quickstart_sft.yaml` makes the quickstart's policy)"
    if not may_be_on_hub(path):
        remedy = as_path
    elif offline := ask_hub(path):
        remedy = (
            f"if it is a folder, {as_path}. If it is a name on the hub: {offline}; on a machine with a network, fill "
            f"the cache by `hf download {name_of(path)}` ({PAGE})"
        )
    else:
        remedy = (
            f"if it is a folder, {as_path}. If it is a name on the hub, check the name, the network, and your access "
            "(`hf auth login`)"
        )
    return ValueError(
        f"policy.path={path!r} is neither a folder with a policy nor a readable name on the hub; {remedy}"
    )


def _may_exist(path: str) -> bool:
    return Path(path).is_dir() or may_be_on_hub(path)


def policy_config(policy: config.PolicyConfig) -> PreTrainedConfig | PlainConfig | None:
    """Read the configuration of the policy's architecture. Return None if neither a folder nor the hub provides it."""
    path = local_or_hub(policy)
    if not _may_exist(path):
        return None
    if plain := plain_config(path):
        return plain
    ask_hub(path)
    try:
        shape: PreTrainedConfig = transformers.AutoConfig.from_pretrained(name_of(path), **at_revision(path))
    except (OSError, ValueError):
        return None
    return shape


def check_positions(settings: config.JobConfig) -> None:
    """Refuse sequences longer than the policy's context, if the policy's config is readable.

    Raises:
        ValueError: the longest prompt and the longest completion together, or the longest row, have too many tokens.
    """
    shape = policy_config(settings.policy) if settings.policy.path else None
    context = context_of(shape) if shape else None
    if context is None:
        return
    if isinstance(settings, config.FineTuningConfig):
        longest, keys = settings.schedule.max_tokens, f"{settings.job}.max_tokens"
    else:
        longest, keys = settings.max_sequence_tokens, "rollout.max_prompt_tokens + rollout.max_completion_tokens"
        if longest > settings.rollout.max_prompt_tokens + settings.rollout.max_completion_tokens:
            keys = "rollout.max_prompt_tokens + evaluation.max_completion_tokens"
    if longest > context:
        raise ValueError(
            f"{keys} = {longest} tokens do not fit the {context} positions of the policy {settings.policy.path}; lower "
            "the limits, or take a policy with a longer context"
        )


def check_heads(policy: PreTrainedConfig | PlainConfig, size: int) -> None:
    """Refuse a policy whose heads cannot be shared out over `size` ranks.

    Raises:
        ValueError: the number of query heads is not a multiple of `size`, or the number of key-value heads is neither a
            multiple nor a divisor of `size`.
    """
    if size == 1:
        return
    heads: int = policy.num_attention_heads
    shared: int = getattr(policy, "num_key_value_heads", None) or heads

    def fits(ranks: int) -> bool:
        return heads % ranks == 0 and (shared % ranks == 0 or ranks % shared == 0)

    if not fits(size):
        choices = ", ".join(str(ranks) for ranks in range(1, heads + 1) if fits(ranks))
        raise ValueError(
            f"learner.sequence_parallel={size} cannot share out the policy's {heads} attention heads and "
            f"{shared} key-value heads; choose one of {choices}"
        )
