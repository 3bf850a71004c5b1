from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import write_fake_run
from matplotlib.image import imread

from grpo.report.figures import mean_and_band, overview, run_names
from grpo.report.metrics_log import Curve, MetricsLine, MetricsLog


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    paths = [folder / "seed-1", folder / "seed-2"]
    for seed, path in enumerate(paths):
        write_fake_run(path, steps=12, seed=seed)
    return paths


def colours(path: Path) -> int:
    """How many different pixels a picture has: a blank one has a single one."""
    picture = imread(path)
    return len({tuple(pixel) for row in picture[::7] for pixel in row})


def test_overview_is_two_by_two_and_each_curve_has_its_own_file(runs: list[Path], tmp_path: Path) -> None:
    written = overview([runs[0]], tmp_path / "figures")
    assert [path.name for path in written] == [
        "overview.png",
        "accuracy.png",
        "reward.png",
        "completion_length.png",
        "step_time.png",
    ]
    height, width = imread(written[0]).shape[:2]
    assert (width, height) == (1600, 1088)
    assert all(colours(path) > 20 for path in written)
    assert not list((tmp_path / "figures").glob("*.partial"))


def test_runs_and_seeds_are_drawn_together(runs: list[Path], tmp_path: Path) -> None:
    alone = overview([runs[0]], tmp_path / "alone")
    both = overview(runs, tmp_path / "both")
    seeds = overview({"GRPO": runs}, tmp_path / "seeds")
    assert [path.name for path in alone] == [path.name for path in both] == [path.name for path in seeds]
    pictures = [Path(written[0]).read_bytes() for written in (alone, both, seeds)]
    assert len(set(pictures)) == 3


def test_runs_of_the_same_name_are_told_apart_by_their_parents() -> None:
    assert run_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert run_names([Path("/a/x"), Path("/b/y")]) == ["x", "y"]
    assert run_names([Path("/a/x"), Path("/a/x")]) == ["x (1)", "x (2)"]
    assert run_names([]) == []


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    assert overview([tmp_path], tmp_path / "figures") == ()
    assert not (tmp_path / "figures").exists()
    with MetricsLog(tmp_path) as log:
        log.append(MetricsLine(1, 0.0, {"learner/loss": 2.0, "reward/mean": float("nan")}))
    written = overview([tmp_path], tmp_path / "figures")
    assert [path.name for path in written] == ["overview.png", "loss.png"]


def test_band_covers_the_steps_that_all_runs_have() -> None:
    mean, low, high = mean_and_band([Curve((0, 1, 2), (1.0, 2.0, 3.0)), Curve((1, 2, 3), (4.0, 1.0, 9.0))])
    assert mean == Curve((1, 2), (3.0, 2.0))
    assert (low.values, high.values) == ((2.0, 1.0), (4.0, 3.0))
