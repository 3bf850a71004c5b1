"""Callbacks and the user's functions in a whole run, with engines that only keep count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from docs_pages import ROOT, block
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_run import silent_progress
from test_jobs import settings_of, steps_of, train
from tiny_policy import make_tiny_policy

from grpo.config import TrainConfig
from grpo.report.metrics_log import read_history
from grpo.run import checkpoint
from grpo.run.functions import Callbacks, keep_sources
from grpo.train_loop import train as run_training

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def settings_with(folder: Path, policy: Path, algorithm: dict[str, Any], **callbacks: list[str]) -> TrainConfig:
    data = settings_of(folder, policy).model_dump() | {"callbacks": callbacks, "evaluation": None}
    return TrainConfig.model_validate(data | {"algorithm": data["algorithm"] | algorithm})


def test_the_page_s_functions_train_and_are_kept(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_objective.py"
    file.write_text(block("objectives.md", "python", "def above_median("))
    named = {"advantage": "above_median", "ratio": "capped", "aggregation": "root_mean"}
    settings = settings_with(
        tmp_path / "run",
        policy,
        {key: f"{file}:{name}" for key, name in named.items()} | {"options": {"scale": 0.5}},
        step=[f"{file}:lengths"],
        checkpoint=[f"{file}:announce"],
    )
    cluster = train(settings, monkeypatch)
    last = read_history(tmp_path / "run").lines[-1]
    assert last.step == 5 and last.metrics["custom/shortest"] >= 1
    assert "`custom/<name>`" in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    newest = checkpoint.latest(tmp_path / "run")
    assert newest is not None and (tmp_path / "run" / "newest.txt").read_text() == str(newest.folder)
    # The denominators are sums of roots of lengths.
    assert cluster.learner.denominators and not all(one.is_integer() for one in cluster.learner.denominators)
    kept = {path.name: path.read_text() for path in (tmp_path / "run" / "functions").iterdir()}
    assert kept == {f"{key}.py": file.read_text() for key in settings.functions}
    # A resume with another text under the same name says so.
    assert keep_sources(tmp_path / "run", settings.functions) == []
    file.write_text(file.read_text() + "\n# mended\n")
    changed = keep_sources(tmp_path / "run", settings.functions)
    assert changed[0] == f"algorithm.advantage: the text of {file}:above_median" and len(changed) == 5


def test_a_callback_that_raises_stops_the_run_after_a_checkpoint(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "failing.py"
    file.write_text(
        "def at_step(finished):\n    if finished.step == 3:\n        {}['no such key']\n    return {'seen': True}\n\n\n"
        "def at_checkpoint(saved):\n    raise SystemExit(f'no room at {saved.step}')\n"
    )
    settings = settings_with(tmp_path / "run", policy, {}, step=[f"{file}:at_step"])
    with pytest.raises(
        RuntimeError, match=r"callbacks\.step: .*at_step raised at step 3: KeyError: .*failing\.py:3\); the checkpoint"
    ):
        train(settings, monkeypatch)
    newest = checkpoint.latest(tmp_path / "run")
    assert newest is not None and newest.step == 3 and steps_of(tmp_path / "run")[-1] == 3
    # Mended, it goes on behind the step; a checkpoint's own callback stops it likewise, with the checkpoint whole.
    mended = settings_with(tmp_path / "run", policy, {}, checkpoint=[f"{file}:at_checkpoint"])
    resumed = mended.model_copy(update={"run": mended.run.model_copy(update={"resume": "auto"})})
    with pytest.raises(RuntimeError, match=r"at_checkpoint raised at step 4: SystemExit: no room at 4 .*failing\.py:8"):
        train(resumed, monkeypatch)
    newest = checkpoint.latest(tmp_path / "run")
    assert newest is not None and newest.step == 4 and newest.driver_state()["step"] == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("return [1]", r"returned list; expected numbers by name"),
        ("return {'a b': 1}", r"the name 'a b'; expected letters"),
        ("return {'x': 'much'}", r"could not convert string to float"),
        ("finished.metrics['loss'] = 1", r"does not support item assignment \(.*mine\.py:2\)"),
    ],
)
def test_what_a_callback_may_not_return(tmp_path: Path, policy: Path, text: str, told: str) -> None:
    (tmp_path / "mine.py").write_text(f"def f(finished):\n    {text}\n")
    callbacks = Callbacks(settings_with(tmp_path / "run", policy, {}, step=[f"{tmp_path}/mine.py:f"]))
    assert callbacks.step(1, {"loss": 0.5}, []) == {} and callbacks.failed
    with pytest.raises(RuntimeError, match=told):
        callbacks.checkpoint(None)


def test_a_function_that_breaks_its_contract_stops_the_run_before_anything_is_claimed(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def f(a, b):\n    return a\n")
    cluster = FakeCluster(FakeLearner(), FakeGenerators(25))
    monkeypatch.setattr("grpo.run.training.Cluster", cluster)
    for algorithm, callbacks, told in (
        ({"advantage": f"{tmp_path}/mine.py:g"}, {}, "has no 'g'"),
        ({"kl": f"{tmp_path}/mine.py:f", "kl_coefficient": 0.1, "options": {"x": 1}}, {}, "algorithm.options.x is no"),
        ({"advantage": "subprocess:getoutput"}, {}, "standard library"),
        ({}, {"step": [f"{tmp_path}/mine.py:f"]}, "must take one value"),
    ):
        with pytest.raises(ValueError, match=told):
            run_training(settings_with(tmp_path / "run", policy, algorithm, **callbacks), silent_progress())
    assert not (tmp_path / "run").exists()
