"""A second measure that falls while the trained score rises is flagged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.report.metrics_log import History, read_history
from grpo.view.flags import hacking_flags


def history(folder: Path, model: list[float], rater: list[float]) -> History:
    lines = [
        {"step": step, "time": 0.0, "eval/reward/model": first, "eval/reward/rater": second}
        for step, (first, second) in enumerate(zip(model, rater, strict=True))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_history(folder)


def test_a_gold_score_that_falls_under_a_rising_proxy_is_flagged(tmp_path: Path) -> None:
    flags = hacking_flags(history(tmp_path, [0.8, 1.2, 1.4, 1.45], [0.58, 0.91, 0.3, 0.12]))
    (flag,) = [flag for flag in flags if flag.kind == "over_optimised"]
    assert flag.metrics == ("eval/reward/model", "eval/reward/rater")
    assert "since step 1" in flag.evidence and "0.91 to 0.12" in flag.evidence and "1.2 to 1.45" in flag.evidence


@pytest.mark.parametrize(
    ("model", "rater"),
    [
        ([0.8, 1.2, 1.4, 1.45], [0.5, 0.7, 0.9, 0.89]),
        ([0.8, 1.2, 0.4, 0.3], [0.5, 0.9, 0.5, 0.3]),
        ([0.8, 1.4], [0.9, 0.1]),
    ],
    ids=["both rise", "both fall", "too few"],
)
def test_other_curves_are_not(tmp_path: Path, model: list[float], rater: list[float]) -> None:
    assert not [flag for flag in hacking_flags(history(tmp_path, model, rater)) if flag.kind == "over_optimised"]
