"""`grpo audit RUN --labels FILE`: how far a run's verifiers, or a judge, agree with people's labels."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from grpo import files
from grpo.labelling.items import groups_of_run
from grpo.labelling.judged import labeller_of, read_judge
from grpo.labelling.labels import Label, read_labels
from grpo.report import run_files
from grpo.report.json_lines import complete_lines
from grpo.terminal import LiteralTable, literal
from rewards.checks.agreement import Agreement, agreement
from rewards.judges.client import JudgeClient, JudgeSettings
from rewards.judges.server import JudgeFailed
from rewards.verdict import Status

# Scores whose difference is rounding count as equal.
_TOLERANCE = 1e-9
_CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class PeopleLabel:
    """What people said about a prompt's answers.

    Attributes:
        prompt: the question.
        better: pairs (better answer, worse answer).
        ties: pairs of equally good answers.
        accepted: answers with a label of their own: True if the answer is right.
    """

    prompt: str
    better: tuple[tuple[str, str], ...] = ()
    ties: tuple[tuple[str, str], ...] = ()
    accepted: Mapping[str, bool] = field(default_factory=dict)

    def answers(self) -> set[str]:
        """All answers that a label needs."""
        return {*self.accepted, *itertools.chain.from_iterable((*self.better, *self.ties))}


@dataclass(frozen=True, slots=True)
class Grade:
    """A verifier's verdict on an answer, without its failures: whether the answer is right, and the score."""

    right: bool
    score: float


# (prompt, answer) -> grade; None if the verifier failed on the answer.
Grades = Mapping[tuple[str, str], Grade | None]


@dataclass(frozen=True, slots=True)
class LabelAudit:
    """A verifier against people.

    Attributes:
        verifier: name of the verifier or judge.
        agreement: agreement over the labels that both decided; None if there is none.
        failed: number of comparisons without a verdict, because the verifier failed.
        unknown: number of comparisons about answers that the verifier has not seen.
        differing: the comparisons that differ, as rows.
    """

    verifier: str
    agreement: Agreement | None
    failed: int
    unknown: int
    differing: tuple[Mapping[str, Any], ...]


def read_people(path: Path) -> list[PeopleLabel]:
    """Read labels of `grpo label`, preference rows, or rows of `prompt`, `completion` and `label` (true or false).

    Raises:
        ValueError: there are no labels, or a row has another form.
    """
    lines = complete_lines(path) if path.is_file() else ()
    if not lines:
        raise ValueError(f"{path} has no labels; give a file of grpo label, or rows of prompt, completion and label")
    if '"places"' in lines[0]:
        return [_of_label(label) for label in read_labels(path) if label.places]
    labels = []
    for number, line in enumerate(lines, start=1):
        try:
            labels.append(_of_row(json.loads(line)))
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise ValueError(
                f"line {number} of {path} is no label ({problem}); expected prompt with completion and label (true or "
                "false), with chosen and rejected, or with a ranking of two or more different answers"
            ) from problem
    return labels


def _of_row(row: Mapping[str, Any]) -> PeopleLabel:
    prompt = row["prompt"]
    if "label" in row:
        if not isinstance(row["label"], bool):
            raise ValueError(f"label is {row['label']!r:.40}, not true or false")
        return PeopleLabel(prompt, accepted={row["completion"]: row["label"]})
    ranking = row["ranking"] if "ranking" in row else [row["chosen"], row["rejected"]]
    if len(ranking) < 2 or len(set(ranking)) < len(ranking):
        raise ValueError("it ranks a single answer, or has equal answers")
    return _of_label(Label("", "", prompt, tuple((answer,) for answer in ranking)))


def _of_label(label: Label) -> PeopleLabel:
    ties = [pair for place in label.places for pair in itertools.combinations(place, 2)]
    return PeopleLabel(label.prompt, tuple(label.pairs()), tuple(ties))


def stored_grades(run_dir: Path, verifiers: Sequence[str] = ()) -> dict[str, Grades]:
    """Read a run's stored verdicts, by verifier.

    Raises:
        ValueError: the run has no stored verdicts, or none of a named verifier.
    """
    grades: dict[str, dict[tuple[str, str], Grade | None]] = {}
    for prompt, group in groups_of_run(run_dir):
        for rollout, verdict in ((each, verdict) for each in group.rollouts for verdict in each.verdicts):
            known = grades.setdefault(verdict.verifier, {})
            grade = None if verdict.score is None else Grade(verdict.status == Status.CORRECT, verdict.score)
            known[prompt, rollout.completion] = grade or known.get((prompt, rollout.completion))
    if not grades:
        raise ValueError(f"{run_dir} has no stored verdicts; give the folder of a run, its run.folder")
    if unknown := [name for name in verifiers if name not in grades]:
        raise ValueError(f"the run has no verdicts of {unknown[0]!r}; it has verdicts of {', '.join(grades)}")
    return {name: known for name, known in grades.items() if name in (verifiers or grades)}


def judge_grades(settings: JudgeSettings, labels: Iterable[PeopleLabel], client: JudgeClient | None = None) -> Grades:
    """Let a judge grade every labelled answer.

    Raises:
        ValueError: labels say which answers are right, and the rubric does not say which choices mean that.
    """
    labels = list(labels)
    if any(label.accepted for label in labels) and not settings.rubric.correct:
        raise ValueError(
            "the labels say which answers are right; name the choices that mean so in the rubric's `correct`"
        )
    asked = sorted({(label.prompt, answer) for label in labels for answer in label.answers()})
    judge = client or JudgeClient(settings)

    async def grade(limit: asyncio.Semaphore, prompt: str, answer: str) -> Grade | None:
        async with limit:
            try:
                choice, _, _ = await judge.grade(prompt, answer, None)
            except JudgeFailed:
                return None
        return Grade(choice in settings.rubric.correct, settings.rubric.choices[choice])

    async def all_grades() -> list[Grade | None]:
        limit = asyncio.Semaphore(_CONCURRENCY)
        return await asyncio.gather(*(grade(limit, *each) for each in asked))

    return dict(zip(asked, asyncio.run(all_grades()), strict=True))


def compare_with_people(verifier: str, grades: Grades, labels: Sequence[PeopleLabel]) -> LabelAudit:
    """Compare a verifier's verdicts with the labels. Answers that the verifier does not know do not count."""
    items, differing, missing = [], [], {"failed": 0, "unknown": 0}
    for label in labels:
        pairs: list[tuple[str, str]] = []
        for theirs, answers in _claims(label):
            known = [grades.get((label.prompt, answer)) for answer in answers]
            if any(grade is None for grade in known):
                unseen = any((label.prompt, answer) not in grades for answer in answers)
                missing["unknown" if unseen else "failed"] += 1
                continue
            mine = _verdict([grade for grade in known if grade is not None])
            pairs.append((mine, theirs))
            if mine != theirs:
                scores = [grade.score for grade in known if grade is not None]
                row = {"prompt": label.prompt, "answers": answers, "people": theirs, "verdict": mine, "scores": scores}
                differing.append({"verifier": verifier, **row})
        if pairs:
            items.append(pairs)
    return LabelAudit(
        verifier, agreement(items) if items else None, missing["failed"], missing["unknown"], tuple(differing)
    )


def _claims(label: PeopleLabel) -> Iterable[tuple[str, list[str]]]:
    """What people said, as words. The order of the texts decides which answer of a pair stands first."""
    for better, worse in label.better:
        yield ("first" if better < worse else "second"), sorted((better, worse))
    for pair in label.ties:
        yield "tie", sorted(pair)
    for answer, right in label.accepted.items():
        yield ("right" if right else "wrong"), [answer]


def _verdict(grades: Sequence[Grade]) -> str:
    if len(grades) == 1:
        return "right" if grades[0].right else "wrong"
    difference = grades[0].score - grades[1].score
    return "tie" if abs(difference) <= _TOLERANCE else "first" if difference > 0 else "second"


def audit_labels(
    run_dir: Path, path: Path, console: Console, *, verifiers: Sequence[str] = (), judge: Path | None = None, show: int
) -> list[LabelAudit]:
    """Compare a run's verifiers, or a judge, with people's labels, and print the outcome.

    All differences are written to `label_audit.jsonl` in the run's folder.

    Args:
        run_dir: the run's folder.
        path: file of the labels.
        console: console to print to.
        verifiers: names of verifiers; by default all of the run.
        judge: file of a judge, who grades the labelled answers in place of the run's verifiers.
        show: number of differences to print for each verifier.

    Raises:
        ValueError: there is no run or no label, or the labels are about other answers.
    """
    labels = read_people(path)
    if judge is None:
        by_name = stored_grades(run_dir, verifiers)
    else:
        settings = read_judge(judge)
        if settings.cache is None:
            settings = dataclasses.replace(settings, cache=str(run_dir / run_files.JUDGEMENTS))
        by_name = {labeller_of(settings): judge_grades(settings, labels)}
    audits = [compare_with_people(name, grades, labels) for name, grades in by_name.items()]
    if not any(audit.agreement or audit.failed for audit in audits):
        raise ValueError(
            f"{run_dir} has verdicts on none of the answers in {path}; label the answers of this run: grpo label "
            f"{run_dir}"
        )
    written = run_dir / run_files.LABEL_AUDIT
    files.write_text(written, "".join(json.dumps(row) + "\n" for audit in audits for row in audit.differing))
    console.print(_summary(audits, written))
    for audit in audits:
        for row in audit.differing[:show]:
            console.print(literal(f"\n{audit.verifier} says {row['verdict']}, people say {row['people']}", "bold"))
            for name, text in (("prompt", row["prompt"]), *(("answer", text) for text in row["answers"])):
                console.print(literal(f"  {name:<8} {text!r:.400}"), soft_wrap=True)
    return audits


def _summary(audits: Sequence[LabelAudit], path: Path) -> Table:
    table = LiteralTable(title="agreement with people's labels")
    for column in ("verifier", "agreement (95 % interval); Cohen's kappa", "failed", "not seen", "different"):
        table.add_column(column)
    for audit in audits:
        found = "nothing to compare" if audit.agreement is None else str(audit.agreement)
        table.add_row(audit.verifier, found, f"{audit.failed:,}", f"{audit.unknown:,}", f"{len(audit.differing):,}")
    table.caption = f"differences: {path}"
    return table
