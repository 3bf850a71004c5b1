"""`grpo audit`: Math-Verify grades a run's stored rollouts again, in workers that can be killed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from grpo import files
from grpo.report import run_files
from grpo.report.rollout_store import read_groups, stored_steps
from grpo.terminal import LiteralTable, literal
from rewards.build import VerifierSpec
from rewards.checks.audit import AuditedRollout, AuditReport, Disagreement, audit
from rewards.checks.gold_forms import answers_of
from rewards.pool import VerifierPool
from rewards.verdict import Status, Verdict

# Math-Verify can check these verifiers only: their answers are numbers or mathematics.
AUDITED = ("math", "numeric")
_LONGEST_SHOWN = 400


def audited_verifiers(run_dir: Path, named: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the verifiers to audit: the names in `named`, or all mathematical verifiers of the run.

    Raises:
        ValueError: the folder holds no run, or the run has no such verifier.
    """
    path = run_dir / run_files.CONFIG
    if not path.is_file():
        raise ValueError(f"{run_dir} has no config.yaml; give the folder of a run, its run.folder")
    configured = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("verifiers") or []
    uses = {str(verifier["name"]): str(verifier["use"]) for verifier in configured}
    unknown = [name for name in named if name not in uses]
    if unknown:
        raise ValueError(f"the run has no verifier {unknown[0]!r}; it has {', '.join(uses) or 'none'}")
    chosen = tuple(named) or tuple(name for name, use in uses.items() if use in AUDITED)
    if not chosen:
        raise ValueError(
            f"Math-Verify can check only mathematical verifiers ({', '.join(AUDITED)}), and the run's verifiers are "
            f"{', '.join(uses) or 'none'}; if one of them judges mathematics, name it with --verifier"
        )
    return chosen


def stored_rollouts(run_dir: Path, verifiers: Sequence[str]) -> list[AuditedRollout]:
    """Read every stored verdict of the named verifiers, with the prompt and the completion.

    Raises:
        ValueError: the run has stored no rollouts, or these verifiers judged no stored rollout.
    """
    rollouts = []
    for step in stored_steps(run_dir):
        for group in read_groups(run_dir, step):
            for rollout in group.rollouts:
                rollouts += [
                    AuditedRollout(
                        group.prompt,
                        rollout.completion,
                        json.loads(group.reference),
                        Status(verdict.status),
                        step,
                        verdict.verifier,
                        verdict.reason,
                    )
                    for verdict in rollout.verdicts
                    if verdict.verifier in verifiers
                ]
    if not rollouts:
        raise ValueError(
            f"{run_dir} has stored no rollouts that {', '.join(verifiers)} judged; report.rollouts_every says how "
            "often a run stores them"
        )
    return rollouts


def grade(
    rollouts: Sequence[AuditedRollout], console: Console, *, workers: int | None = None, deadline_s: float = 5.0
) -> list[Verdict]:
    """Return Math-Verify's verdicts in the order of the rollouts.

    Math-Verify grades equal texts only once. A grading process is killed at the deadline.

    Raises:
        ValueError: math-verify is not installed.
    """
    # A GSM8K reference is a worked solution. So Math-Verify gets only the answer of the reference.
    keys = [(rollout.completion, answers_of(rollout.reference)[0]) for rollout in rollouts]
    distinct = list(dict.fromkeys(keys))
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with (
        VerifierPool([VerifierSpec("math_verify", "math_verify")], workers=workers, deadline_s=deadline_s) as pool,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("grading with Math-Verify", total=len(distinct))
        futures = pool.submit_many([("math_verify", completion, answer, {}) for completion, answer in distinct])
        for _ in concurrent.futures.as_completed(futures):
            progress.advance(task)
        verdicts = dict(zip(distinct, (future.result() for future in futures), strict=True))
    return [verdicts[key] for key in keys]


def audit_run(
    run_dir: Path,
    console: Console,
    *,
    verifiers: Sequence[str] = (),
    limit: int,
    show: int,
    workers: int | None = None,
    deadline_s: float,
) -> AuditReport:
    """Audit a run: print the report, and write every disagreement to `audit.jsonl` in the run's folder.

    Args:
        run_dir: the run's folder.
        console: console to print to.
        verifiers: names of the verifiers to audit; by default all mathematical verifiers.
        limit: largest number of verdicts to audit. If there are more, a random sample is audited.
        show: number of disagreements to print for each kind.
        workers: number of grading processes; by default the number of cores.
        deadline_s: time limit of a grading, in seconds. After it, Math-Verify is killed and the rollout is undecided.

    Raises:
        ValueError: there is no run, the run has no rollouts, or math-verify is not installed.
    """
    names = audited_verifiers(run_dir, verifiers)
    stored = stored_rollouts(run_dir, names)
    chosen = stored
    if len(stored) > limit:
        chosen = [stored[at] for at in sorted(random.Random(0).sample(range(len(stored)), limit))]
    report = audit(chosen, grade(chosen, console, workers=workers, deadline_s=deadline_s))
    path = run_dir / run_files.AUDIT
    with files.whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for side, disagreement in _disagreements(report):
            file.write(json.dumps(_as_row(side, disagreement)) + "\n")
    console.print(_summary(report, names, len(stored), path))
    _show_texts(report, console, show)
    return report


def _disagreements(report: AuditReport) -> Iterator[tuple[str, Disagreement]]:
    yield from (("run", disagreement) for disagreement in report.accepted_only_by_us)
    yield from (("math_verify", disagreement) for disagreement in report.accepted_only_by_them)


def _as_row(side: str, disagreement: Disagreement) -> Mapping[str, object]:
    return {
        "accepted_only_by": side,
        "kind": disagreement.kind,
        **dataclasses.asdict(disagreement.rollout),
        "math_verify": disagreement.theirs.status.value,
        "math_verify_reason": disagreement.theirs.reason,
    }


def _summary(report: AuditReport, names: Sequence[str], stored: int, path: Path) -> Table:
    table = LiteralTable(title=f"audit of {', '.join(names)} by Math-Verify", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    looked_at = report.graded + sum(report.undecided.values())
    drawn = "all" if looked_at == stored else f"{looked_at:,}, drawn by chance,"
    table.add_row("verdicts", f"{drawn} of {stored:,} stored; {report.graded:,} decided by both")
    for who, count in report.undecided.items():
        table.add_row("undecided", f"{count:,} by the {who} (timeouts and errors)")
    # Math-Verify makes errors too. So these rates are not bounds on the errors of the run's verifiers.
    table.add_row("accepted, but not by Math-Verify", f"{report.false_positives} of what the run accepted")
    table.add_row("refused, but not by Math-Verify", f"{report.false_negatives} of what the run refused")
    for kind, (ours, theirs) in report.by_kind.items():
        table.add_row(f"  reference: {kind}", f"{ours:,} accepted by the run only, {theirs:,} by Math-Verify only")
    table.add_row("disagreements", str(path))
    return table


def _show_texts(report: AuditReport, console: Console, show: int) -> None:
    by_kind: dict[tuple[str, str], dict[tuple[str, str], list[Disagreement]]] = {}
    for side, disagreement in _disagreements(report):
        texts = disagreement.rollout.completion, str(disagreement.rollout.reference)
        by_kind.setdefault((side, disagreement.kind), {}).setdefault(texts, []).append(disagreement)
    for (side, kind), by_texts in by_kind.items():
        who = {"run": "the run", "math_verify": "Math-Verify"}[side]
        console.print(literal(f"\naccepted by {who} only; reference: {kind}", "bold"))
        for alike in list(by_texts.values())[:show]:
            _show_one(alike, console)


def _show_one(alike: Sequence[Disagreement], console: Console) -> None:
    """Print a disagreement, and how often the same texts occurred."""
    first, rollout = alike[0], alike[0].rollout
    steps = sorted({disagreement.rollout.step for disagreement in alike})
    for label, text in (
        ("step", f"{steps[0]}" if len(alike) == 1 else f"{steps[0]} to {steps[-1]}, {len(alike)} times"),
        ("prompt", repr(_short(rollout.problem))),
        ("completion", repr(_short(rollout.completion))),
        ("reference", repr(_short(str(rollout.reference)))),
        ("the run", f"{rollout.status.value}: {rollout.reason!r}"),
        ("Math-Verify", f"{first.theirs.status.value}: {first.theirs.reason!r}"),
    ):
        console.print(literal(f"  {label:<12} {text}"), soft_wrap=True)
    console.print()


def _short(text: str) -> str:
    half = _LONGEST_SHOWN // 2
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:half]} ... {text[-half:]}"
