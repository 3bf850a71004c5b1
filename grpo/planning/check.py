"""`grpo check`: show what a config sets, its data and gold answers, and the plan, without claiming any device."""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from grpo import config
from grpo.cluster.device import INSTALL, build, planned_device
from grpo.config.file import dump
from grpo.config.verifiers import specs_of
from grpo.data.bad_rows import lines_of
from grpo.data.prompts import PromptSet, check_prompt_count, gold_rows, load_prompts
from grpo.data.rows import HubUnreachable
from grpo.data.supervised import load_supervised
from grpo.planning.first_prompt import show_first_prompt, unknown_characters
from grpo.planning.gold import check_gold_answers, check_verifiers
from grpo.planning.isolation import isolation_table
from grpo.planning.memory import add_memory, memory_here, memory_warning, shape_of
from grpo.planning.plan_tables import actors_table, batch_table, new_table, objective_table
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions, load_tokenizer, local_or_hub
from grpo.run.functions import Callbacks
from grpo.terminal import literal
from grpo.visible import visible
from rewards.selection import check_rows


@dataclass(frozen=True, slots=True)
class Findings:
    """What the check of the data found.

    Attributes:
        sound: whether everything was checked and passed.
        failure: why a run would not start on these data; empty if the run would start.
        warnings: sentences that a user should read.
    """

    sound: bool = True
    failure: str = ""
    warnings: tuple[str, ...] = ()


def show_plan(
    settings: config.TrainConfig | config.SftConfig, console: Console, *, gold_limit: int, full: bool = False
) -> bool:
    """Print what the config sets, the data, the check of gold answers, the plan, and one line of verdict.

    Args:
        settings: settings of a training or fine-tuning job.
        console: console to print to.
        gold_limit: largest number of gold answers to check; 0 checks no gold answer.
        full: True to print also the keys that have their default, and the whole first prompt.

    Returns:
        False if some data or gold answers failed the check, or could not be checked; see `grpo.planning.gold`.

    Raises:
        RuntimeError: a run would not start, because of its gold answers.
        ValueError: a user's function breaks its contract, the policy or the data cannot be read as configured, there
            are too few data, sequences are too long, the verifiers cannot be built, the machine cannot provide the
            required sandbox, a package for LoRA is missing, or the policy's heads cannot be shared among the ranks.
    """
    require_peft(settings.learner)
    check_positions(settings)
    if isinstance(settings, config.TrainConfig):
        Callbacks(settings)
    console.print(literal("config" if full else "config: what differs from the defaults (--full prints all)", "bold"))
    console.print(Syntax(visible(dump(settings) if full else differing(settings)), "yaml", background_color="default"))
    if isinstance(settings, config.SftConfig):
        findings = _check_supervised(settings, console)
    else:
        findings = _check_training_data(settings, console, gold_limit, full=full)
    warnings = [*findings.warnings, *_show_tables(settings, console)]
    for warning in warnings:
        console.print(literal(warning, "yellow"), soft_wrap=True)
    if findings.failure:
        raise RuntimeError(findings.failure)
    console.print(_verdict(findings, len(warnings), gold_limit), soft_wrap=True)
    return findings.sound


def differing(settings: config.TrainConfig | config.SftConfig) -> str:
    """Return the keys that do not have their default, as YAML."""
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _show_tables(settings: config.TrainConfig | config.SftConfig, console: Console) -> list[str]:
    """Print the plan; return the warnings about it."""
    console.print(actors_table(settings))
    if isinstance(settings, config.TrainConfig):
        console.print(objective_table(settings))
    console.print(batch_table(settings))
    shape = shape_of(settings.policy, settings.learner)
    console.print(add_memory(new_table("memory (estimate)"), settings, shape))
    warnings = [memory_warning(settings, shape, memory_here()) if shape else None]
    if isinstance(settings, config.TrainConfig):
        warnings.append(lag_warning(settings))
    if planned_device(settings.cluster) == "cuda" and build() == "cpu":
        warnings.append(
            "cluster.device=gpu, but this environment has a CPU build of torch or vLLM: this plan is for another "
            f"machine or environment ({INSTALL['cuda']})"
        )
    return [warning for warning in warnings if warning]


def _verdict(findings: Findings, warnings: int, gold_limit: int) -> Text:
    if not findings.sound:
        return literal("verdict: a run would start, but look at the yellow and red lines above first", "bold yellow")
    checked = "" if gold_limit else "; gold answers were not checked (--gold-limit=0)"
    if warnings:
        count = "1 warning" if warnings == 1 else f"{warnings} warnings"
        return literal(f"verdict: a run would start; {count} above{checked}", "bold yellow")
    return literal(f"verdict: ready: a run would start{checked}", "bold green")


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


def _check_supervised(settings: config.SftConfig, console: Console) -> Findings:
    table = new_table("data")
    if settings.policy.new:
        table.add_row("training", "tokenized when the policy is made")
        console.print(table)
        return Findings()
    tokenizer = load_tokenizer(local_or_hub(settings.policy))
    data = load_supervised(settings.data, tokenizer, max_tokens=settings.sft.max_tokens)
    table.add_row("training", f"{len(data.sequences):,} rows; {data.dropped:,} too long and left out")
    if data.left_out:
        table.add_row("", f"left out as well (data.on_bad_row=drop): {lines_of(data.left_out)}")
    console.print(table)
    return Findings()


def _check_training_data(settings: config.TrainConfig, console: Console, gold_limit: int, *, full: bool) -> Findings:
    specs = specs_of(settings.verifiers, settings.verification)
    check_verifiers(specs, settings.verification.memory_mib)
    tokenizer = load_tokenizer(local_or_hub(settings.policy))
    table, prompts, warnings = _prompts(settings, tokenizer)
    unreachable = bool(warnings)
    console.print(table)
    for name, prompt_set in prompts.items():
        show_first_prompt(name, prompt_set.prompts[0], tokenizer, console, full=full)
        if problem := unknown_characters(name, prompt_set.prompts, tokenizer):
            warnings.append(problem)
    isolation = isolation_table(settings.verifiers, new_table("sandbox"))
    if isolation is not None:
        console.print(isolation)
    for prompt_set in prompts.values():
        check_rows(specs, ((prompt.id, prompt.row) for prompt in prompt_set.prompts))
    if not prompts or not gold_limit:
        return Findings(not unreachable, "", tuple(warnings))
    parts = {name: gold_rows(prompt_set) for name, prompt_set in prompts.items()}
    outcome = check_gold_answers(specs, parts, settings.verification, console, limit=gold_limit)
    failure = ""
    if outcome.failures and settings.verification.check_golds == "refuse":
        failure = "\n".join(["a run would not start on these data:", *outcome.failures])
    return Findings(outcome.sound and not unreachable, failure, tuple(warnings))


def _prompts(
    settings: config.TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Table, dict[str, PromptSet], list[str]]:
    """Return a table of the data, the prompts of training and evaluation, and the messages about an unreachable hub."""
    table = new_table("data")
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
            table.add_row(name, "NOT CHECKED: the hub does not answer")
            unreachable.append(f"gold answers of the {name} data could not be checked: {failure}")
            continue
        if name == "training":
            check_prompt_count(prompt_set, settings.rollout)
        table.add_row(name, f"{len(prompt_set.prompts):,} prompts; {prompt_set.dropped:,} too long and left out")
        if prompt_set.left_out:
            table.add_row("", f"left out as well ({where}.on_bad_row=drop): {lines_of(prompt_set.left_out)}")
        for note in prompt_set.notes:
            table.add_row("", literal(note, "yellow"))
        prompts[name] = prompt_set
    return table, prompts, unreachable
