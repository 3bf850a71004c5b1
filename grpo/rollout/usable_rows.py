"""Gold answers before a job starts: which rows it leaves out, and whether any completion could earn its reward."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo import config, files
from grpo.report import run_files
from rewards.build import VerifierSpec
from rewards.checks.gold import GoldReport, check_gold
from rewards.checks.gold_forms import GoldRow
from rewards.checks.gold_judges import through
from rewards.checks.gold_questions import questioned
from rewards.checks.references import ReferenceReport, UnusableReference, check_references, shown
from rewards.pool import VerifierPool
from rewards.selection import choose

MATHEMATICAL = ("math", "math_verify")
# References are looked at for no longer than this: `grpo check` takes its time, and a verifier may run a program.
_REFERENCES_S = 20.0
# Gold answers that are judged before a job starts, how many at a time, and for how long: `grpo check` judges all.
_SAMPLE, _AT_A_TIME, _SAMPLE_S = 256, 32, 5.0
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Keys:
    """What a user calls the settings that a message names.

    Attributes:
        section: of `check_golds` and `max_unusable_share`, with its dot.
        reference: the setting of the column with the reference answers.
        more: where the user finds more.
        asks_again: verdicts that fail are asked for again later, so that a verifier that only fails costs nothing.
    """

    section: str
    reference: str
    more: str
    asks_again: bool


OF_TRAINING = Keys("verification.", "data.reference", "`grpo check` shows more; ", asks_again=False)
OF_EVALUATION = Keys("", "task.data.reference", "", asks_again=True)


@dataclass(frozen=True, slots=True)
class UsableRows:
    """What a job is to do.

    Attributes:
        left_out: the rows that it leaves out, each once.
        lines: what it says of the gold answers at its start.
    """

    left_out: tuple[UnusableReference, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Names of the rows that are left out."""
        return frozenset(each.row.name for each in self.left_out)

    def write(self, folder: Path) -> None:
        """Write the rows that are left out into a run's folder; nothing where there are none."""
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
        parts: what the rows are for -> the rows, each with all columns that its verifiers get.
        verification: the limits of the verifiers, and what is done where gold answers do not behave.
        keys: names of the settings, for messages.

    Raises:
        ValueError: more references than `verification.max_unusable_share` cannot be used, or no gold answer of a
            verifier is `correct`, and `verification.check_golds` is `refuse`; or a verifier cannot be built.
    """
    if verification.check_golds == "off":
        return UsableRows()
    left_out: dict[str, UnusableReference] = {}
    lines: list[str] = []
    problems: list[str] = []
    with open_pool(specs, verification) as pool:
        for what, rows in parts.items():
            report = check_references(pool, rows_of_all(specs, rows), most_s=_REFERENCES_S)
            if (refusal := too_many(what, report, verification, keys)) is not None:
                problems.append(
                    f"{refusal}: {_first(report.unusable)}. Mend these rows, name another column with "
                    f"{keys.reference}, or raise the share to leave them out"
                )
            elif report.unusable:
                lines.append(_left_out_line(what, report))
            if report.stopped:
                lines.append(
                    f"{what} data: only {report.rows:,} of {len(rows):,} rows were looked at: {report.stopped}"
                )
            left_out |= {each.row.name: each for each in report.unusable}
            usable = [row for row in rows if row.name not in left_out]
            for name, judged in _judge(pool, specs, usable):
                if judged.failure:
                    passing = keys.asks_again and judged.only_failed
                    (lines if passing else problems).append(f"{what} data, {_useless(name, judged, keys)}")
    if problems and verification.check_golds == "refuse":
        raise ValueError("\n".join([*problems, f"{keys.more}{keys.section}check_golds=warn starts all the same"]))
    return UsableRows(tuple(left_out.values()), (*lines, *problems))


def open_pool(specs: Sequence[VerifierSpec], verification: config.VerificationConfig) -> VerifierPool:
    """Workers that answer questions about rows, with the limits of the run's."""
    return VerifierPool(
        questioned(specs),
        workers=verification.workers,
        deadline_s=verification.deadline_s,
        memory_mb=verification.memory_mib,
    )


def rows_of_all(specs: Sequence[VerifierSpec], rows: Iterable[GoldRow]) -> list[GoldRow]:
    """Each row for every verifier that judges it, the first of them first."""
    return [dataclasses.replace(row, verifier=spec.name) for row in rows for spec in choose(specs, row.prompt)]


def rows_of_first(specs: Sequence[VerifierSpec], rows: Iterable[GoldRow]) -> dict[str, list[GoldRow]]:
    """The rows by the first verifier that judges them."""
    by_verifier: dict[str, list[GoldRow]] = {}
    for row in rows:
        name = choose(specs, row.prompt)[0].name
        by_verifier.setdefault(name, []).append(dataclasses.replace(row, verifier=name))
    return by_verifier


def is_mathematical(specs: Sequence[VerifierSpec], name: str) -> bool:
    """Whether a verifier reads references as mathematics."""
    return any(spec.name == name and spec.use in MATHEMATICAL for spec in specs)


def too_many(
    what: str, report: ReferenceReport, verification: config.VerificationConfig, keys: Keys = OF_TRAINING
) -> str | None:
    """Why a job does not start with so many references that cannot be used; None where it starts without them."""
    if report.share <= verification.max_unusable_share:
        return None
    return (
        f"{what} data: {len(report.unusable):,} of {report.rows:,} reference answers cannot be used "
        f"({report.share:.1%}), above {keys.section}max_unusable_share={verification.max_unusable_share:g}"
    )


def _left_out_line(what: str, report: ReferenceReport) -> str:
    """The line on rows that are left out."""
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
    """That no completion could earn the reward of a verifier, with the first row and the remedy."""
    if report.accepted:
        row, reason = report.first_unreadable[0]
        example = f"{row.name}: reference {shown(row.reference)}: {reason}"
    else:
        offender = report.refused[0]
        tried = f"tried {shown(offender.completion)}" if offender.completion else "tried its solution"
        verdict = offender.verdict
        example = (
            f"{offender.row.name}: reference {shown(offender.row.reference)}, {tried} -> {verdict.status.value}: "
            f"{verdict.reason}"
        )
    return (
        f"verifier {name!r}: {report.failure}, so no completion could earn its reward. The first: {example}. Name the "
        f"column of the final answer with {keys.reference}, or change the verifier's options; a verifier whose "
        "reference is no answer says so (gold_completions in docs/verifiers.md)"
    )
