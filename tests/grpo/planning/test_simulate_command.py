"""`grpo simulate`: lengths, speeds fitted to a run, the sweep, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from simulated_run import SPEEDS, config, group, write_run
from typer.testing import CliRunner, Result

from grpo.cli.app import app
from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.planning.simulation.calibration import fit, speeds_of
from grpo.planning.simulation.lengths import modelled, recorded
from grpo.planning.simulation.sweep import Sweep, best_splits, speedup
from grpo.report.rollout_store import write_step

LENGTHS = "lognormal:median=40,sigma=1"


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["simulate", *map(str, arguments)])


def test_speeds_are_found_again_in_a_run(tmp_path: Path) -> None:
    found = speeds_of(write_run(tmp_path))
    for name in SPEEDS.__slots__:
        assert getattr(found, name) == pytest.approx(getattr(SPEEDS, name), rel=1e-6, abs=1e-12), name


def test_a_run_whose_seconds_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learned from tokens of other policy versions"):
        speeds_of(write_run(tmp_path, ahead=-1))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="0 stored steps after the first"):
        speeds_of(tmp_path)
    with pytest.raises(ValueError, match=r"has no config\.yaml"):
        speeds_of(tmp_path / "rollouts")


@pytest.mark.parametrize(("tokens", "drawn"), [("0.2", 1), ("1", 1), ("1.1", 2), ("9.9", 10), ("11", 10)])
def test_lengths_are_whole_from_1_to_the_limit(tokens: str, drawn: int) -> None:
    lengths = modelled(f"constant:tokens={tokens}", 10).draw(np.random.default_rng(0), 2, 3)
    assert lengths.tolist() == [[drawn] * 3] * 2


def test_no_speed_is_negative() -> None:
    assert fit([1, 1, 1], [1, 2, 3], [5, 7, 9]) == pytest.approx((3, 2))
    # The best line would fall: the mean, then; the best line would begin below nothing: through the origin.
    assert fit([1, 1, 1], [1, 2, 3], [9, 8, 7]) == pytest.approx((8, 0))
    assert fit([1, 1, 1], [1, 2, 3], [0, 2, 4]) == pytest.approx((0, 16 / 14))


def test_recorded_groups_stay_together(tmp_path: Path) -> None:
    for step, rows in enumerate([[[1, 2], [30, 40]], [[5, 6, 7]]], start=1):
        write_step(tmp_path, step, [group(row, 0) for row in rows], [[0.0] * len(row) for row in rows])
    drawn = recorded(tmp_path).draw(np.random.default_rng(0), 400, 2)
    pairs = {tuple(row) for row in drawn.tolist()}
    assert {(1, 2), (30, 40)} < pairs
    # One that was larger gives some of its completions.
    assert all(set(pair) <= {5, 6, 7} for pair in pairs - {(1, 2), (30, 40)})
    with pytest.raises(ValueError, match="holds no stored rollouts"):
        recorded(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "mean", "median", "highest"),
    [
        ("constant:tokens=50", 50, 50, 50),
        ("lognormal:median=60,sigma=0.5", 60 * np.exp(0.125), 60, 10**6),
        ("lognormal:mean=60,sigma=0.5", 60, 60 * np.exp(-0.125), 10**6),
        ("pareto:minimum=100,alpha=3", 150, 100 * 2 ** (1 / 3), 10**6),
        ("0.75*constant:tokens=10 + 0.25*constant:tokens=1e+3", 257.5, 10, 1000),
    ],
)
def test_modelled_lengths_are_of_their_distribution(text: str, mean: float, median: float, highest: int) -> None:
    drawn = modelled(text, 10**6).draw(np.random.default_rng(0), 20_000, 4)
    assert drawn.shape == (20_000, 4) and drawn.min() >= 1 and drawn.max() <= highest
    # Rounding up adds half a token.
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert np.median(drawn) == pytest.approx(median, rel=0.02)
    assert modelled(text, 9).draw(np.random.default_rng(0), 10, 2).max() == 9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("zipf:a=2", "describes no distribution"),
        ("lognormal:median=60", "describes no distribution"),
        ("constant:tokens=many", "tokens of 'constant:tokens=many' is 'many'"),
        ("constant:tokens=0", "must be above 0"),
        ("0.5*constant:tokens=5", "sum to 1"),
        ("0.5*constant:tokens=5+constant:tokens=6", "is '5"),
        ("pareto:minimum=1,alpha=nan", "expected a number"),
    ],
)
def test_a_distribution_that_makes_no_sense_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        modelled(text, 100)


@pytest.mark.parametrize("way", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_sweep_keeps_lengths_and_splits_gpus(tmp_path: Path, way: str) -> None:
    settings = load(TrainConfig, config(tmp_path, generator={"replicas": 1, way: 2}))
    sweep = Sweep(settings, modelled("constant:tokens=100", 100), SPEEDS, steps=6)
    rows = sweep.rows([8], [0, 1], [0.01, 0.5, 0.99])
    # Whole replicas, at least one, and a GPU that learns.
    assert [(row.lag, row.replicas, row.generator_gpus, row.learner_gpus) for row in rows] == [
        (lag, replicas, 2 * replicas, 8 - 2 * replicas) for lag in (0, 1) for replicas in (1, 2, 3)
    ]
    generate_s, learn_s = 100 * (0.02 + 12 * 0.003), 1.5 + 0.0004 * 2400 / 4
    middle = rows[1]
    assert middle.step_s == pytest.approx(generate_s + learn_s + 0.25)
    assert middle.completions_per_s == pytest.approx(24 / middle.step_s)
    assert middle.generator_idle == pytest.approx(1 - generate_s / middle.step_s)
    assert middle.slots_used == pytest.approx(12 / 256 * generate_s / middle.step_s)
    assert middle.learner_idle == pytest.approx(generate_s / middle.step_s)
    assert middle.gpu_idle == pytest.approx(0.5)
    assert [row.mean_lag for row in rows] == [0] * 3 + [1] * 3
    best = best_splits(rows)
    assert [(row.lag, row.completions_per_s) for row in best] == [
        (lag, max(row.completions_per_s for row in rows if row.lag == lag)) for lag in (0, 1)
    ]
    assert speedup(best[0], rows) == 1 and speedup(best[1], rows) > 1  # type: ignore[operator]
    with pytest.raises(ValueError, match="at least 3"):
        sweep.rows([2], [0], [0.5])


def test_shared_gpus_take_turns_and_the_batch_may_grow(tmp_path: Path) -> None:
    settings = load(TrainConfig, config(tmp_path))
    rows = Sweep(settings, modelled("constant:tokens=100", 100), SPEEDS, scale_batch=True).rows([8], [0], [0.5])
    assert [(row.shared, row.replicas, row.learner_gpus, row.prompts_per_step) for row in rows] == [
        (False, 4, 4, 12),
        (True, 8, 8, 12),
    ]
    assert rows[1].gpu_idle < 0.1 < rows[0].gpu_idle


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    result = invoke(config(tmp_path), "--lengths", LENGTHS, "--gpus", "4,8", "--lag", "0,2")
    assert result.exit_code == 0, result.output
    lines = [line.replace("│", " ").split() for line in result.stdout.splitlines() if "GPUs" in line and "│" in line]
    assert [(line[0], line[1]) for line in lines] == [(n, lag) for n in ("4", "8") for lag in ("0", "2", "0")]
    assert "in turns" in result.stdout and "not measured" in result.stdout
    assert "6 prompts a step, 16 tokens each, 4 completions per prompt" in result.stdout
    everything = invoke(config(tmp_path), "--lengths", LENGTHS, "--gpus", "4,8", "--lag", "0,2", "--all-splits")
    assert everything.stdout.count("GPUs") > result.stdout.count("GPUs")


def test_the_command_prints_json_from_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    options = ["--from", run, "--gpus", "4", "--lag", "0,1", "--generator-share", "0.5", "--push-s", "7", "--json"]
    result = invoke(run / "config.yaml", *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["assumptions"]["push_s"] == 7
    assert told["assumptions"]["learn_token_s"] == pytest.approx(SPEEDS.learn_token_s)
    assert [(row["lag"], row["shared"]) for row in told["rows"]] == [(0, False), (1, False), (0, True)]
    assert told["rows"][0]["speedup_over_sync"] == 1
    assert invoke(run / "config.yaml", *options).stdout == result.stdout
    assert invoke(run / "config.yaml", *options, "--seed", "1").stdout != result.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--from"),
        (["--lengths", LENGTHS, "--gpus", "8,many"], "--gpus is '8,many'"),
        (["--lengths", LENGTHS, "--gpus", "1"], "1 GPUs are too few"),
        (["--lengths", LENGTHS, "--lag", "-1"], "--lag holds -1"),
        (["--lengths", LENGTHS, "--generator-share", "1"], "a generator share is 1.0"),
        (["--lengths", LENGTHS, "--steps", "0"], "number of steps to measure is 0"),
        (["--lengths", LENGTHS, "--push-s", "-1"], "push_s is -1.0"),
        (["--lengths", LENGTHS, "--prompt-tokens", "-1"], "prompt_tokens is -1"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, options: list[str], told: str) -> None:
    result = invoke(config(tmp_path), *options)
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.stderr.split()) and "Traceback" not in result.output
