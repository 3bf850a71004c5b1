"""The part of `grpo check` that runs the data's gold answers through their verifiers."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from grpo import config
from grpo.terminal import literal
from grpo.types import Prompt
from grpo.visible import visible
from rewards.build import VerifierSpec
from rewards.gold import GoldReport, GoldRow, Offender, check_gold, through
from rewards.pool import VerifierPool
from rewards.selection import choose

_SHOWN = 3
_WIDTH = 100


def check_gold_answers(
    specs: Sequence[VerifierSpec],
    prompts: Sequence[Prompt],
    verification: config.Verification,
    console: Console,
    *,
    limit: int,
) -> bool:
    """Judge the prompts' gold answers, each by the first verifier that judges its row, and print what came out.

    Returns:
        True where all that was checked was sound.

    Raises:
        ValueError: the verifiers cannot be built.
    """
    chosen = prompts
    if len(prompts) > limit:
        chosen = [prompts[at] for at in sorted(random.Random(0).sample(range(len(prompts)), limit))]
    rows: dict[str, list[GoldRow]] = {}
    for prompt in chosen:
        name = choose(specs, prompt.row)[0].name
        rows.setdefault(name, []).append(GoldRow(prompt.reference, prompt.row, prompt.id, name))
    console.print(literal("gold answers", "bold") + f" ({_how_many(len(chosen), len(prompts))})")
    sound = True
    mathematical = {spec.name for spec in specs if spec.use in ("math", "math_verify")}
    for name, own in rows.items():
        # A pool of its own for each verifier: where one hangs, its calls do not stand in the others' way.
        named = [spec for spec in specs if spec.name == name]
        with (
            VerifierPool(
                named,
                workers=verification.workers,
                deadline_s=verification.deadline_s,
                memory_mb=verification.memory_mib,
            ) as pool,
            _progress(console) as progress,
        ):
            task = progress.add_task(visible(f"checking {name}"), total=len(own))
            report = check_gold(
                through(pool),
                own,
                mathematical=name in mathematical,
                on_rows=functools.partial(progress.advance, task),
            )
        _show(name, len(own), report, console)
        sound = sound and report.sound
    return sound


def check_verifiers(specs: Sequence[VerifierSpec], memory_mib: int | None) -> None:
    """Build every verifier as a run does, in processes that end at once.

    Args:
        specs: the configured verifiers.
        memory_mib: address space of a worker; None for no limit.

    Raises:
        ValueError: some cannot be built; each is told by its name.
    """
    if _build_problem(specs, memory_mib) is None:
        return
    found = [(spec.name, problem) for spec in specs if (problem := _build_problem([spec], memory_mib))]
    raise ValueError("\n".join(f"verifiers: {name!r}: {problem}" for name, problem in found))


def _build_problem(specs: Sequence[VerifierSpec], memory_mib: int | None) -> str | None:
    try:
        VerifierPool(specs, workers=1, memory_mb=memory_mib).close()
    except ValueError as problem:
        return str(problem)
    return None


def _how_many(checked: int, of: int) -> str:
    if checked == of:
        return f"all {of:,} prompts"
    return f"{checked:,} of {of:,} prompts, drawn by chance; --gold-limit says how many"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Without a terminal the bar would only leave an empty line.
        disable=not console.is_terminal,
    )


def _show(name: str, rows: int, report: GoldReport, console: Console) -> None:
    def line(text: str, style: str = "") -> None:
        console.print(literal(f"  {text}", style), soft_wrap=True)

    good = "green" if report.sound else "yellow"
    share = f"{report.accepted:,} of {report.rows:,} gold answers are `correct`"
    line(f"{name}: {share}; of {report.scrambled:,} answers of other rows, {report.scrambled_accepted:,} are", good)
    if report.stopped:
        line(f"  stopped after {report.rows:,} of {rows:,} rows: {report.stopped}", "yellow")
        if not report.accepted:
            line("  a verifier whose reference is no answer, such as a program's tests, cannot be checked this way")
    if report.failed:
        line(f"  {report.failed:,} verdict(s) `timeout` or `error`, which teach nothing", "yellow")
    if report.rows > report.accepted:
        line("  refused, so that the policy could never be right:", "yellow")
        _show_offenders(report.refused, report.rows - report.accepted, line)
    if report.scrambled_accepted:
        line("  another row's answer was accepted, which the policy may exploit, unless both mean the same:", "yellow")
        _show_offenders(report.fooled, report.scrambled_accepted, line)
    if report.unreadable:
        line(
            f"  {report.unreadable:,} gold answer(s) cannot be parsed as mathematics: only the same text matches",
            "yellow",
        )
        for row, problem in report.first_unreadable[:_SHOWN]:
            line(f"    {row.name}: {_short(row.reference)}: {problem}")


def _show_offenders(offenders: Sequence[Offender], count: int, line: Callable[[str], None]) -> None:
    for offender in offenders[:_SHOWN]:
        verdict = offender.verdict
        line(
            f"    {offender.row.name}: reference {_short(offender.row.reference)}, tried {_short(offender.completion)}"
        )
        line(f"      {verdict.status.value}: {_short(verdict.reason)}")
    if count > _SHOWN:
        line(f"    and {count - _SHOWN:,} more")


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("<think>Let me see.</think>\n", "")
    # repr: what comes from data may hold control characters, which a terminal would obey.
    return repr(text if len(text) <= _WIDTH else text[: _WIDTH // 2] + " ... " + text[-_WIDTH // 2 :])
