"""A run goes on by itself after the death of what it runs on, and only then; with engines that only keep count."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from rich.console import Console
from test_jobs import settings_of, sft_settings
from tiny_policy import make_tiny_policy

from grpo.cluster.failures import ProcessDied, Stalled
from grpo.config import TrainConfig
from grpo.data.drawing.cursor import Cursor
from grpo.report import run_files
from grpo.report.ledger import ledger_problems, read_ledger
from grpo.report.metrics_log import read_history
from grpo.report.progress import open_progress
from grpo.run.recovery import with_recovery
from grpo.train_loop import train

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

DEATH = "learner rank 1 (pid 7 on 10.0.0.2) died: killed; the run waited for a learner step"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


class Clusters:
    """A new cluster for each start, whose learner meets `fate(start, optimizer step)` before each of its steps."""

    def __init__(self, settings: TrainConfig, fate: Callable[[int, int], None]) -> None:
        self.settings, self.fate = settings, fate
        self.started: list[FakeCluster] = []

    def __call__(self, *_: Any) -> FakeCluster:
        number, fate = len(self.started), self.fate

        class Mortal(FakeLearner):
            def step(self, batch: Any) -> dict[str, float]:
                fate(number, self.optimizer_steps)
                return super().step(batch)

        self.started.append(FakeCluster(Mortal(), FakeGenerators(self.settings.max_sequence_tokens)))
        return self.started[-1]


def dies_at(*steps: int, error: type[Exception] = ProcessDied) -> Callable[[int, int], None]:
    """The first start dies before the first of these optimizer steps, the second before the second, and so on."""

    def fate(start: int, step: int) -> None:
        if start < len(steps) and step == steps[start]:
            raise error(DEATH)

    return fate


def recover(
    settings: TrainConfig, monkeypatch: pytest.MonkeyPatch, fate: Callable[[int, int], None]
) -> tuple[Clusters, StringIO]:
    clusters, screen = Clusters(settings, fate), StringIO()
    monkeypatch.setattr("grpo.run.training.Cluster", clusters)
    try:
        with_recovery(settings, lambda: open_progress("GRPO", console=Console(file=screen, width=80)), train)
    finally:
        assert all(one.closed for one in clusters.started)
    return clusters, screen


def with_cluster(settings: TrainConfig, **limits: int) -> TrainConfig:
    return settings.model_copy(update={"cluster": settings.cluster.model_copy(update=limits)})


def test_a_run_that_loses_a_rank_goes_on_by_itself_as_if_nothing_had_happened(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two optimizer steps make a training step, and every second of those has a checkpoint."""
    settings = settings_of(tmp_path / "run", policy)
    clusters, screen = recover(settings, monkeypatch, dies_at(3, 6, 9))
    assert len(clusters.started) == 4
    # Before the first checkpoint it starts anew; then from steps 2 and 4.
    assert [one.generators.versions[0] for one in clusters.started if one.generators] == [0, 0, 2, 4]
    lines = [line for line in screen.getvalue().splitlines() if DEATH in line]
    assert len(lines) == 3, screen.getvalue()
    assert "going on from the start, as there is no checkpoint yet (restart 1 of 20 at most)" in lines[0]
    assert "going on from the checkpoint of step 2 (restart 2" in lines[1]
    assert "going on from the checkpoint of step 4 (restart 3" in lines[2]
    faults = (tmp_path / "run" / run_files.FAULTS).read_text().splitlines()
    assert [line.partition(": ")[2] for line in faults] == lines

    whole, _ = recover(settings_of(tmp_path / "whole", policy), monkeypatch, dies_at())
    assert read_ledger(tmp_path / "run") == read_ledger(tmp_path / "whole")
    for died, undisturbed in zip(*(read_history(tmp_path / one).lines for one in ("run", "whole")), strict=True):
        for name, value in undisturbed.metrics.items():
            if not name.startswith(("time/", "throughput/", "verifier/")):
                assert died.metrics[name] == value, (died.step, name)
    assert clusters.started[-1].learner.optimizer_steps == whole.started[-1].learner.optimizer_steps == 10


def test_the_ledger_of_a_run_that_died_is_whole(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recover(settings_of(tmp_path / "run", policy), monkeypatch, dies_at(5, 7))
    trained = read_ledger(tmp_path / "run")
    ids = sorted({one.prompt for one in trained}, key=lambda one: int(one.rpartition(":")[2]))
    cursor = Cursor(ids, 0)
    assert len(trained) == 20 and ledger_problems(trained, cursor.next(30)) == []
    # The proof is one: a group less, or one in another's place, does not pass.
    assert ledger_problems(trained[:-5] + trained[-4:], Cursor(ids, 0).next(30))


def test_it_does_not_go_on_for_ever(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = with_cluster(settings_of(tmp_path / "few", policy), max_restarts=1)
    with pytest.raises(ProcessDied, match=r"died: .*cluster\.max_restarts=1 is used up; look at what died"):
        recover(settings, monkeypatch, dies_at(5, 7, 9))
    settings = with_cluster(settings_of(tmp_path / "fruitless", policy), max_fruitless_restarts=2)
    died = []

    def at_the_seventh(start: int, step: int) -> None:
        if step == 7:
            died.append(start)
            raise ProcessDied(DEATH)

    with pytest.raises(ProcessDied, match="no checkpoint newer than the checkpoint of step 2 was written"):
        recover(settings, monkeypatch, at_the_seventh)
    # The first death came after a checkpoint; of those after it none did.
    assert died == [0, 1, 2, 3]


def test_with_no_restarts_it_stops_at_the_first_death(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProcessDied, match="not started again"):
        recover(with_cluster(settings_of(tmp_path / "run", policy), max_restarts=0), monkeypatch, dies_at(5))


@pytest.mark.parametrize("error", [ValueError, RuntimeError, TimeoutError, OSError])
def test_what_is_wrong_with_the_run_itself_stops_it(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    fate = dies_at(5, error=error)
    with pytest.raises(error, match="learner rank 1"):
        recover(settings_of(tmp_path / "run", policy), monkeypatch, fate)
    assert not (tmp_path / "run" / run_files.FAULTS).exists()
    with pytest.raises(ValueError, match="already holds a run"):
        recover(settings_of(tmp_path / "run", policy), monkeypatch, dies_at())


@pytest.mark.parametrize("action", ["stop", "restart"])
def test_a_stall_is_gone_on_from_only_where_that_is_configured(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    settings = settings_of(tmp_path / "run", policy)
    settings = settings.model_copy(update={"watchdog": settings.watchdog.model_copy(update={"action": action})})
    if action == "restart":
        clusters, _ = recover(settings, monkeypatch, dies_at(5, error=Stalled))
        assert len(clusters.started) == 2
    else:
        with pytest.raises(Stalled, match=r"stopped because of watchdog\.action=stop"):
            recover(settings, monkeypatch, dies_at(5, error=Stalled))


def test_a_run_that_was_asked_to_stop_is_not_started_again(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_and_die(start: int, step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            raise ProcessDied(DEATH)

    with pytest.raises(KeyboardInterrupt):
        recover(settings_of(tmp_path / "run", policy), monkeypatch, stop_and_die)
    assert "stopped without a checkpoint of this step: learner rank 1" in capsys.readouterr().err


def test_supervised_fine_tuning_goes_on_by_itself_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grpo.sft_loop import sft

    def run(folder: Path, *deaths: int) -> FakeLearner:
        started: list[FakeLearner] = []

        class Mortal(FakeLearner):
            def step(self, batch: Any) -> dict[str, float]:
                dies_at(*deaths)(len(started) - 1, self.optimizer_steps)
                return super().step(batch)

        def cluster(*_: Any) -> FakeCluster:
            started.append(Mortal())
            return FakeCluster(started[-1])

        monkeypatch.setattr("grpo.fine_tuning.Cluster", cluster)
        settings = sft_settings(folder)
        schedule = settings.sft.model_copy(update={"steps": 7, "checkpoint_every": 2})
        settings = settings.model_copy(update={"sft": schedule})
        with_recovery(settings, lambda: open_progress("SFT", console=Console(file=StringIO(), width=80)), sft)
        assert len(started) == 1 + len(deaths)
        return started[-1]

    learner = run(tmp_path / "run", 1, 5)
    assert learner.optimizer_steps == 7 and len(learner.denominators) == 3, "the last start began at step 4"
    faults = (tmp_path / "run" / run_files.FAULTS).read_text().splitlines()
    assert "going on from the start" in faults[0] and "going on from the checkpoint of step 4 (restart 2" in faults[1]
    whole = run(tmp_path / "whole")
    assert learner.denominators == whole.denominators[4:], "the same rows in the same steps"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
