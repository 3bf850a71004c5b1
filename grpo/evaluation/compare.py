"""`grpo eval compare`: two evaluations of the same problems, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from grpo.evaluation.comparability import different_conditions
from grpo.evaluation.metrics import solved_share
from grpo.evaluation.statistics import Estimate, mean_estimate, paired_p_value
from grpo.evaluation.store import TABLE, Judged, read_table, write_json
from grpo.terminal import LiteralTable, literal

_LONGEST_SHOWN = 100
# Digest of a problem, and the number of earlier problems with this digest: data may repeat a question.
_Pairing = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Flip:
    """A problem that exactly one of the two evaluations solves in more than half of its completions.

    Attributes:
        problem: id of the problem in A.
        question: text of the question.
        before: share of A's completions that are correct.
        after: share of B's completions that are correct.
    """

    problem: str
    question: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two evaluations on a task.

    Attributes:
        task: name of the task.
        shared: number of problems that both answered, matched by question and reference. The second problem with the
            same question and reference matches the second of the other evaluation, and so on.
        only_first: number of problems of A that are not shared.
        only_second: number of problems of B that are not shared.
        first: A's accuracy on the shared problems.
        second: B's accuracy on the shared problems.
        difference: B's accuracy minus A's, over problems, with an interval that resamples pairs.
        p_value: p-value of the paired sign-flip permutation test. With one completion for each problem, this is
            McNemar's exact test.
        better: problems that B solves and A does not.
        worse: problems that A solves and B does not.
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
    shared = [pairing for pairing in ours if pairing in theirs]
    if len(shared) < 2:
        raise ValueError(
            f"{task}: the two evaluations share {len(shared)} problem(s) with the same question and reference; compare "
            "evaluations of the same data with the same prompt template"
        )
    before = [ours[pairing][1] for pairing in shared]
    after = [theirs[pairing][1] for pairing in shared]
    differences = [b - a for a, b in zip(before, after, strict=True)]
    questions = {row.record.digest: row.question for row in first}
    half = Fraction(1, 2)
    better, worse = (
        tuple(
            Flip(ours[pairing][0], questions[pairing[0]], float(a), float(b))
            for pairing, a, b in zip(shared, before, after, strict=True)
            if (b > half >= a if gained else a > half >= b)
        )
        for gained in (True, False)
    )
    return Comparison(
        task,
        len(shared),
        len(ours) - len(shared),
        len(theirs) - len(shared),
        mean_estimate([float(share) for share in before]),
        mean_estimate([float(share) for share in after]),
        mean_estimate([float(difference) for difference in differences], shares=False, bounds=(-1.0, 1.0)),
        paired_p_value(differences),
        better,
        worse,
    )


def _shares(rows: Sequence[Judged]) -> dict[_Pairing, tuple[str, Fraction]]:
    """Pairing of each problem -> the problem's id and the share of its known completions that are correct."""
    solved, counts = solved_share(rows), Counter[str]()
    shares = {}
    for name, digest in {row.record.problem: row.record.digest for row in rows}.items():
        if name in solved:
            shares[digest, counts[digest]] = name, Fraction(*solved[name])
        counts[digest] += 1
    return shares


def compare_folders(first: Path, second: Path, console: Console, *, show: int, out: Path | None) -> list[Comparison]:
    """Compare two evaluations over the tasks that both have. Print the comparison, and write it to `out` if given.

    Raises:
        ValueError: the two evaluations share no finished task.
    """
    shared = [name for name in _tasks(first) if name in _tasks(second)]
    if not shared:
        raise ValueError(
            f"{first} has finished {', '.join(_tasks(first)) or 'no task'}, {second} has finished "
            f"{', '.join(_tasks(second)) or 'no task'}: nothing to compare; give the folders that grpo eval --out wrote"
        )
    tables = [(name, read_table(first / name / TABLE), read_table(second / name / TABLE)) for name in shared]
    comparisons = [compare_tables(*pair) for pair in tables]
    console.print(_table(first, second, comparisons))
    conditions = {name: different_conditions(first / name, second / name) for name in shared}
    for comparison in comparisons:
        if differs := conditions[comparison.task]:
            line = f"{comparison.task}: A and B had different conditions, not only models: {'; '.join(differs)}"
            console.print(literal(line, "yellow"), soft_wrap=True)
        for title, flips in (("B turned right", comparison.better), ("B turned wrong", comparison.worse)):
            if flips and show:
                console.print(literal(f"\n{comparison.task}: {title} ({len(flips):,})"))
            for flip in flips[:show]:
                text = repr(flip.question[:_LONGEST_SHOWN])
                line = f"  {flip.problem}: {flip.before:.0%} -> {flip.after:.0%}  {text}"
                console.print(literal(line), soft_wrap=True)
    if out is not None:
        report: dict[str, Any] = {"first": str(first), "second": str(second)}
        tasks = {each.task: {**asdict(each), "differs": conditions[each.task]} for each in comparisons}
        write_json(out, {**report, "tasks": tasks})
    return comparisons


def _tasks(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{TABLE}"))


def _table(first: Path, second: Path, comparisons: Sequence[Comparison]) -> Table:
    table = LiteralTable(title=f"A = {first}\nB = {second}", show_header=False)
    table.add_column()
    table.add_column(style="dim")
    table.add_column(justify="right")
    for comparison in comparisons:
        left_out = f", +{comparison.only_first:,} only in A, +{comparison.only_second:,} only in B"
        table.add_row(
            comparison.task,
            "shared problems",
            f"{comparison.shared:,}{left_out if comparison.only_first or comparison.only_second else ''}",
        )
        for name, estimate in (("A", comparison.first), ("B", comparison.second)):
            table.add_row("", name, f"{estimate.value:.2%} ({estimate.low:.2%} to {estimate.high:.2%})")
        gained = comparison.difference
        table.add_row("", "B - A", f"{gained.value:+.2%} ({gained.low:+.2%} to {gained.high:+.2%})")
        table.add_row("", "p, paired", f"{comparison.p_value:.4f}" if comparison.p_value >= 1e-4 else "< 0.0001")
        table.add_row("", "turned right, wrong", f"{len(comparison.better):,}, {len(comparison.worse):,}")
        table.add_section()
    return table
