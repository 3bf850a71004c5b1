"""`grpo check`: show what a config sets, its data and gold answers, and the plan, without claiming any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from grpo import config
from grpo.algorithm.packing import TrainingSequence
from grpo.cluster.claim import idle_gpus
from grpo.cluster.device import INSTALL, build, planned_device
from grpo.config.file import dump
from grpo.config.verifiers import specs_of
from grpo.data.bad_rows import lines_of
from grpo.data.prompts import PromptSet, check_prompt_count, gold_rows, load_prompts
from grpo.data.rows import HubUnreachable
from grpo.data.sources import load_sources, part_name, parts_of, split_lines
from grpo.data.supervised import SupervisedTurn, load_supervised, supervised_turns
from grpo.planning.first_prompt import show_first_prompt, show_first_row, show_first_turn, unknown_characters
from grpo.planning.gold import check_gold_answers
from grpo.planning.isolation import isolation_table
from grpo.planning.memory import add_memory
from grpo.planning.memory_fit import memory_here, refusal, shortage
from grpo.planning.plan_tables import actors_table, batch_table, new_table, objective_table
from grpo.planning.policy_shape import architecture_of, shape_for
from grpo.planning.refusals import checked_tokenizer, head_size_warning
from grpo.terminal import literal
from grpo.visible import visible
from rewards.selection import check_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEDY = (
    "correct the rows, the keys of data or the verifier's options (docs/data.md has the keys for published data sets); "
    "to start nevertheless, set verification.check_golds=warn"
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the check of the data found.

    Attributes:
        sound: whether everything was checked and passed.
        failure: why a run would not start on these data; empty if the run would start.
        warnings: sentences that a user should read.
        unchecked: why no gold answer was judged; empty if some were, or if the rows need none.
    """

    sound: bool = True
    failure: str = ""
    warnings: tuple[str, ...] = ()
    unchecked: str = ""


def show_plan(settings: config.JobConfig, console: Console, *, gold_limit: int, full: bool = False) -> bool:
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
        ValueError: the job does not fit the memory of this machine, a user's function breaks its contract, the policy
            or the data cannot be read as configured, there are too few data, sequences are too long, the verifiers
            cannot be built, the machine cannot provide the required sandbox, a package for LoRA or a tracker is
            missing, or the policy's heads cannot be shared among the ranks.
    """
    console.print(literal("config" if full else "config: what differs from the defaults (--full prints all)", "bold"))
    console.print(Syntax(visible(dump(settings) if full else differing(settings)), "yaml", background_color="default"))
    tokenizer = checked_tokenizer(settings)
    if isinstance(settings, config.PreferenceJobConfig):
        from grpo.planning.preferences_plan import show_preferences  # It imports torch.

        assert tokenizer is not None, "a config of preferences names a policy"
        findings = Findings(warnings=show_preferences(settings, tokenizer, console, full=full))
    elif isinstance(settings, config.SftConfig):
        findings = _check_supervised(settings, tokenizer, console, full=full)
    else:
        assert isinstance(settings, config.TrainConfig)
        assert tokenizer is not None, "a config of `grpo train` names a policy"
        findings = _check_training_data(settings, tokenizer, console, gold_limit, full=full)
    warnings, refused = _show_tables(settings, console)
    warnings = [*findings.warnings, *warnings]
    for warning in warnings:
        console.print(literal(warning, "yellow"), soft_wrap=True)
    if findings.failure:
        console.print(literal("verdict: a run would not start; look at `gold answers: FAILED` above", "bold red"))
        raise RuntimeError("\n".join(filter(None, [findings.failure, refused])))
    if refused:
        console.print(literal("verdict: a run would not start; it needs more memory than there is", "bold red"))
        raise ValueError(refused)
    if planned_device(settings.cluster) == "cuda" and build() == "cpu":
        said = "verdict: on a machine with GPUs a run would start; here it would not, as the warning above says"
        console.print(literal(said, "bold yellow"), soft_wrap=True)
        return findings.sound
    console.print(_verdict(findings, len(warnings)), soft_wrap=True)
    return findings.sound


def differing(settings: config.JobConfig) -> str:
    """Return the keys that do not have their default, as YAML."""
    values = settings.model_dump(mode="json", exclude_defaults=True)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _show_tables(settings: config.JobConfig, console: Console) -> tuple[list[str], str]:
    """Print the plan; return the warnings about it, and why a run is refused (empty if it is not)."""
    console.print(actors_table(settings))
    if isinstance(settings, config.TrainConfig):
        console.print(objective_table(settings))
    console.print(batch_table(settings))
    warnings, refused = _show_memory(settings, console)
    warnings += idle_gpus(settings)
    if isinstance(settings, config.TrainConfig):
        warnings.append(lag_warning(settings))
    else:
        warnings.append(head_size_warning(settings))
    if planned_device(settings.cluster) == "cuda":
        if build() == "cpu":
            warnings.append(
                "cluster.device=gpu, but this environment has a CPU build of torch or vLLM: this plan is for another "
                f"machine or environment ({INSTALL['cuda']})"
            )
        if settings.policy.dtype == "float32":
            warnings.append(
                "policy.dtype=float32 on a GPU uses neither tensor cores nor FlashAttention, so it is several times "
                "slower and needs more memory; set policy.dtype=bfloat16, unless float32 is what you want to measure"
            )
    return [warning for warning in warnings if warning], refused


def _show_memory(settings: config.JobConfig, console: Console) -> tuple[list[str | None], str]:
    """Print the memory; return a warning if it may be short, and why a run is refused (empty if it is not)."""
    architecture = architecture_of(settings.policy)
    shape = None if architecture is None else shape_for(settings, architecture)
    console.print(add_memory(new_table("memory (estimate)"), settings, shape))
    if architecture is None or shape is None:
        return [], ""
    memory = memory_here()
    short = shortage(settings, shape, memory)
    if short is None:
        return [], ""
    if short.certain and settings.cluster.check_memory == "refuse":
        return [], refusal(settings, architecture, memory, short)
    return [f"{short.text}: lower learner.microbatch_tokens, or take a smaller policy"], ""


def _verdict(findings: Findings, warnings: int) -> Text:
    if not findings.sound:
        return literal("verdict: a run would start, but look at the yellow and red lines above first", "bold yellow")
    checked = f"; gold answers were not checked ({findings.unchecked})" if findings.unchecked else ""
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


def _check_supervised(
    settings: config.SftConfig, tokenizer: PreTrainedTokenizerBase | None, console: Console, *, full: bool
) -> Findings:
    table = new_table("data")
    if tokenizer is None:
        turns, left_out = supervised_turns(settings.data)
        table.add_row("training", f"{len(turns):,} rows; those that are too long are known when the policy is made")
        first: TrainingSequence | SupervisedTurn = turns[0]
    else:
        data = load_supervised(settings.data, tokenizer, max_tokens=settings.sft.max_tokens)
        table.add_row("training", f"{len(data.sequences):,} rows; {data.dropped:,} too long and left out")
        first, left_out = data.sequences[0], data.left_out
    if left_out:
        table.add_row("", f"left out as well (data.on_bad_row=drop): {lines_of(left_out)}")
    console.print(table)
    if tokenizer is None or isinstance(first, SupervisedTurn):
        assert isinstance(first, SupervisedTurn)
        show_first_turn(first, console, full=full)
    else:
        show_first_row(first, tokenizer, console, full=full)
    return Findings()


def _check_training_data(
    settings: config.TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
    gold_limit: int,
    *,
    full: bool,
) -> Findings:
    specs = specs_of(settings.verifiers, settings.verification)
    table, prompts, warnings = _prompts(settings, tokenizer)
    unreachable = bool(warnings)
    console.print(table)
    for name, prompt_set in prompts.items():
        show_first_prompt(name, prompt_set.prompts[0], tokenizer, console, full=full)
        # A question to an environment may be the same for every hidden state, which the reference then holds.
        contradictions = "" if settings.environment else prompt_set.contradictions
        problems = (contradictions, unknown_characters(name, prompt_set.prompts, tokenizer))
        warnings += [problem for problem in problems if problem]
    if prompts and (settings.tools or settings.environment):
        # A check of single turns imports no torch.
        from grpo.planning.trial_conversation import show_trial

        show_trial(settings, [each for part in prompts.values() for each in part.prompts], console, full=full)
    isolation = isolation_table(settings.verifiers, new_table("sandbox"))
    if isolation is not None:
        console.print(isolation)
    for prompt_set in prompts.values():
        check_rows(specs, ((prompt.id, prompt.row) for prompt in prompt_set.prompts))
    if not prompts or not gold_limit:
        return Findings(not unreachable, "", tuple(warnings), "" if gold_limit else "--gold-limit=0")
    parts = {name: gold_rows(prompt_set) for name, prompt_set in prompts.items()}
    sources = {name: prompt_set.prompts[0].source for name, prompt_set in prompts.items()}
    outcome = check_gold_answers(specs, parts, settings.verification, console, limit=gold_limit, sources=sources)
    warnings += outcome.advice
    failure = ""
    if outcome.failures and settings.verification.check_golds == "refuse":
        remedy = _REMEDY if outcome.about_rows else "to start nevertheless, set verification.check_golds=warn"
        where = " on these data" if outcome.about_rows else ""
        failure = "\n".join([f"a run would not start{where}:", *outcome.failures, remedy])
    unchecked = "" if outcome.tried else "no row has one"
    return Findings(outcome.sound and not unreachable, failure, tuple(warnings), unchecked)


def _prompts(
    settings: config.TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Table, dict[str, PromptSet], list[str]]:
    """Return a table of the data, the prompts of training and evaluation, and the messages about an unreachable hub."""
    limit = settings.rollout.max_prompt_tokens
    failures: dict[str, HubUnreachable] = {}
    sources = load_sources(settings.data, tokenizer, max_tokens=limit, unreachable=failures)
    for name, source in sources.items():
        check_prompt_count(source.training, settings.rollout, name=name, share=settings.data.shares[name])
    prompts = parts_of(sources)
    unreachable = {part_name(name, "training"): failure for name, failure in failures.items()}
    if settings.evaluation and (rows := settings.evaluation.data):
        try:
            prompts["held-out"] = load_prompts(rows, tokenizer, max_tokens=limit, where="evaluation.data")
        except HubUnreachable as failure:
            unreachable["held-out"] = failure
    table = new_table("data")
    for part in unreachable:
        table.add_row(part, "NOT CHECKED: the hub does not answer")
    for part, prompt_set in prompts.items():
        _add_part(table, part, prompt_set, settings.data)
    for name, source in sources.items():
        for line in split_lines(name, source):
            table.add_row("", line)
    messages = [
        f"gold answers of the {part} data could not be checked: {failure}" for part, failure in unreachable.items()
    ]
    return table, prompts, messages


def _add_part(table: Table, part: str, prompt_set: PromptSet, data: config.TrainingDataConfig) -> None:
    name = prompt_set.prompts[0].source
    ratio = next((source.ratio for source in data.sources if part == part_name(source.name, "training")), None)
    share = f"; ratio {ratio:g}, {data.shares[name]:.1%} of a run's prompts" if ratio else ""
    table.add_row(part, f"{len(prompt_set.prompts):,} prompts; {prompt_set.dropped:,} too long and left out{share}")
    if prompt_set.left_out:
        section = "evaluation.data" if part == "held-out" else data.section(name)
        table.add_row("", f"left out as well ({section}.on_bad_row=drop): {lines_of(prompt_set.left_out)}")
    for note in prompt_set.notes:
        table.add_row("", literal(note, "yellow"))
