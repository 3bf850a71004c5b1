"""`grpo check`: show the resolved config and the resources it would claim, without claiming them."""

from __future__ import annotations

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from grpo import config
from grpo.algorithm.choices import Kind, choice
from grpo.cluster.claim import plan_of, wants_gpus
from grpo.config.file import dump
from grpo.config.presets import PRESETS
from grpo.config.verifiers import specs_of
from grpo.data.bad_rows import lines_of
from grpo.data.prompts import PromptSet, check_prompt_count, gold_rows, load_prompts
from grpo.data.rows import HubUnreachable
from grpo.data.supervised import load_supervised
from grpo.planning.gold import check_gold_answers, check_verifiers
from grpo.planning.isolation import isolation_table
from grpo.planning.memory import add_memory, memory_here, memory_warning, shape_of
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions, load_tokenizer, local_or_hub
from grpo.run.functions import Callbacks
from grpo.terminal import LiteralTable, literal
from grpo.visible import visible
from rewards.selection import check_rows


def show_plan(settings: config.TrainConfig | config.SftConfig, console: Console, *, gold_limit: int) -> bool:
    """Print the resolved config, the actors, the batch arithmetic, the data, the memory and the check of gold answers.

    Args:
        settings: settings of a training or fine-tuning job.
        console: console to print to.
        gold_limit: largest number of gold answers to check; 0 checks no gold answer.

    Returns:
        False if gold answers were checked and some failed the check; see `grpo.planning.gold`.

    Raises:
        RuntimeError: a run would not start, because of its gold answers.
        ValueError: a user's function breaks its contract, the policy or the data cannot be read as configured, there
            are too few data, sequences are too long, the verifiers cannot be built, the machine cannot provide the
            required sandbox, a package for LoRA is missing, or the policy's heads cannot be shared among the ranks.
    """
    require_peft(settings.learner)
    check_positions(settings)
    console.print(Syntax(visible(dump(settings)), "yaml", background_color="default"))
    console.print(_actors(settings))
    if isinstance(settings, config.TrainConfig):
        Callbacks(settings)
        console.print(_objective(settings))
    console.print(_arithmetic(settings))
    shape = shape_of(settings.policy, settings.learner)
    console.print(add_memory(_table("memory (estimate)"), settings, shape))
    warnings = [memory_warning(settings, shape, memory_here()) if shape else None]
    if isinstance(settings, config.TrainConfig):
        warnings.append(lag_warning(settings))
    for warning in filter(None, warnings):
        console.print(literal(warning, "yellow"), soft_wrap=True)
    if isinstance(settings, config.SftConfig):
        console.print(_supervised_data(settings))
        return True
    specs = specs_of(settings.verifiers, settings.verification)
    check_verifiers(specs, settings.verification.memory_mib)
    table, prompts, unreachable = _prompts(settings)
    console.print(table)
    isolation = isolation_table(settings.verifiers, _table("sandbox"))
    if isolation is not None:
        console.print(isolation)
    for prompt_set in prompts.values():
        check_rows(specs, ((prompt.id, prompt.row) for prompt in prompt_set.prompts))
    for problem in unreachable:
        console.print(literal(f"gold answers of the {problem}", "yellow"), soft_wrap=True)
    if not prompts or not gold_limit:
        return True
    parts = {name: gold_rows(prompt_set) for name, prompt_set in prompts.items()}
    outcome = check_gold_answers(specs, parts, settings.verification, console, limit=gold_limit)
    if outcome.failures and settings.verification.check_golds == "refuse":
        raise RuntimeError("\n".join(["a run would not start on these data:", *outcome.failures]))
    return outcome.sound


def _table(title: str) -> Table:
    table = LiteralTable(title=title, title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _actors(settings: config.TrainConfig | config.SftConfig) -> Table:
    plan, table = plan_of(settings), _table("actors")
    has_gpus = wants_gpus(settings.cluster)
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


def _objective(settings: config.TrainConfig) -> Table:
    table, chosen = _table("objective"), settings.algorithm
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
    """Return a warning with a remedy if the objective cannot train on tokens of older policies; else None."""
    lag, algorithm = settings.rollout.max_policy_lag, settings.algorithm
    if not lag or algorithm.corrects_lag:
        return None
    reason = f"rollout.max_policy_lag={lag} trains on tokens of policies up to {lag} versions old, and "
    if algorithm.proximal == "recomputed":
        return (
            f"{reason}algorithm.proximal=recomputed without algorithm.importance_weight treats them as tokens of the "
            "present policy: set algorithm.importance_weight=token or algorithm.mismatch_mask=token (docs/async.md)"
        )
    return (
        f"{reason}algorithm.ratio={algorithm.ratio} bounds the change since sampling, but the versions in "
        "between already use up these bounds. Set algorithm.preset=cispo, algorithm.mismatch_mask=token, or "
        "algorithm.proximal=recomputed with algorithm.importance_weight=token (docs/async.md)"
    )


def _supervised_data(settings: config.SftConfig) -> Table:
    table = _table("data")
    if settings.policy.new:
        table.add_row("training", "tokenized when the policy is made")
        return table
    tokenizer = load_tokenizer(local_or_hub(settings.policy))
    data = load_supervised(settings.data, tokenizer, max_tokens=settings.sft.max_tokens)
    table.add_row("training", f"{len(data.sequences):,} rows; {data.dropped:,} too long and left out")
    if data.left_out:
        table.add_row("", f"left out as well (data.on_bad_row=drop): {lines_of(data.left_out)}")
    return table


def _prompts(settings: config.TrainConfig) -> tuple[Table, dict[str, PromptSet], list[str]]:
    """Return a table of the data, the prompts of training and evaluation, and the messages about an unreachable hub."""
    table = _table("data")
    tokenizer = load_tokenizer(local_or_hub(settings.policy))
    limit = settings.rollout.max_prompt_tokens
    prompts: dict[str, PromptSet] = {}
    unreachable: list[str] = []
    sources = [("training", "data", settings.data)]
    if settings.evaluation:
        sources.append(("held-out", "evaluation.data", settings.evaluation.data))
    for name, where, source in sources:
        try:
            prompt_set = load_prompts(source, tokenizer, max_tokens=limit, where=where)
        except HubUnreachable as failure:
            table.add_row(name, "unknown: the hub does not answer")
            unreachable.append(f"{name} data could not be checked: {failure}")
            continue
        if name == "training":
            check_prompt_count(prompt_set, settings.rollout)
        table.add_row(name, f"{len(prompt_set.prompts):,} prompts; {prompt_set.dropped:,} too long and left out")
        table.add_row(
            "", f"the first: {prompt_set.prompts[0].text[:200]!r} -> {str(prompt_set.prompts[0].reference)[:80]!r}"
        )
        if prompt_set.left_out:
            table.add_row("", f"left out as well ({where}.on_bad_row=drop): {lines_of(prompt_set.left_out)}")
        for note in prompt_set.notes:
            table.add_row("", literal(note, "yellow"))
        prompts[name] = prompt_set
    return table, prompts, unreachable
