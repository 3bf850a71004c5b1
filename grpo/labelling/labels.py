"""Labels: what labellers said about items, the file that keeps them, and the preference rows that follow."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo import files
from grpo.report.json_lines import JsonLines, complete_lines
from rewards.checks.agreement import Agreement, agreement

# The names of judges among the labellers begin with this.
JUDGE = "judge:"
_BETTER, _WORSE, _TIE = "better", "worse", "tie"


@dataclass(frozen=True, slots=True)
class Label:
    """What a labeller said about an item.

    Attributes:
        id: id of the item.
        labeller: name of the labeller.
        prompt: prompt of the item.
        places: answers in each place, the best place first. Answers in the same place are equally good. Empty if the
            labeller skipped the item.
    """

    id: str
    labeller: str
    prompt: str
    places: tuple[tuple[str, ...], ...]

    def pairs(self) -> list[tuple[str, str]]:
        """All pairs (better answer, worse answer)."""
        return [
            (better, worse)
            for first, second in itertools.combinations(self.places, 2)
            for better in first
            for worse in second
        ]

    def relations(self) -> dict[tuple[str, str], str]:
        """For each pair of answers, in the order of their texts: whether the first is better, worse, or neither."""
        place = {answer: at for at, answers in enumerate(self.places) for answer in answers}
        return {
            (first, second): _relation(place[first], place[second])
            for first, second in itertools.combinations(sorted(place), 2)
        }


def _relation(place: int, other: int) -> str:
    if place == other:
        return _TIE
    return _BETTER if place < other else _WORSE


class LabelFile:
    """A file with a line for each label. Several processes may append; the last line about an item counts."""

    def __init__(self, path: Path) -> None:
        """Open the file, which is made if it does not exist."""
        self._lines = JsonLines(path)
        self.path = path

    def add(self, label: Label) -> None:
        """Append a label."""
        row = {"id": label.id, "labeller": label.labeller, "prompt": label.prompt, "places": label.places}
        self._lines.write(json.dumps(row) + "\n")

    def take_back(self, item: str, labeller: str) -> None:
        """Append that a labeller has taken his label of an item back."""
        self._lines.write(json.dumps({"id": item, "labeller": labeller, "taken_back": True}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_labels(path: Path) -> list[Label]:
    """Read the labels that count, in the order in which they were given. A missing file has none.

    Raises:
        ValueError: a line has another form.
    """
    kept: dict[tuple[str, str], Label] = {}
    for number, line in enumerate(complete_lines(path), start=1):
        try:
            row: Mapping[str, Any] = json.loads(line)
            key = str(row["id"]), str(row["labeller"])
            kept.pop(key, None)
            if not row.get("taken_back"):
                places = tuple(tuple(map(str, place)) for place in row["places"])
                kept[key] = Label(*key, str(row["prompt"]), places)
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise ValueError(
                f"line {number} of {path} is no label ({problem}); expected id, labeller, prompt and places, as "
                "grpo label writes them"
            ) from problem
    return list(kept.values())


def labellers_of(labels: Sequence[Label]) -> list[str]:
    """The names of the labellers, the busiest first."""
    return [name for name, _ in Counter(label.labeller for label in labels).most_common()]


@dataclass(frozen=True, slots=True)
class LabellerComparison:
    """Two labellers on the items that both decided.

    Attributes:
        first: name of the first labeller.
        second: name of the second labeller.
        agreement: their agreement over pairs of answers; None if there is no such item.
        differing: pairs of labels that differ, the first labeller's label first.
    """

    first: str
    second: str
    agreement: Agreement | None
    differing: tuple[tuple[Label, Label], ...]

    def __str__(self) -> str:
        result = "no common item" if self.agreement is None else f"pairs alike: {self.agreement}"
        return f"{self.first} and {self.second}: {result}"


def compare_labellers(labels: Sequence[Label], first: str, second: str) -> LabellerComparison:
    """Compare two labellers. Skipped items, and answers that only one of them ranked, do not count."""
    by_labeller: dict[str, dict[str, Label]] = {first: {}, second: {}}
    for label in labels:
        if label.labeller in by_labeller and label.places:
            by_labeller[label.labeller][label.id] = label
    items, differing = [], []
    for item, mine in by_labeller[first].items():
        if other := by_labeller[second].get(item):
            theirs = other.relations()
            pairs = [(relation, theirs[key]) for key, relation in mine.relations().items() if key in theirs]
            if pairs:
                items.append(pairs)
                if any(relation != other_relation for relation, other_relation in pairs):
                    differing.append((mine, other))
    return LabellerComparison(first, second, agreement(items) if items else None, tuple(differing))


@dataclass(frozen=True, slots=True)
class PreferenceRows:
    """Rows for `grpo dpo`.

    Attributes:
        rows: the rows.
        ties: number of items without a row because no answer is better than another.
        disputed: number of items of which a pair, or the ranking, is left out because labellers contradict each other.
    """

    rows: tuple[dict[str, Any], ...]
    ties: int
    disputed: int

    def write(self, path: Path) -> None:
        """Write the rows as JSONL."""
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))


def preference_rows(labels: Sequence[Label], *, rankings: bool = False) -> PreferenceRows:
    """Turn labels into rows `prompt, chosen, rejected`, or `prompt, ranking`.

    A pair of answers becomes a row if more labellers prefer the one than the other. A ranking becomes a row if all
    labellers of the item rank alike; of answers that share a place it has the first.
    """
    by_item: dict[str, list[Label]] = {}
    for label in labels:
        if label.places:
            by_item.setdefault(label.id, []).append(label)
    rows: list[dict[str, Any]] = []
    ties = disputed = 0
    for given in by_item.values():
        votes = Counter(pair for label in given for pair in label.pairs())
        if not votes:
            ties += 1
        elif rankings:
            relations = given[0].relations()
            if any(label.relations() != relations for label in given):
                disputed += 1
                continue
            rows.append({"prompt": given[0].prompt, "ranking": [place[0] for place in given[0].places]})
        else:
            disputed += any(votes[worse, better] for better, worse in votes)
            rows += [
                {"prompt": given[0].prompt, "chosen": better, "rejected": worse}
                for (better, worse), count in votes.items()
                if count > votes[worse, better]
            ]
    return PreferenceRows(tuple(rows), ties, disputed)
