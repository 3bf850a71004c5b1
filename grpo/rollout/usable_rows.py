"""Check gold answers before a job starts: omit unusable rows, and stop the job if no completion could earn a reward."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo import config, files
from grpo.report import run_files
from rewards.build import ELSEWHERE, VerifierSpec
from rewards.checks.gold import GoldReport, check_gold
from rewards.checks.gold_forms import GoldRow
from rewards.checks.gold_judges import through
from rewards.checks.gold_questions import questioned
from rewards.checks.references import ReferenceReport, UnusableReference, check_references, shown
from rewards.checks.trial_calls import AlwaysFails, failing_verifiers, remedy_of
from rewards.pool import VerifierPool
from rewards.selection import choose
from rewards.verdict import Status

MATHEMATICAL = ("math", "math_verify")
# Time limit for checking references before a job, in seconds: a verifier may run a slow program. `grpo check` has no
# time limit.
_REFERENCES_S = 20.0
# Before a job starts: number of rows whose gold answers are judged, number of rows judged at a time, and time limit in
# seconds. `grpo check` judges the gold answers of all rows.
_SAMPLE, _AT_A_TIME, _SAMPLE_S = 256, 32, 5.0
# Number of unusable rows that a message names.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of settings for messages.

    Attributes:
        section: section of `check_golds` and `max_unusable_share`, followed by a dot; empty if there is no section.
        reference: setting that names the column with the reference answers.
        more: hint where the user finds more information.
        asks_again: True if the job later repeats failed verdicts. The job then starts even if all verdicts of a
            verifier failed.
    """

    section: str
    reference: str
    more: str
    asks_again: bool


OF_TRAINING = Keys("verification.", "data.reference", "`grpo check` shows more; ", asks_again=False)
OF_EVALUATION = Keys("", "task.data.reference", "", asks_again=True)


@dataclass(frozen=True, slots=True)
class UsableRows:
    """The result of the check.

    Attributes:
        left_out: rows that the job omits. Each row appears once.
        lines: messages about the gold answers, to show when the job starts.
    """

    left_out: tuple[UnusableReference, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Names of the omitted rows."""
        return frozenset(each.row.name for each in self.left_out)

    def write(self, folder: Path) -> None:
        """Write a file with the omitted rows into a run's folder. If no row is omitted, write no file."""
        path = folder / run_files.LEFT_OUT
        path.unlink(missing_ok=True)
        if self.left_out:
            lines = [json.dumps({"row": each.row.name, "problem": each.problem}) for each in self.left_out]
            files.write_text(path, "\n".join(lines) + "\n")


def usable_rows(
    specs: Sequence[VerifierSpec],
    parts: Mapping[str, Sequence[GoldRow]],
    verification: config.VerificationConfig,
    keys: Keys = OF_TRAINING,
) -> UsableRows:
    """Look at every row's reference, and judge the gold answers of some rows.

    Args:
        specs: the configured verifiers.
        parts: the rows of each part of the data, by the part's name, for example `training`. A row has all columns that
            its verifiers get.
        verification: section with the limits of the verifiers, and with the reaction to unusable gold answers.
        keys: names of the settings, for messages.

    Raises:
        ValueError: a verifier cannot be built; or `verification.check_golds` is `refuse`, and either the share of
            unusable references is above `verification.max_unusable_share`, a verifier judges none of its gold
            answers `correct`, or a verifier fails on every completion.
    """
    if verification.check_golds == "off":
        return UsableRows()
    left_out: dict[str, UnusableReference] = {}
    broken: dict[str, AlwaysFails] = {}
    lines: list[str] = []
    problems: list[str] = []
    with open_pool(specs, verification) as pool:
        for what, rows in parts.items():
            report = check_references(pool, rows_of_all(specs, rows), most_s=_REFERENCES_S)
            if (refusal := too_many(what, report, verification, keys)) is not None:
                problems.append(
                    f"{refusal}: {_first(report.unusable)}. Repair these rows, name another column "
                    f"with {keys.reference}, or raise {keys.section}max_unusable_share to leave these rows out"
                )
            elif report.unusable:
                lines.append(_left_out_line(what, report))
            if report.stopped:
                lines.append(f"{what} data: only {report.rows:,} of {len(rows):,} rows were checked: {report.stopped}")
            left_out |= {each.row.name: each for each in report.unusable}
            usable = [row for row in rows if row.name not in left_out]
            reports = list(_judge(pool, specs, usable))
            broken = failing_verifiers(through(pool, most_s=_SAMPLE_S), rows_of_all(specs, usable)) | broken
            for name, judged in reports:
                # A verifier that always fails gets a message about itself, because the rows may be good.
                if judged.failure and name not in broken:
                    passing = keys.asks_again and judged.only_failed
                    (lines if passing else problems).append(f"{what} data, {_useless(name, judged, keys)}")
    (lines if keys.asks_again else problems).extend(map(str, broken.values()))
    if problems and verification.check_golds == "refuse":
        raise ValueError(
            "\n".join([*problems, f"{keys.more}to start nevertheless, set {keys.section}check_golds=warn"])
        )
    return UsableRows(tuple(left_out.values()), (*lines, *problems))


def open_pool(specs: Sequence[VerifierSpec], verification: config.VerificationConfig) -> VerifierPool:
    """Start workers that check rows, with the same limits as the run's workers."""
    return VerifierPool(
        questioned(specs),
        workers=verification.workers,
        deadline_s=verification.deadline_s,
        memory_mib=verification.memory_mib,
    )


def rows_of_all(specs: Sequence[VerifierSpec], rows: Iterable[GoldRow]) -> list[GoldRow]:
    """Return, for each row, one copy for each verifier in the pool that judges the row."""
    return [
        dataclasses.replace(row, verifier=spec.name)
        for row in rows
        for spec in choose(specs, row.prompt)
        if spec.use not in ELSEWHERE
    ]


def rows_of_first(specs: Sequence[VerifierSpec], rows: Iterable[GoldRow]) -> dict[str, list[GoldRow]]:
    """Group the rows by the name of the first verifier that judges the row."""
    by_verifier: dict[str, list[GoldRow]] = {}
    for row in rows:
        name = choose(specs, row.prompt)[0].name
        by_verifier.setdefault(name, []).append(dataclasses.replace(row, verifier=name))
    return by_verifier


def is_mathematical(specs: Sequence[VerifierSpec], name: str) -> bool:
    """Return True if a verifier reads references as mathematics."""
    return any(spec.name == name and spec.use in MATHEMATICAL for spec in specs)


def too_many(
    what: str, report: ReferenceReport, verification: config.VerificationConfig, keys: Keys = OF_TRAINING
) -> str | None:
    """Return the reason to refuse a job with too many unusable references; None if the job may start."""
    if report.share <= verification.max_unusable_share:
        return None
    return (
        f"{what} data: {len(report.unusable):,} of {report.rows:,} reference answers cannot be used "
        f"({report.share:.1%}), above {keys.section}max_unusable_share={verification.max_unusable_share:g}"
    )


def _left_out_line(what: str, report: ReferenceReport) -> str:
    return (
        f"{len(report.unusable):,} of {report.rows:,} {what} rows are left out, as their reference answers cannot be "
        f"used: {_first(report.unusable)}"
    )


def _first(unusable: Sequence[UnusableReference]) -> str:
    more = f"; and {len(unusable) - _NAMED:,} more" if len(unusable) > _NAMED else ""
    return "; ".join(map(str, unusable[:_NAMED])) + more


def _judge(
    pool: VerifierPool, specs: Sequence[VerifierSpec], rows: Sequence[GoldRow]
) -> Iterable[tuple[str, GoldReport]]:
    source = random.Random(0)
    for name, judged in rows_of_first(specs, rows).items():
        sample = judged if len(judged) <= _SAMPLE else source.sample(judged, _SAMPLE)
        yield (
            name,
            check_gold(
                through(pool, most_s=_SAMPLE_S),
                sample,
                mathematical=is_mathematical(specs, name),
                rows_at_a_time=_AT_A_TIME,
            ),
        )


def _useless(name: str, report: GoldReport, keys: Keys) -> str:
    """Return the message that no completion could earn a verifier's reward. It names the first row and the remedy."""
    if report.accepted:
        row, reason = report.first_unreadable[0]
        example = f"{row.place}: reference {shown(row.reference)}: {reason}"
    else:
        offender = report.refused[0]
        tried = f"tried {shown(offender.completion)}" if offender.completion else "tried its solution"
        verdict = offender.verdict
        example = (
            f"{offender.row.place}: reference {shown(offender.row.reference)}, {tried} -> {verdict.status.value}: "
            f"{verdict.reason}"
        )
    start = (
        f"verifier {name!r}: {report.failure}, so no completion could earn its reward. The first such row: {example}"
    )
    if report.refused and report.only_failed:
        late = report.refused[0].verdict.status is Status.TIMEOUT
        deadline = f"Make the verifier end sooner, or raise its deadline ({keys.section}deadline_s)"
        return f"{start}. {deadline if late else remedy_of(report.refused[0].verdict.reason)}"
    return (
        f"{start}. "
        f"Name the column of the final answer with {keys.reference}, or change the verifier's options. If the "
        "reference of your verifier is not itself an answer, declare this with gold_completions (docs/verifiers.md)"
    )
