"""`grpo eval compare`: two evaluations of the same problems, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from grpo.evaluation.metrics import solved_share
from grpo.evaluation.statistics import Estimate, mean_estimate, paired_p_value
from grpo.evaluation.store import TABLE, Judged, read_table, write_json
from grpo.terminal import LiteralTable, literal

_LONGEST_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Flip:
    """A problem that one solves more often than not, and the other does not.

    Attributes:
        problem: its id in A.
        question: what was asked.
        before: share of A's completions that are correct.
        after: share of B's.
    """

    problem: str
    question: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One task of two evaluations.

    Attributes:
        task: its name.
        shared: problems that both answered, by what was asked and what is right.
        only_first: problems of A that B did not answer, or that nothing is known of.
        only_second: problems of B that A did not answer.
        first: A's accuracy on the shared ones.
        second: B's.
        difference: B's less A's, over problems, with an interval that resamples them in pairs.
        p_value: of the paired sign-flip permutation test; McNemar's exact test where both have one completion each.
        better: the problems that B turned right.
        worse: the problems that B turned wrong.
    """

    task: str
    shared: int
    only_first: int
    only_second: int
    first: Estimate
    second: Estimate
    difference: Estimate
    p_value: float
    better: tuple[Flip, ...]
    worse: tuple[Flip, ...]


def compare_tables(task: str, first: Sequence[Judged], second: Sequence[Judged]) -> Comparison:
    """Compare two tables of one task over the problems that both have.

    Raises:
        ValueError: they share fewer than two problems.
    """
    ours, theirs = _shares(first), _shares(second)
    shared = [digest for digest in ours if digest in theirs]
    if len(shared) < 2:
        raise ValueError(
            f"{task}: the two evaluations share {len(shared)} problem(s) with the same question and reference; compare "
            "evaluations of the same data with the same prompt template"
        )
    before = [ours[digest][1] for digest in shared]
    after = [theirs[digest][1] for digest in shared]
    differences = [b - a for a, b in zip(before, after, strict=True)]
    questions = {row.record.digest: row.question for row in first}
    half = Fraction(1, 2)
    better, worse = (
        tuple(
            Flip(ours[digest][0], questions[digest], float(a), float(b))
            for digest, a, b in zip(shared, before, after, strict=True)
            if (b > half >= a if gained else a > half >= b)
        )
        for gained in (True, False)
    )
    return Comparison(
        task,
        len(shared),
        len(ours) - len(shared),
        len(theirs) - len(shared),
        mean_estimate([float(one) for one in before]),
        mean_estimate([float(one) for one in after]),
        mean_estimate([float(one) for one in differences], shares=False),
        paired_p_value(differences),
        better,
        worse,
    )


def _shares(rows: Sequence[Judged]) -> dict[str, tuple[str, Fraction]]:
    """Digest of each problem -> its id and the share of its known completions that are correct."""
    digests = {row.record.problem: row.record.digest for row in rows}
    return {digests[name]: (name, Fraction(right, of)) for name, (right, of) in solved_share(rows).items()}


def compare_folders(first: Path, second: Path, console: Console, *, show: int, out: Path | None) -> list[Comparison]:
    """Compare two evaluations over the tasks that both have; print it, and write it where asked.

    Raises:
        ValueError: they have no task in common that both have ended.
    """
    shared = [name for name in _tasks(first) if name in _tasks(second)]
    if not shared:
        raise ValueError(
            f"{first} has {', '.join(_tasks(first)) or 'no task'} to its end, {second} has "
            f"{', '.join(_tasks(second)) or 'no task'}: nothing to compare; give the folders that grpo eval --out wrote"
        )
    tables = [(name, read_table(first / name / TABLE), read_table(second / name / TABLE)) for name in shared]
    found = [compare_tables(*one) for one in tables]
    console.print(_table(first, second, found))
    for one in found:
        for title, flips in (("B turned right", one.better), ("B turned wrong", one.worse)):
            if flips and show:
                console.print(literal(f"\n{one.task}: {title} ({len(flips):,})"))
            for flip in flips[:show]:
                text = repr(flip.question[:_LONGEST_SHOWN])
                line = f"  {flip.problem}: {flip.before:.0%} -> {flip.after:.0%}  {text}"
                console.print(literal(line), soft_wrap=True)
    if out is not None:
        report: dict[str, Any] = {"first": str(first), "second": str(second)}
        write_json(out, {**report, "tasks": {one.task: asdict(one) for one in found}})
    return found


def _tasks(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{TABLE}"))


def _table(first: Path, second: Path, found: Sequence[Comparison]) -> Table:
    table = LiteralTable(title=f"A = {first}\nB = {second}", show_header=False)
    table.add_column()
    table.add_column(style="dim")
    table.add_column(justify="right")
    for one in found:
        left_out = f", +{one.only_first:,} only in A, +{one.only_second:,} only in B"
        table.add_row(
            one.task, "shared problems", f"{one.shared:,}{left_out if one.only_first or one.only_second else ''}"
        )
        for name, estimate in (("A", one.first), ("B", one.second)):
            table.add_row("", name, f"{estimate.value:.2%} ({estimate.low:.2%} to {estimate.high:.2%})")
        gained = one.difference
        table.add_row("", "B - A", f"{gained.value:+.2%} ({gained.low:+.2%} to {gained.high:+.2%})")
        table.add_row("", "p, paired", f"{one.p_value:.4f}" if one.p_value >= 1e-4 else "< 0.0001")
        table.add_row("", "turned right, wrong", f"{len(one.better):,}, {len(one.worse):,}")
        table.add_section()
    return table
