"""The tables of the plan in `grpo check`: actors, objective, batch."""

from __future__ import annotations

from rich.table import Table

from grpo import config
from grpo.algorithm.choices import Kind, choice
from grpo.cluster.claim import plan_of
from grpo.cluster.device import planned_device
from grpo.config.presets import PRESETS
from grpo.terminal import LiteralTable


def new_table(title: str) -> Table:
    """Return an empty table of two columns: name and value."""
    table = LiteralTable(title=title, title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def actors_table(settings: config.JobConfig) -> Table:
    """Return the actors of a job, and their devices and threads."""
    plan, table = plan_of(settings), new_table("actors")
    has_gpus = planned_device(settings.cluster, samples=plan.generators > 0) == "cuda"
    device = "GPU" if has_gpus else "CPU"
    where = f"1 {device}" if has_gpus else f"{plan.learner_threads} thread(s)"
    learner = settings.learner
    shared = f", {learner.sequence_parallel} share each microbatch" if learner.sequence_parallel > 1 else ""
    table.add_row("learner", f"{learner.ranks} rank(s), {where} each, ZeRO-{learner.zero_stage}{shared}")
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


def objective_table(settings: config.TrainConfig) -> Table:
    """Return the choices of the objective, with what each of them does."""
    table, chosen = new_table("objective"), settings.algorithm
    expanded = PRESETS.get(chosen.preset or "", {})
    if chosen.preset:
        kept = [key for key, value in expanded.items() if getattr(chosen, key) == value]
        table.add_row("preset", f"{chosen.preset}: " + ", ".join(f"{key}={getattr(chosen, key)}" for key in kept))
        changed = [key for key in expanded if key not in kept]
        if changed:
            table.add_row("instead of it", ", ".join(f"{key}={getattr(chosen, key)}" for key in changed))
    table.add_row("advantage", _described("advantage", chosen.advantage))
    ratio = choice("ratio", chosen.ratio)
    edges = f"; edges {1 - chosen.clip_low:g} to {1 + chosen.clip_high:g}" if "clip_high" in ratio.keywords else ""
    dual = f", no further than {chosen.dual_clip:g}" if chosen.dual_clip else ""
    start = "learner's at the start of the step" if chosen.proximal == "recomputed" else "sampler's probabilities"
    table.add_row("ratio", f"{_described('ratio', chosen.ratio)}{edges}{dual}; to the {start}")
    divisor = chosen.length_divisor or settings.rollout.max_completion_tokens
    constant = f" ({divisor:,})" if chosen.aggregation == "constant" else ""
    table.add_row("aggregation", f"{_described('aggregation', chosen.aggregation)}{constant}")
    refreshed = f", refreshed every {chosen.reference_refresh} steps" if chosen.reference_refresh else ", frozen"
    without = ", as the policy without its adapters" if settings.learner.lora else ""
    corrected = ", times the ratio to the sampler" if chosen.kl_corrected else ""
    table.add_row(
        "KL",
        f"{chosen.kl_coefficient:g} x {_described('kl', chosen.kl)}; in the {chosen.kl_place}{corrected}; reference: "
        f"the starting policy{without}{refreshed}"
        if chosen.needs_reference
        else "none, and no reference policy",
    )
    if chosen.supervision == "process":
        table.add_row("supervision", "process: a token's advantage is the sum over the steps that end at or after it")
    if chosen.teacher:
        beside = "alone; the verifiers only measure" if chosen.teacher.alone else "beside the verifiers"
        table.add_row("teacher", f"{chosen.teacher.weight:g} x (log p_teacher - log p_policy) at each token, {beside}")
    mismatch = []
    if chosen.importance_weight != "none":
        mismatch.append(f"weight per {chosen.importance_weight}, at most {chosen.importance_cap:g}")
    if chosen.mismatch_mask != "none":
        mismatch.append(f"mask per {chosen.mismatch_mask}, kept {chosen.mask_low:g} to {chosen.mask_high:g}")
    table.add_row("mismatch", "; ".join(mismatch) or "not corrected")
    if settings.functions:
        table.add_row("your functions", ", ".join(settings.functions) + ": loaded, and tried on a tiny batch")
    if chosen.entropy_coefficient:
        table.add_row("entropy", f"{chosen.entropy_coefficient:g} x entropy is added to the objective")
    return table


def _described(kind: Kind, name: str) -> str:
    description = choice(kind, name).said
    return f"{name}: {description}" if description else name


def batch_table(settings: config.JobConfig) -> Table:
    """Return the numbers of completions, tokens and optimizer steps."""
    table, learner = new_table("batch"), settings.learner
    if isinstance(settings, config.FineTuningConfig):
        table.add_row("an optimizer step", f"{settings.schedule.batch_size} rows over {learner.ranks} rank(s)")
        table.add_row("steps", f"{settings.schedule.steps:,}")
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
