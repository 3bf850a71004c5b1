"""`grpo audit RUN --labels FILE`: verifiers and judges against people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judges.judge_server import RUBRIC, choosing, rubric_file, served
from judges.labelled_run import write_groups
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.labelling.label_audit import Grade, compare_with_people, read_people

GROUPS = {f"question {n}": [f"good {n}", f"bad {n}"] for n in range(6)}


def run(*words: str) -> Any:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(app, ["audit", *words])


def rows(path: Path, *given: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_groups(tmp_path / "run", GROUPS)


def test_stored_verdicts_are_compared_with_labels_of_single_answers(folder: Path, tmp_path: Path) -> None:
    """People contradict the verifier on one of eight answers, and label one that the run never saw."""
    said = [
        {"prompt": f"question {n}", "completion": f"{kind} {n}", "label": kind == "good"}
        for n in range(4)
        for kind in ("good", "bad")
    ]
    said[3]["label"] = True
    labels = rows(tmp_path / "labels.jsonl", *said, {"prompt": "question 1", "completion": "new", "label": True})
    done = run(str(folder), "--labels", str(labels))
    assert done.exit_code == 0, done.output
    # Of eight: 7 alike; the verifier accepts 4, people 5: chance 4/8 * 5/8 + 4/8 * 3/8 = 0.5, so kappa = 0.75.
    assert "7 of 8 (87.50%, 52.91% to 97.76%); kappa 0.75 (0.06 to 0.96)" in done.output
    assert "answer says wrong, people say right" in done.output
    (different,) = [json.loads(line) for line in (folder / "label_audit.jsonl").read_text().splitlines()]
    assert different["answers"] == ["bad 1"] and different["verdict"] == "wrong" and different["scores"] == [0.0]


def test_pairs_and_ties_count_failures_apart(tmp_path: Path) -> None:
    labels = read_people(
        rows(
            tmp_path / "p.jsonl",
            {"prompt": "p", "chosen": "b", "rejected": "a"},
            {"prompt": "p", "ranking": ["c", "b", "x"]},
        )
    )
    places = rows(tmp_path / "places.jsonl", {"id": "i", "labeller": "ann", "prompt": "p", "places": [["b", "c"]]})
    grades = {
        ("p", "a"): Grade(False, 0.2),
        ("p", "b"): Grade(True, 0.9),
        ("p", "c"): Grade(True, 0.9),
        ("p", "x"): None,
    }
    found = compare_with_people("v", grades, [*labels, *read_people(places)])
    assert found.agreement is not None and (found.agreement.agreed.count, found.agreement.agreed.of) == (2, 3)
    assert (found.failed, found.unknown) == (2, 0), "the two pairs with x"
    assert [(row["verdict"], row["people"]) for row in found.differing] == [("tie", "second")]


def test_a_judge_is_compared_before_a_run_pays_for_it(folder: Path, tmp_path: Path) -> None:
    labels = rows(
        tmp_path / "l.jsonl", *({"prompt": p, "chosen": good, "rejected": bad} for p, (good, bad) in GROUPS.items())
    )
    judge = tmp_path / "judge.yaml"
    says = choosing(
        lambda texts: "good" if texts["ANSWER"].startswith("good") and "5" not in texts["ANSWER"] else "bad"
    )
    with served(says) as url:
        given = {"url": url, "model": "small", "rubric": rubric_file(tmp_path, RUBRIC), "patience_s": 5}
        judge.write_text(json.dumps(given))
        done = run(str(folder), "--labels", str(labels), "--judge", str(judge))
        assert done.exit_code == 0, done.output
        assert "judge:small" in done.output and "5 of 6 (83.33%" in done.output
        rubric_file(tmp_path, RUBRIC.replace("correct: [good]", ""))
        right = rows(tmp_path / "right.jsonl", {"prompt": "question 1", "completion": "good 1", "label": True})
        assert "in the rubric's `correct`" in run(str(folder), "--labels", str(right), "--judge", str(judge)).output
    assert len(list((folder / "judgements").rglob("*.json"))) == 12, "a run with this judge finds the answers"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "p", "completion": "a", "label": "yes"}, "not true or false"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "equal answers"),
        ({"prompt": "p", "ranking": ["a"]}, "ranks a single answer"),
        ({"prompt": "p"}, "is no label"),
        ({"prompt": "p", "chosen": "other", "rejected": "answers"}, "label the answers of this run"),
    ],
)
def test_wrong_labels_are_refused_with_a_sentence(folder: Path, tmp_path: Path, row: dict[str, Any], why: str) -> None:
    done = run(str(folder), "--labels", str(rows(tmp_path / "l.jsonl", row)))
    assert done.exit_code == 2 and why in done.output
    missing = run(str(folder), "--labels", str(tmp_path / "none.jsonl"))
    assert missing.exit_code == 2 and "has no labels" in missing.output
    assert "needs --labels" in run(str(folder), "--judge", "judge.yaml").output
