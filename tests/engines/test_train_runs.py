"""Whole jobs through `import grpo` and the command line: cold start, training, Ctrl-C, resume, and what they leave."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from docs_pages import unpack
from setups_for_tests import SPEED
from transformers import AutoModelForCausalLM

from grpo.report.rollout_store import stored_steps
from grpo.run import checkpoint
from rewards.verdict import Status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 5
ROOT = Path(__file__).resolve().parents[2]
# Wall-clock figures differ between runs; everything else must not.
TIMED = ("time", "time/", "throughput/", "verifier/", *(f"learner/{name}" for name in SPEED))


COMMAND_LINE = "from grpo.cli.app import app; app()"
FACE = """
import sys
import grpo
job, *config = sys.argv[1:]
print(getattr(grpo, job)(grpo.load_config(*config), show=True).summary)
"""


def grpo(*arguments: str, folder: Path = ROOT, program: str = COMMAND_LINE) -> subprocess.Popen[str]:
    """Start a program in a process group of its own, as a shell does: Ctrl-C goes to all of the group."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    return output


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith(TIMED)} for line in metrics(folder)]


@pytest.fixture(scope="module")
def cold_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's cold start, too short to be any good."""
    folder = tmp_path_factory.mktemp("sft")
    small = ["policy.new.hidden_size=64", "policy.new.heads=2", "policy.new.key_value_heads=1"]
    brief = [
        "learner.ranks=1",
        "sft.steps=60",
        "sft.checkpoint_every=30",
        "data.options.count=2000",
        "learner.warmup_steps=5",
    ]
    output = finished(grpo("sft", "configs/quickstart_sft.yaml", f"run.folder={folder}", *small, *brief, program=FACE))
    assert "60 steps" in output
    losses = [line["learner/loss"] for line in metrics(folder)]
    assert losses[-1] < 0.6 * losses[0], "supervised fine-tuning must learn"
    return folder


def training(cold_start: Path, folder: Path, *more: str) -> list[str]:
    """A short run, with two verifiers so that even a poor policy's completions differ in their rewards."""
    answer, form = "{name: answer, use: numeric}", "{name: form, use: format, weight: 0.5, options: {tags: [answer]}}"
    return [
        "train",
        "configs/quickstart.yaml",
        f"policy.path={cold_start / 'policy'}",
        f"run.folder={folder}",
        f"train.steps={STEPS}",
        "rollout.prompts_per_step=8",
        "rollout.max_completion_tokens=40",
        "evaluation.every=2",
        "evaluation.data.options.count=16",
        f"verifiers=[{answer}, {form}]",
        "learner.ranks=1",
        "generator.replicas=2",
        *more,
    ]


@pytest.fixture(scope="module")
def uninterrupted(cold_start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, finished(grpo(*training(cold_start, folder), program=FACE))


def test_a_run_leaves_all_it_promises(uninterrupted: tuple[Path, str]) -> None:
    folder, output = uninterrupted
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert "eval/accuracy" in lines[0] and "eval/accuracy" in lines[2] and "eval/accuracy" in lines[STEPS]
    for line in lines[1:]:
        assert line["rollout/groups"] == 8
        assert line["rollout/failed_verdicts"] == 0
        assert line["sync/probe_mean_difference"] < 2e-4
        for name in ("answer", "form"):
            assert sum(line[f"verdict/{name}/{status}"] for status in Status) == pytest.approx(1.0)
    # Both minibatches come from one sampling: the first is on-policy, so the mean divergence stays tiny.
    divergences = [line["learner/mismatch_kl"] for line in lines if "learner/mismatch_kl" in line]
    assert divergences and all(0 <= divergence < 0.05 for divergence in divergences)
    assert any(line["learner/gradient_norm"] > 0 for line in lines[1:]), "some group must differ in its rewards"
    assert list(stored_steps(folder)) == list(range(1, STEPS + 1))
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "figures" / "overview.png").stat().st_size > 10_000
    assert list((folder / "tensorboard").iterdir())
    assert "held-out accuracy" in output and "completions/s" in output
    newest = checkpoint.latest(folder)
    assert newest is not None and newest.step == STEPS
    AutoModelForCausalLM.from_pretrained(newest.policy)
    logs = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "logs").glob("*.log")}
    assert set(logs) == {"driver", "learner-0", "generator-0", "generator-1", "verifiers"}
    digest = hashlib.sha256((folder / "config.yaml").read_bytes()).hexdigest()
    said = [f"has the SHA-256 {digest}", "starting Ray: ", f" step {STEPS}: reward/mean ", "the job has ended"]
    said += [f"policy version {step} is pushed and proven: 2 generators" for step in range(STEPS + 1)]
    said += [
        f"the checkpoint of step {STEPS} is whole",
        f"its log: {(folder / 'logs' / 'history').absolute()}/learner-0.",
    ]
    assert [line for line in said if line not in logs["driver"]] == []
    assert "optimizer step 10: " in logs["learner-0"] and "wrote a checkpoint" in logs["learner-0"]
    for generator in ("generator-0", "generator-1"):
        assert "the engine is up" in logs[generator] and f"policy version {STEPS}" in logs[generator]
    assert "workers judge for answer, form" in logs["verifiers"]
    assert not any(" ERROR " in text or " CRITICAL " in text for text in logs.values())
    assert not any("<answer>" in text for text in logs.values()), "what the policy wrote is not logged"


def test_stopped_by_ctrl_c_and_resumed_it_is_the_same_run(
    cold_start: Path, uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "interrupted"
    process = grpo(*training(cold_start, folder))
    waited = time.monotonic()
    while len(metrics(folder)) < 3:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() - waited < 400, "no second step in 400 s"
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family, "actors run in processes of their own"
    os.killpg(process.pid, signal.SIGINT)
    output = finished(process)
    assert "stopping after this step" in output
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, [one.cmdline() for one in alive]
    stopped = checkpoint.latest(folder)
    assert stopped is not None and 2 <= stopped.step < STEPS

    output = finished(grpo(*training(cold_start, folder, "resume=auto")))
    assert f"resuming from step {stopped.step}" in output
    for resumed, whole in zip(untimed(folder), untimed(uninterrupted[0]), strict=True):
        differing = {name: (resumed.get(name), value) for name, value in whole.items() if resumed.get(name) != value}
        assert resumed.keys() == whole.keys() and not differing, (stopped.step, whole["step"], differing)
    again = finished(grpo(*training(cold_start, folder, "resume=auto")))
    assert "held-out accuracy" in again and "starting" not in again, "a complete run only shows its table"


@pytest.mark.long
def test_a_resumed_run_survives_the_death_of_its_only_generator(
    cold_start: Path, uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    """It dies when the checkpoint that the run was resumed from is deleted, so that its successor cannot load that."""
    folder = tmp_path / "bereft"
    shutil.copytree(uninterrupted[0], folder)
    resumed_from = checkpoint.latest(folder)
    assert resumed_from is not None and resumed_from.step == STEPS
    more = ["resume=auto", f"train.steps={STEPS + 4}", "train.checkpoint_every=1", "train.keep_checkpoints=1"]
    process = grpo(
        *training(
            cold_start, folder, *more, "generator.replicas=1", "generator.max_restarts=1", "weight_sync.sparse=true"
        )
    )
    waited = time.monotonic()
    while resumed_from.folder.exists():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() - waited < 400, "no step in 400 s"
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    (generator,) = [one for one in family if any("GeneratorActor" in part for part in one.cmdline())]
    generator.kill()
    output = " ".join(finished(process).split())
    assert output.count("generator 0 was restarted: its process died; ") == output.count("was restarted") == 1
    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(STEPS + 5))
    assert all(line["sync/probe_mean_difference"] < 2e-4 and line["rollout/groups"] == 8 for line in lines[1:])
    # Only what changed was pushed, but to the new one.
    after = lines[STEPS + 1 :]
    assert all(line["sync/pushed_mib"] > 0 and line["sync/changed_share"] <= 1 for line in after)
    assert min(line["sync/changed_share"] for line in after) < 1


@pytest.mark.long
def test_an_objective_of_everything_runs_and_resumes(cold_start: Path, tmp_path: Path) -> None:
    """A preset with much beside it: reference in the reward, refreshed; recomputed ratios, corrected; refills."""
    objective = [
        f"algorithm.{choice}"
        for choice in (
            "preset=rloo",
            "ratio=sequence",
            "aggregation=prompt_mean",
            "reference_refresh=1",
            "proximal=recomputed",
            "importance_weight=token",
            "mismatch_mask=geometric",
            "entropy_coefficient=0.001",
            "refill_rounds=1",
        )
    ]
    objective.append("generator.replicas=1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    three = (*objective, "train.steps=3", "train.checkpoint_every=2")
    finished(grpo(*training(cold_start, whole, *three)))
    lines = metrics(whole)[1:]
    for line in lines:
        assert line["learner/skipped_steps"] == 0.0
        assert line["learner/masked_share"] == 0.0, "sampler and learner agree"
        assert line["learner/importance_weight"] == pytest.approx(1.0, abs=1e-3)
        assert line["learner/ratio_p50"] == pytest.approx(1.0, abs=0.05)
        assert line["rollout/groups"] == 8 + line["rollout/refilled_groups"]
        assert line["rollout/zero_variance_share"] == 0 or line["rollout/refilled_groups"] > 0
    # The reference is refreshed after every step, and so is what sampled the next.
    assert all(line["rollout/kl_reference"] == pytest.approx(0.0, abs=1e-4) for line in lines)
    assert "advantage: leave_one_out" in (whole / "config.yaml").read_text()

    # What a run that was killed in its third step leaves.
    shutil.copytree(whole, parts)
    last = checkpoint.latest(parts)
    assert last is not None and last.step == 3
    shutil.rmtree(last.folder)
    output = finished(grpo(*training(cold_start, parts, *three, "resume=auto")))
    assert "resuming from step 2" in output
    held = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in untimed(whole)]
    assert [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in untimed(parts)] == held


def test_a_folder_in_use_is_not_written_over(cold_start: Path, uninterrupted: tuple[Path, str]) -> None:
    process = grpo(*training(cold_start, uninterrupted[0]))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "already holds a run" in output and "resume=auto" in output and "Traceback" not in output


@pytest.mark.long
def test_the_run_of_the_data_page(cold_start: Path, tmp_path: Path) -> None:
    unpack(tmp_path)
    output = finished(grpo("train", "mine.yaml", f"policy.path={cold_start / 'policy'}", folder=tmp_path))
    assert "2 steps" in output
    lines = metrics(tmp_path / "runs" / "mine")
    assert [line["step"] for line in lines][-2:] == [1, 2]
    assert lines[-1]["rollout/groups"] == 2 and lines[-1]["rollout/failed_verdicts"] == 0
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


@pytest.mark.long
def test_the_cold_start_of_the_data_page(cold_start: Path, tmp_path: Path) -> None:
    unpack(tmp_path)
    rows = [{"question": f"{n}+{n}=?", "worked": f"<answer>{2 * n}</answer>"} for n in range(32)]
    (tmp_path / "worked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = (f"policy.path={cold_start / 'policy'}", "sft.steps=2", "sft.batch_size=8", "sft.max_tokens=64")
    finished(grpo("sft", "mine_sft.yaml", *small, folder=tmp_path))
    assert [line["step"] for line in metrics(tmp_path / "runs" / "mine_sft")] == [1, 2]
    # Where the page says that the run finds it.
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "mine_sft" / "policy")


@pytest.mark.long
def test_a_profile_says_where_the_time_goes(cold_start: Path, tmp_path: Path) -> None:
    unpack(tmp_path)
    policy = f"policy.path={cold_start / 'policy'}"
    output = finished(grpo("profile", "mine.yaml", policy, "--steps", "1", folder=tmp_path))
    assert "A step, mean of 1" in output and "aten::mm" in output
    assert "learner rank 0 (the busiest of 1)" in output and "generator 0 (the busiest of 1)" in output
    traces = tmp_path / "runs" / "mine_profile_1" / "traces"
    for name in ("learner_0.json.gz", "generator_0.json.gz"):
        events = json.loads(gzip.decompress((traces / name).read_bytes()))["traceEvents"]
        assert any(event.get("name") == "aten::mm" or "onednn_mm" in str(event.get("name")) for event in events), name
    assert json.loads((traces / "ray_timeline.json").read_text())
    assert not (tmp_path / "runs" / "mine").exists()
