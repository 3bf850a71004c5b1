"""The part of `grpo check` that checks the data's references and judges the gold answers with their verifiers."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from grpo import config
from grpo.rollout.usable_rows import is_mathematical, open_pool, rows_of_all, rows_of_first, too_many
from grpo.terminal import literal
from grpo.visible import visible
from rewards.build import VerifierSpec
from rewards.checks.gold import GoldReport, Offender, check_gold
from rewards.checks.gold_forms import GoldRow, as_text
from rewards.checks.gold_judges import through
from rewards.checks.references import ReferenceReport, check_references, shown
from rewards.checks.trial_calls import failing_verifiers, remedy_of
from rewards.pool import VerifierPool
from rewards.verdict import Status

_SHOWN = 3
_WIDTH = 100
# Longest check of the references, in seconds, for each part of the data. A verifier may hang on some references.
_REFERENCES_S = 300.0


@dataclass(frozen=True, slots=True)
class GoldOutcome:
    """The outcome of the check of gold answers.

    Attributes:
        failures: reasons why a run would not start on these data, each a sentence; empty if the run would start.
        sound: whether everything was checked and passed.
        tried: number of gold answers that were judged; 0 if no row has a gold answer.
        about_rows: whether some failure may come from the rows, and not only from a verifier that always fails.
        advice: what to do about verifiers that hang or fail on some rows, each a sentence.
    """

    failures: tuple[str, ...]
    sound: bool
    tried: int
    about_rows: bool
    advice: tuple[str, ...] = ()


def check_gold_answers(
    specs: Sequence[VerifierSpec],
    parts: Mapping[str, Sequence[GoldRow]],
    verification: config.VerificationConfig,
    console: Console,
    *,
    limit: int,
    sources: Mapping[str, str] | None = None,
) -> GoldOutcome:
    """Check every reference, judge the gold answers, and print the outcome.

    The first verifier of a row judges the row's gold answer. The gold answers of each source are judged separately.

    Args:
        specs: configured verifiers.
        parts: rows of each part of the data, by the part's name, for example `training`.
        verification: limits of the verifiers.
        console: console to print to.
        limit: largest number of gold answers to judge. If there are more, a random sample is judged.
        sources: name of the source of each part; empty for a part without a named source.

    Raises:
        ValueError: the verifiers cannot be built.
    """
    with open_pool(specs, verification) as pool, _progress(console) as progress:
        task = progress.add_task("looking at the references", total=len(parts))
        references = {}
        for what, rows in parts.items():
            references[what] = check_references(pool, rows_of_all(specs, rows), most_s=_REFERENCES_S)
            progress.advance(task)
        unusable = {row.row.name for report in references.values() for row in report.unusable}
        rows = [row for part in parts.values() for row in part if row.name not in unusable]
        broken = failing_verifiers(through(pool), rows_of_all(specs, rows))
    of_source = {row.name: (sources or {}).get(what, "") for what, part in parts.items() for row in part}
    chosen = rows
    if len(rows) > limit:
        chosen = [rows[at] for at in sorted(random.Random(0).sample(range(len(rows)), limit))]
    # The rows of each verifier and source, by the words that the messages use for them.
    judged = {
        f"{name} on {source}" if source else name: (name, part)
        for source in dict.fromkeys(of_source[row.name] for row in chosen)
        for name, part in rows_of_first(specs, [row for row in chosen if of_source[row.name] == source]).items()
        if name not in broken
    }
    reports = {what: _judge(name, part, specs, verification, console) for what, (name, part) in judged.items()}
    failures = [problem for what, report in references.items() if (problem := too_many(what, report, verification))]
    failures += [
        f"verifier {what!r}: {report.failure}, so no completion could earn its reward"
        for what, report in reports.items()
        if report.failure
    ]
    about_rows = any(not report.only_failed for report in reports.values() if report.failure)
    about_rows = about_rows or len(failures) > sum(bool(report.failure) for report in reports.values())
    failures = [*map(str, broken.values()), *failures]
    sound = not failures and not unusable and all(report.sound for report in reports.values())
    sound = sound and not any(report.stopped for report in references.values())
    _print_headline(failures, references, reports, console, sound=sound)
    if rows:
        console.print(literal(_how_many(len(chosen), len(rows), limit), "dim"))
    for what, report in references.items():
        _show_references(what, report, console)
    for what, gold_report in reports.items():
        name, rows_of_verifier = judged[what]
        _show(what, _use_of(specs, name), len(rows_of_verifier), gold_report, console)
    advice = [text for what, report in reports.items() for text in _advice(what, report, verification)]
    tried = sum(report.tried for report in reports.values())
    return GoldOutcome(tuple(failures), sound, tried, about_rows, tuple(advice))


def _use_of(specs: Sequence[VerifierSpec], name: str) -> str:
    return next(spec.use for spec in specs if spec.name == name)


def _advice(name: str, report: GoldReport, verification: config.VerificationConfig) -> Iterator[str]:
    """Yield what to do about the failed verdicts on gold answers, a sentence for each kind."""
    failed = [each.verdict for each in report.refused if each.verdict.status.failed]
    if any(verdict.status is Status.TIMEOUT for verdict in failed):
        yield (
            f"verifier {name!r}: some calls did not end within verification.deadline_s={verification.deadline_s:g}: "
            "make it end sooner, or raise the deadline. Such verdicts teach nothing, and a run stops if their share "
            f"exceeds verification.max_failure_share={verification.max_failure_share:g}"
        )
    errors = [verdict.reason for verdict in failed if verdict.status is not Status.TIMEOUT]
    if errors:
        yield f"verifier {name!r}: some calls failed: {errors[0]}. {remedy_of(errors[0])}"


def _judge(
    name: str,
    rows: Sequence[GoldRow],
    specs: Sequence[VerifierSpec],
    verification: config.VerificationConfig,
    console: Console,
) -> GoldReport:
    # A verifier may hang. So each verifier has a separate pool, and its calls cannot delay the other verifiers.
    with open_pool([spec for spec in specs if spec.name == name], verification) as pool, _progress(console) as progress:
        task = progress.add_task(visible(f"checking {name}"), total=len(rows))
        return check_gold(
            through(pool),
            rows,
            mathematical=is_mathematical(specs, name),
            on_rows=functools.partial(progress.advance, task),
        )


def check_verifiers(specs: Sequence[VerifierSpec], memory_mib: int | None) -> None:
    """Build every verifier as a run does, in processes that end immediately afterwards.

    Args:
        specs: configured verifiers.
        memory_mib: address space of a worker, in MiB; None for no limit.

    Raises:
        ValueError: some verifiers cannot be built. The message names each of them.
    """
    if _build_problem(specs, memory_mib) is None:
        return
    problems = [(spec.name, problem) for spec in specs if (problem := _build_problem([spec], memory_mib))]
    raise ValueError("\n".join(f"verifiers: {name!r}: {problem}" for name, problem in problems))


def _build_problem(specs: Sequence[VerifierSpec], memory_mib: int | None) -> str | None:
    try:
        VerifierPool(specs, workers=1, memory_mib=memory_mib).close()
    except ValueError as problem:
        return str(problem)
    return None


def _how_many(checked: int, total: int, limit: int) -> str:
    if checked == total:
        return f"all {total:,} prompts"
    return f"{checked:,} of {total:,} prompts, drawn by chance; --gold-limit={limit} limits the number"


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Without a terminal the bar would only print an empty line.
        disable=not console.is_terminal,
    )


def _print_headline(
    failures: Sequence[str],
    references: Mapping[str, ReferenceReport],
    reports: Mapping[str, GoldReport],
    console: Console,
    *,
    sound: bool,
) -> None:
    tried, accepted = (sum(getattr(each, name) for each in reports.values()) for name in ("tried", "accepted"))
    others, fooled = (
        sum(getattr(each, name) for each in reports.values()) for name in ("scrambled", "scrambled_accepted")
    )
    left_out = sum(len(report.unusable) for report in references.values())
    if failures:
        style, word, text = "bold red", "FAILED", failures[0]
    elif not tried:
        style, word, text = "yellow", "not checked", "no row has a gold answer to try"
    else:
        style, word = ("bold green", "good") if sound else ("bold yellow", "look at them")
        text = f"{accepted:,} of {tried:,} are judged `correct`; "
        text += f"{fooled:,} of {others:,} wrong answers (taken from other rows) are judged `correct` too"
        if left_out:
            text += f"; {left_out:,} row(s) cannot be used, and a run leaves them out"
    console.print(literal(f"gold answers: {word}: {text}", style), soft_wrap=True)


def _show_references(what: str, report: ReferenceReport, console: Console) -> None:
    if report.stopped:
        _print(console, f"{what} data: only {report.rows:,} rows were looked at: {report.stopped}", "yellow")
    if not report.unusable:
        return
    share = f"{len(report.unusable):,} of {report.rows:,} ({report.share:.1%})"
    _print(console, f"{what} data: {share} reference answers cannot be used, and a run leaves them out:", "yellow")
    for unusable in report.unusable[:_SHOWN]:
        _print(console, f"  {unusable}")
    if len(report.unusable) > _SHOWN:
        _print(console, f"  and {len(report.unusable) - _SHOWN:,} more")
    _print(console, "  to keep them, correct these rows, or change the verifier's options or data.reference")


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(literal(f"  {text}", style), soft_wrap=True)


def _show(name: str, use: str, rows: int, report: GoldReport, console: Console) -> None:
    line = functools.partial(_print, console)
    if report.no_answer and use == "environment":
        line(f"{name}: the environment judges, so there are no gold answers to check")
    elif report.no_answer:
        reason = "the reference is not an answer itself, and the rows contain no solution that the verifier can find"
        line(f"{name}: {report.no_answer:,} of {report.rows:,} rows cannot be checked: {reason}", "yellow")
        if use == "code":
            line("  the option `solution_column` of `code` names a column with solutions; a run needs none")
    if report.tried or report.stopped:
        good = "red" if report.failure else "green" if report.sound else "yellow"
        share = f"{report.accepted:,} of {report.tried:,} gold answers are `correct`"
        line(f"{name}: {share}; of {report.scrambled:,} answers of other rows, {report.scrambled_accepted:,} are", good)
    if report.stopped:
        line(f"  stopped after {report.rows:,} of {rows:,} rows: {report.stopped}", "yellow")
        if report.tried and not report.accepted and not report.only_failed:
            line(
                "  if the reference of your verifier is not itself an answer, declare this with `gold_completions` "
                "(docs/verifiers.md)"
            )
    if report.failed:
        line(
            f"  {report.failed:,} verdict(s) are `timeout` or `error` and say nothing about the answers",
            "yellow",
        )
    if report.tried > report.accepted:
        line(f"  {_said_of_refused(report)}:", "yellow")
        _show_offenders(report.refused, report.tried - report.accepted, line)
    if report.scrambled_accepted:
        line("  another row's answer was accepted; the policy may exploit this, unless both mean the same:", "yellow")
        _show_offenders(report.fooled, report.scrambled_accepted, line)
    if report.unreadable:
        line(
            f"  {report.unreadable:,} gold answer(s) cannot be parsed as mathematics: only the same text matches",
            "yellow",
        )
        for row, problem in report.first_unreadable[:_SHOWN]:
            line(f"    {row.place}: {shown(row.reference)}: {problem}")


def _said_of_refused(report: GoldReport) -> str:
    """What the verifier did with the gold answers that are not `correct`."""
    if report.graded == report.tried - report.accepted:
        return (
            "these gold answers got a grade below the verifier's `pass_mark` (`scored`): the reward counts it, but "
            "accuracy does not"
        )
    if report.only_failed:
        return "the verifier gave no verdict on these gold answers"
    return "the verifier refused these gold answers, so the policy could never be right"


def _show_offenders(offenders: Sequence[Offender], count: int, line: Callable[[str], None]) -> None:
    for offender in offenders[:_SHOWN]:
        verdict = offender.verdict
        tried = f"reference {_short(offender.row.reference)}, tried {_short(offender.completion)}"
        line(f"    {offender.row.place}: {tried if offender.completion else 'tried a solution'}")
        line(f"      {verdict.status.value}: {_short(verdict.reason)}")
    if count > _SHOWN:
        line(f"    and {count - _SHOWN:,} more")


def _short(value: object) -> str:
    text = as_text(value).replace("<think>Let me see.</think>\n", "")
    # Data may hold control characters, which a terminal would execute. `repr` escapes them.
    return repr(text if len(text) <= _WIDTH else text[: _WIDTH // 2] + " ... " + text[-_WIDTH // 2 :])
