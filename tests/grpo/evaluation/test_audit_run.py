"""`grpo audit` on a run's folder: real rollout files, the real Math-Verify in real workers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from fake_run import make_advantages, make_rollout
from typer.testing import CliRunner, Result

from grpo.cli.app import app
from grpo.report.rollout_store import write_step
from grpo.types import Group, Prompt
from rewards import verdict
from rewards.verdict import Verdict

# Math-Verify works on this for ever.
HANGS = "\\boxed{9^{9^{9^{9^{9}}}}}"


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["audit", *map(str, arguments)])


def group(reference: object, *judged: tuple[str, Verdict]) -> Group:
    rollouts = [make_rollout(text, {"answer": own, "form": verdict.correct()}) for text, own in judged]
    return Group(Prompt("p", f"What is {reference}?", (1,), reference, {}), tuple(rollouts))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    verifiers = [{"name": "answer", "use": "math"}, {"name": "form", "use": "format"}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"verifiers": verifiers}))
    right, wrong = verdict.correct("equal"), verdict.wrong("it differs")
    for step, groups in {
        1: [
            group("\\frac{1}{2}", ("\\boxed{0.5}", right), ("\\boxed{0.6}", wrong), ("\\boxed{1/2}", wrong)),
            group("3 + 4 = 7\n#### 7", ("<think>3+4</think><answer>7</answer>", right), ("\\boxed{8}", right)),
        ],
        2: [
            group("3 + 4 = 7\n#### 7", ("\\boxed{8}", right), ("\\boxed{7}", verdict.timeout("slow"))),
            group("5", (HANGS, wrong), ("[bold]\\boxed{5}", right)),
        ],
    }.items():
        write_step(tmp_path, step, groups, make_advantages(groups))
    return tmp_path


def test_it_finds_where_the_graders_disagree(run: Path) -> None:
    pytest.importorskip("math_verify", reason="the extra `audit` is not installed")
    begun = time.monotonic()
    result = invoke(run, "--deadline-s", "3")
    assert result.exit_code == 0, result.output
    assert time.monotonic() - begun < 60
    text = result.stdout
    assert "all of 9 stored; 7 decided by both" in text
    assert "1 by the run" in text and "1 by the other grader" in text
    assert "2 of 5 (40.00%, 11.76% to 76.93%)" in text
    assert "1 of 2 (50.00%, 9.45% to 90.55%)" in text
    assert "2 accepted by the run only, 0 by Math-Verify only" in text
    # The same texts are shown once, with how often they came.
    assert "1 to 2, 2 times" in text and text.count("boxed{8}") == 1
    assert "wrong: 'it differs'" in text and "correct: ''" in text
    rows = [json.loads(line) for line in (run / "audit.jsonl").read_text().splitlines()]
    assert [(row["accepted_only_by"], row["completion"], row["step"]) for row in rows] == [
        ("run", "\\boxed{8}", 1),
        ("run", "\\boxed{8}", 2),
        ("math_verify", "\\boxed{1/2}", 1),
    ]
    assert rows[0]["kind"] == "integer" and rows[0]["verifier"] == "answer" and rows[0]["status"] == "correct"


def test_a_limit_bounds_the_work(run: Path) -> None:
    pytest.importorskip("math_verify", reason="the extra `audit` is not installed")
    result = invoke(run, "--limit", "3", "--deadline-s", "3", "--show", "0")
    assert result.exit_code == 0, result.output
    assert "3, drawn by chance, of 9 stored" in result.stdout and "completion" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--verifier", "form", "--verifier", "fourm"], ["no verifier 'fourm'", "answer, form"]),
        (["no_such_run"], ["no config.yaml"]),
    ],
)
def test_mistakes_are_told(run: Path, arguments: list[str], told: list[str]) -> None:
    result = invoke(*([run, *arguments] if arguments[0].startswith("-") else arguments))
    assert result.exit_code == 2
    assert [part for part in told if part not in result.stderr] == [] and "Traceback" not in result.output


def test_a_run_without_mathematical_verifiers_or_rollouts_says_so(run: Path) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump({"verifiers": [{"name": "form", "use": "format"}]}))
    assert "only mathematical verifiers (math, numeric)" in invoke(run).stderr
    (run / "config.yaml").write_text(yaml.safe_dump({"verifiers": [{"name": "other", "use": "math"}]}))
    assert "report.rollouts_every" in invoke(run).stderr


def test_without_math_verify_the_extra_is_named(
    run: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path_factory.mktemp("absent")
    (absent / "math_verify.py").write_text("raise ModuleNotFoundError('no math_verify', name='math_verify')\n")
    monkeypatch.syspath_prepend(str(absent))
    result = invoke(run)
    assert result.exit_code == 2
    assert "math-verify is not installed" in result.stderr and "verigrpo[audit]" in result.stderr
