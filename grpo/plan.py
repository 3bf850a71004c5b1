"""`grpo check`: the resolved config and what it would claim, worked out without claiming anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from grpo import config
from grpo.adapters import require_peft, trained_parameters
from grpo.code_rewards import isolation_table
from grpo.config_file import dump, read
from grpo.data import HubUnreachable, load_prompts, load_supervised
from grpo.gold_check import check_gold_answers
from grpo.objective_config import PRESETS
from grpo.policy import shape_of as new_shape
from grpo.preparation import load_tokenizer, local_or_hub, plan_of, specs_of
from grpo.types import Prompt
from rewards.selection import check_rows

GIB = 1 << 30
# What of a learner rank's memory `learner.offload` moves to the host, by the first word of its name below.
OFFLOADED: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("optimizer",),
    "parameters": ("weights", "optimizer"),
}


def schema_of(path: Path) -> type[config.TrainConfig] | type[config.SftConfig]:
    """Which job a config file is for: `grpo sft` files have a section `sft`.

    Raises:
        ValueError: the file cannot be read.
    """
    return config.SftConfig if "sft" in read(path) else config.TrainConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """A policy's size.

    Attributes:
        parameters: how many.
        trained: how many have gradients and optimizer state: all, or with LoRA the adapters, which come on top.
        cache_bytes: of the key-value cache for one token.
        activation_bytes: kept for one token between forward and backward.
    """

    parameters: int
    trained: int
    cache_bytes: int
    activation_bytes: int


def shape_of(policy: config.Policy, learner: config.LearnerConfig) -> Shape | None:
    """Size of the policy; None where its config can be read neither locally nor from the hub.

    Raises:
        ValueError: a target of `learner.lora` names no linear layer of the policy.
    """
    shape: PreTrainedConfig
    if policy.new:
        new = policy.new
        characters = len(set(new.alphabet)) + len(new.tags) + 3
        shape = new_shape(new, new.vocabulary if new.tokenizer == "bpe" else characters)
    else:
        try:
            shape = AutoConfig.from_pretrained(local_or_hub(policy.path or ""))
        except (OSError, ValueError):
            return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    size = 2 if policy.dtype == "bfloat16" else 4
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head = getattr(shape, "head_dim", None) or hidden // shape.num_attention_heads
    # Between forward and backward a layer keeps about 34 values per hidden unit (Korthikanti et al. 2022,
    # arXiv:2205.05198, section 4.1, without the attention matrix, which fused attention does not keep) in half
    # precision; with checkpointing only its input stays.
    per_layer = hidden * size if learner.gradient_checkpointing else 17 * hidden * size
    return Shape(
        sum(parameter.numel() for parameter in model.parameters()),
        trained_parameters(model, learner.lora),
        2 * layers * heads * head * size,
        layers * per_layer,
    )


def learner_bytes(shape: Shape, policy: config.Policy, learner: config.LearnerConfig) -> dict[str, float]:
    """Memory of one learner rank by what it is for; ZeRO (arXiv:1910.02054, section 3) shards parts of it."""
    size = 2 if policy.dtype == "bfloat16" else 4
    master = 4 if policy.dtype == "bfloat16" else 0
    sharded = {stage: learner.ranks if learner.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    gradients = 1 if learner.reduces_once(policy.dtype) else sharded[2]
    held = shape.parameters + (shape.trained if learner.lora else 0)
    return {
        "weights": held * size / sharded[3],
        "gradients": shape.trained * 4 / gradients,
        "optimizer (Adam, float32 weights)": shape.trained * (8 + master) / sharded[1],
        "activations of a microbatch": shape.activation_bytes * learner.microbatch_tokens,
    }


def show_plan(settings: config.TrainConfig | config.SftConfig, console: Console, *, gold_limit: int) -> bool:
    """Print the resolved config, the actors, the batch arithmetic, the data, the memory, and what verifiers say of it.

    Args:
        settings: of either job.
        console: where to.
        gold_limit: gold answers that are checked at most; 0 checks none.

    Returns:
        False where gold answers were checked and some did not behave; see `grpo.gold_check`.

    Raises:
        ValueError: the policy or the data cannot be read as configured, the verifiers cannot be built, the sandbox
            cannot be had as demanded, or what LoRA needs is not installed.
    """
    require_peft(settings.learner)
    console.print(Syntax(dump(settings), "yaml", background_color="default"))
    console.print(_actors(settings))
    if isinstance(settings, config.TrainConfig):
        console.print(_objective(settings))
    console.print(_arithmetic(settings))
    console.print(_memory(settings))
    warning = isinstance(settings, config.TrainConfig) and lag_warning(settings)
    if warning:
        console.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)
    if isinstance(settings, config.SftConfig):
        console.print(_supervised_data(settings))
        return True
    table, prompts, unreachable = _prompts(settings)
    console.print(table)
    isolation = isolation_table(settings.verifiers, _table("sandbox"))
    if isolation is not None:
        console.print(isolation)
    specs = specs_of(settings.verifiers)
    for found in prompts:
        check_rows(specs, ((prompt.id, prompt.row) for prompt in found))
    for problem in unreachable:
        console.print(f"[yellow]gold answers of the {escape(problem)}[/]", soft_wrap=True)
    if not prompts or not gold_limit:
        return True
    asked = [prompt for found in prompts for prompt in found]
    return check_gold_answers(specs, asked, settings.verification, console, limit=gold_limit)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _actors(settings: config.TrainConfig | config.SftConfig) -> Table:
    plan, table = plan_of(settings), _table("actors")
    has_gpus = settings.cluster.device == "gpu" or (settings.cluster.device == "auto" and torch.cuda.is_available())
    device = "GPU" if has_gpus else "CPU"
    where = f"1 {device}" if has_gpus else f"{plan.learner_threads} thread(s)"
    table.add_row("learner", f"{plan.learner_ranks} rank(s), {where} each, ZeRO-{settings.learner.zero_stage}")
    if isinstance(settings, config.TrainConfig):
        where = f"{plan.generator_devices} {device}(s)" if has_gpus else f"{plan.generator_threads} thread(s)"
        table.add_row("generators", f"{plan.generators} vLLM replica(s), {where} each")
        verification = settings.verification
        where = " on every node" if verification.per_node else ""
        limit = f"{verification.deadline_s:g} s a verdict at most"
        table.add_row("verifiers", f"{verification.workers} worker(s){where}, {limit}")
    ahead = isinstance(settings, config.TrainConfig) and settings.rollout.max_policy_lag
    cores = f"no GPU; phases {'share' if ahead else 'take turns on'} the CPU's cores"
    table.add_row("devices", f"{plan.gpus} GPU(s)" if has_gpus else cores)
    table.add_row("Ray", settings.cluster.address or "started for this run, on loopback")
    return table


# What each choice computes, for one who reads the plan; equations and papers are in docs/objectives.md.
_SAID = {
    "group_std": "(r - mean of the group) / deviation of the group",
    "group_mean": "r - mean of the group",
    "leave_one_out": "r - mean of the others of the group",
    "reinforce++": "(r - mean of the batch) / deviation of the batch",
    "reinforce++_baseline": "r - mean of the group, then normalised over the batch",
    "batch_std": "(r - mean of the group) / deviation of the batch's rewards",
    "maxrl": "(r - mean of the group) / mean of the group",
    "pass_at_k": "share in the best of k",
    "token": "each token's, clipped",
    "sequence": "geometric mean over the sequence, clipped",
    "sequence_token": "geometric mean over the sequence, clipped, each token with its own gradient",
    "cispo": "each token's, a clipped weight on log-probabilities",
    "geometric": "geometric mean of each token's, clipped",
    "soft": "each token's, through a sigmoid",
    "token_mean": "every token counts alike",
    "sequence_mean": "every completion counts alike",
    "constant": "sum of a completion's tokens / a constant",
    "prompt_mean": "every prompt counts alike",
}

_RATIO_TO = {"rollout": "sampler's probabilities", "recomputed": "learner's at the start of the step"}


def _objective(settings: config.TrainConfig) -> Table:
    table, chosen = _table("objective"), settings.algorithm
    expanded = PRESETS.get(chosen.preset or "", {})
    if chosen.preset:
        kept = [key for key, value in expanded.items() if getattr(chosen, key) == value]
        table.add_row("preset", f"{chosen.preset}: " + ", ".join(f"{key}={getattr(chosen, key)}" for key in kept))
        changed = [key for key in expanded if key not in kept]
        if changed:
            table.add_row("instead of it", ", ".join(f"{key}={getattr(chosen, key)}" for key in changed))
    table.add_row("advantage", f"{chosen.advantage}: {_SAID[chosen.advantage]}")
    edges = f"{1 - chosen.clip_low:g} to {1 + chosen.clip_high:g}"
    bounds = f", from {edges}" if chosen.ratio != "soft" else ""
    dual = f", no further than {chosen.dual_clip:g}" if chosen.dual_clip else ""
    table.add_row("ratio", f"{chosen.ratio}: {_SAID[chosen.ratio]}{bounds}{dual}; to the {_RATIO_TO[chosen.proximal]}")
    divisor = chosen.length_divisor or settings.rollout.max_completion_tokens
    constant = f" ({divisor:,})" if chosen.aggregation == "constant" else ""
    table.add_row("aggregation", f"{chosen.aggregation}: {_SAID[chosen.aggregation]}{constant}")
    refreshed = f", refreshed every {chosen.reference_refresh} steps" if chosen.reference_refresh else ", frozen"
    without = ", as the policy without its adapters" if settings.learner.lora else ""
    corrected = ", times the ratio to the sampler" if chosen.kl_corrected else ""
    table.add_row(
        "KL",
        f"{chosen.kl_coefficient:g} x {chosen.kl} in the {chosen.kl_place}{corrected}; reference: the starting policy"
        f"{without}{refreshed}"
        if chosen.needs_reference
        else "none, and no reference is held",
    )
    mismatch = []
    if chosen.importance_weight != "none":
        mismatch.append(f"weight per {chosen.importance_weight}, at most {chosen.importance_cap:g}")
    if chosen.mismatch_mask != "none":
        mismatch.append(f"mask per {chosen.mismatch_mask}, kept {chosen.mask_low:g} to {chosen.mask_high:g}")
    table.add_row("mismatch", "; ".join(mismatch) or "not corrected")
    if chosen.entropy_coefficient:
        table.add_row("entropy", f"{chosen.entropy_coefficient:g} x entropy is added to what is maximised")
    return table


def _arithmetic(settings: config.TrainConfig | config.SftConfig) -> Table:
    table, learner = _table("batch"), settings.learner
    if isinstance(settings, config.SftConfig):
        table.add_row("an optimizer step", f"{settings.sft.batch_size} rows over {learner.ranks} rank(s)")
        table.add_row("steps", f"{settings.sft.steps:,}")
        return table
    rollout, algorithm = settings.rollout, settings.algorithm
    completions = rollout.prompts_per_step * rollout.group_size
    table.add_row(
        "a step", f"{rollout.prompts_per_step} prompts x {rollout.group_size} completions = {completions:,} completions"
    )
    table.add_row(
        "an optimizer step",
        f"{completions // algorithm.minibatches:,} completions ({algorithm.minibatches} minibatches) over "
        f"{learner.ranks} rank(s), in microbatches of at most {learner.microbatch_tokens:,} tokens",
    )
    longest = rollout.max_prompt_tokens + rollout.max_completion_tokens
    if rollout.max_policy_lag:
        open_groups = (1 + rollout.max_policy_lag) * rollout.prompts_per_step
        table.add_row(
            "sampling ahead",
            f"by {rollout.max_policy_lag} versions of the policy at most: {open_groups:,} groups under way or waiting",
        )
    table.add_row("tokens of a step", f"at most {completions * longest:,} ({longest:,} a sequence)")
    table.add_row(
        "steps", f"{settings.train.steps:,}, {settings.train.steps * algorithm.minibatches:,} optimizer steps"
    )
    return table


def lag_warning(settings: config.TrainConfig) -> str | None:
    """What is missing in the objective to train on tokens of older policies, with the remedy."""
    lag, algorithm = settings.rollout.max_policy_lag, settings.algorithm
    if not lag or algorithm.corrects_lag:
        return None
    found = f"rollout.max_policy_lag={lag} trains on tokens of policies up to {lag} versions old, and "
    if algorithm.proximal == "recomputed":
        return (
            f"{found}algorithm.proximal=recomputed without algorithm.importance_weight takes them for the present "
            "policy's own: set algorithm.importance_weight=token or algorithm.mismatch_mask=token (docs/async.md)"
        )
    return (
        f"{found}the edges of algorithm.ratio={algorithm.ratio} lie about the policy that sampled: what the policy has "
        "moved since uses them up. Set algorithm.preset=cispo, algorithm.mismatch_mask=token, or "
        "algorithm.proximal=recomputed with algorithm.importance_weight=token (docs/async.md)"
    )


def _memory(settings: config.TrainConfig | config.SftConfig) -> Table:
    table = _table("memory (estimate)")
    shape = shape_of(settings.policy, settings.learner)
    if shape is None:
        table.add_row("unknown", f"the policy {settings.policy.path!r} is not here yet and the hub does not answer")
        return table
    lora = settings.learner.lora
    adapters = f", and {shape.trained:,} of adapters of rank {lora.rank}, which alone are trained" if lora else ""
    table.add_row("policy", f"{shape.parameters:,} parameters{adapters}")
    parts = learner_bytes(shape, settings.policy, settings.learner)
    offloaded = {name for name in parts if name.split()[0] in OFFLOADED[settings.learner.offload]}
    for title, names in (("a learner rank", parts.keys() - offloaded), ("in the host's memory", offloaded)):
        held = {name: size for name, size in parts.items() if name in names}
        if held:
            total = f"{sum(held.values()) / GIB:.2f} GiB"
            table.add_row(title, f"{total}: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in held.items()))
    if isinstance(settings, config.TrainConfig):
        size = 2 if settings.policy.dtype == "bfloat16" else 4
        weights = shape.parameters * size / settings.generator.tensor_parallel_size
        cache = settings.generator.max_sequences * settings.max_sequence_tokens * shape.cache_bytes
        table.add_row(
            "a generator",
            f"weights {weights / GIB:.2f} GiB a device; key-value cache of {settings.generator.max_sequences} longest "
            f"sequences {cache / GIB:.2f} GiB",
        )
    return table


def _supervised_data(settings: config.SftConfig) -> Table:
    table = _table("data")
    if settings.policy.new:
        table.add_row("training", "tokenized when the policy is made")
        return table
    tokenizer = load_tokenizer(local_or_hub(settings.policy.path or ""))
    rows, dropped = load_supervised(settings.data, tokenizer, max_tokens=settings.sft.max_tokens)
    table.add_row("training", f"{len(rows):,} rows; {dropped:,} too long and left out")
    return table


def _prompts(settings: config.TrainConfig) -> tuple[Table, list[Sequence[Prompt]], list[str]]:
    """The prompts of training and evaluation with a table of them, and what the hub did not answer."""
    table = _table("data")
    tokenizer = load_tokenizer(local_or_hub(settings.policy.path or ""))
    limit = settings.rollout.max_prompt_tokens
    prompts: list[Sequence[Prompt]] = []
    unreachable: list[str] = []
    for name, source in (("training", settings.data), ("held out", settings.evaluation and settings.evaluation.data)):
        if not source:
            continue
        try:
            found = load_prompts(source, tokenizer, max_tokens=limit)
        except HubUnreachable as failure:
            table.add_row(name, "unknown: the hub does not answer")
            unreachable.append(f"{name} data could not be checked: {failure}")
            continue
        table.add_row(name, f"{len(found.prompts):,} prompts; {found.dropped:,} too long and left out")
        table.add_row("", f"the first: {found.prompts[0].text[:200]!r} -> {str(found.prompts[0].reference)[:80]!r}")
        prompts.append(found.prompts)
    return table, prompts, unreachable
