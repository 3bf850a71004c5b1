"""`grpo label`: people or a judge label the groups of a run, and the labels become preference rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grpo.labelling.items import LabelSet, read_items
from grpo.labelling.judged import judge_items, labeller_of, read_judge
from grpo.labelling.labels import (
    JUDGE,
    Label,
    LabelFile,
    compare_labellers,
    labellers_of,
    preference_rows,
    read_labels,
)
from grpo.labelling.page import Labelling, make_label_app
from grpo.report import run_files
from grpo.view.guards import new_token, serve_app
from rewards.judges.client import JudgeClient

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """What to label, and where the labels go.

    Attributes:
        source: folder of a run, or a file with rows of `prompt` and `answers`.
        labeller: name of the person.
        show: largest number of answers of an item.
        limit: largest number of items; None is all.
        seed: seed of choice and order of the items.
        labels: file of the labels; None is `labels.jsonl` in the run's folder or beside the file.
        out: file of the preference rows; None is `preferences.jsonl` there, of a judge `judge_preferences.jsonl`.
        rankings: whether the rows are rankings and not pairs.
    """

    source: Path
    labeller: str
    show: int = 2
    limit: int | None = None
    seed: int = 0
    labels: Path | None = None
    out: Path | None = None
    rankings: bool = False

    @property
    def labels_path(self) -> Path:
        """File of the labels."""
        return self.labels or self._beside("labels.jsonl")

    def rows_path(self, judged: bool) -> Path:
        """File of the preference rows."""
        return self.out or self._beside("judge_preferences.jsonl" if judged else "preferences.jsonl")

    def read(self, say: Say) -> LabelSet:
        """Read the items, and say what is left out."""
        chosen = read_items(self.source, show=self.show, limit=self.limit, seed=self.seed)
        say(
            f"{len(chosen.items):,} items; left out: {chosen.equal:,} groups whose answers are all equal, "
            f"{chosen.conversations:,} conversations"
        )
        return chosen

    def _beside(self, name: str) -> Path:
        if self.source.is_file():
            return self.source.with_name(f"{self.source.stem}_{name}")
        return self.source / name


def label_by_people(request: LabelRequest, say: Say, *, host: str, port: int) -> None:
    """Serve the page until Ctrl-C, then write the rows of all people.

    Raises:
        ValueError: there is nothing to label, or the labeller's name is that of a judge.
        OSError: the port is in use.
    """
    if not request.labeller or request.labeller.startswith(JUDGE):
        raise ValueError(
            f"--labeller must be the name of a person and not begin with {JUDGE}, got {request.labeller!r}"
        )
    items = request.read(say).items
    file = LabelFile(request.labels_path)
    try:
        token = new_token()
        app = make_label_app(Labelling(items, file, request.labeller), token=token, hosts=[host])
        serve_app(app, host=host, port=port, token=token, say=say)
    finally:
        file.close()
    labels = read_labels(request.labels_path)
    _say_agreement(labels, request.labeller, say)
    _write_rows([label for label in labels if not label.labeller.startswith(JUDGE)], request, say, judged=False)


def label_by_judge(request: LabelRequest, judge: Path, say: Say, *, concurrency: int = 16) -> None:
    """Let a judge label all items that he has not labelled, and write his rows.

    Raises:
        ValueError: there is nothing to label, or the judge's options are wrong.
        RuntimeError: the judge labelled no item.
    """
    settings = read_judge(judge)
    items = request.read(say).items
    if settings.cache is None:
        settings = dataclasses.replace(settings, cache=str(request.labels_path.with_name(run_files.JUDGEMENTS)))
    name = labeller_of(settings)
    done = {label.id for label in read_labels(request.labels_path) if label.labeller == name}
    left = [item for item in items if item.id not in done]
    say(f"{len(items) - len(left):,} of them have a label of {name}")
    file = LabelFile(request.labels_path)
    try:
        report = judge_items(JudgeClient(settings), left, file.add, concurrency=concurrency)
    finally:
        file.close()
    for line in report.lines() if left else ():
        say(line)
    if left and report.failed == len(left):
        raise RuntimeError(f"{name} labelled none of {len(left)} items; the lines above have the reasons")
    labels = read_labels(request.labels_path)
    _say_agreement(labels, name, say)
    _write_rows([label for label in labels if label.labeller == name], request, say, judged=True)


def _say_agreement(labels: list[Label], labeller: str, say: Say) -> None:
    for other in labellers_of(labels):
        if other != labeller:
            say(f"agreement of {compare_labellers(labels, labeller, other)}")


def _write_rows(labels: list[Label], request: LabelRequest, say: Say, *, judged: bool) -> None:
    rows = preference_rows(labels, rankings=request.rankings)
    path = request.rows_path(judged)
    skipped = sum(not label.places for label in labels)
    rows.write(path)
    say(
        f"written: {path}: {len(rows.rows):,} rows; {rows.ties:,} items are ties, {rows.disputed:,} are disputed, "
        f"{skipped:,} labels are skips"
    )
