"""The GPU check itself, tried on a CPU: its parts notice faults, and it outlives parts that fail, hang or die."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import gpu_check
from declared_needs import link_closure
from gpu_outcomes import Outcome, table
from gpu_parts import PARTS, chosen

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "gpu" / "gpu_check.py"
# Parts that only a GPU has: FlashAttention, Liger's kernels, and pushes between GPUs.
ONLY_GPU = {
    name for name in PARTS if name.endswith(("varlen", "whole", "16k", "nccl", "-2", "-3", "-4", "kernels", "trial"))
}
# What runs if time is left.
LATER = ("flash-3", "flash-4", "1.7b-auto", "1.7b-16k-auto", "trial")

FAKE_WORKER = """
import json, os, sys, time
descriptor = int(sys.argv[sys.argv.index("--answers") + 1])
def answer(**content):
    os.write(descriptor, (json.dumps(content) + "\\n").encode())
answer(state="ready", machine={"device": "a CPU", "gpus": 0, "torch": "0", "process": os.getpid()})
for line in sys.stdin:
    part = json.loads(line)["part"]
    if part == "losses":
        answer(state="failed", note="Wrong: loss off")
        sys.exit(1)
    if part == "presets":
        os._exit(7)
    if part == "head":
        time.sleep(60)
    if part == "steps":
        answer(state="skipped", note="not here")
        continue
    kept = 1 << 30 if part == "checkpointing" else 0
    spent = part == "push"
    answer(state="passed", note=str(os.getpid()), figures={"mfu": 0.25}, kept_bytes=kept, spent=spent)
"""


def run(*words: str, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(SCRIPT), *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def read(path: Path) -> dict[str, dict[str, Any]]:
    return {one["part"]: one for one in json.loads(path.read_text())["parts"]}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, dict[str, Any]]]]:
    """Runs the check with a worker that plays the parts."""
    worker = tmp_path / "worker.py"
    worker.write_text(FAKE_WORKER)
    monkeypatch.setattr(gpu_check, "WORKER", worker)

    def call(*words: str) -> tuple[int, dict[str, Any]]:
        files = ["--json", str(tmp_path / "out.json"), "--log", str(tmp_path / "log")]
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu", "--tiny", *files, *words])
        return gpu_check.main(), read(tmp_path / "out.json")

    yield call


def test_other_parts_run_after_a_part_that_fails_dies_or_leaves_memory(
    fake: Callable[..., tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, outcomes = fake("attention", "losses", "presets", "checkpointing", "steps", "sleep", "push", "gsm8k")
    assert status == 1
    assert {name: one["state"] for name, one in outcomes.items()} == {
        "attention": "passed",
        "losses": "failed",
        "presets": "failed",
        "checkpointing": "passed",
        "steps": "skipped",
        "sleep": "passed",
        "push": "passed",
        "gsm8k": "passed",
    }
    assert outcomes["losses"]["note"] == "Wrong: loss off"
    assert outcomes["presets"]["note"] == "its process ended with status 7"
    # After a part that fails, leaves memory or spends its process, the next part has a new process.
    processes = [outcomes[name]["note"] for name in ("attention", "checkpointing", "sleep", "gsm8k")]
    assert len(set(processes)) == 4 and outcomes["push"]["note"] == outcomes["sleep"]["note"]
    printed = capsys.readouterr().out
    assert "5 passed, 2 failed, 1 skipped" in printed and "25.0%" in printed


def test_a_run_without_failures_has_status_zero_and_one_process(
    fake: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    status, outcomes = fake("attention", "sleep")
    assert status == 0 and outcomes["attention"]["note"] == outcomes["sleep"]["note"]


def test_what_only_skips_is_no_success(fake: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    status, outcomes = fake("steps", "push-nccl")
    assert status == 1 and outcomes["push-nccl"]["note"] == "it needs a GPU"


def test_a_part_that_hangs_is_ended_and_the_rest_is_skipped_for_want_of_time(
    fake: Callable[..., tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {name: PARTS[name].__class__("checks", 0.1, "a:b", "") for name in ("attention", "head")}
    monkeypatch.setattr(gpu_check, "PARTS", {**PARTS, **quick})
    status, outcomes = fake("attention", "head", "sleep", "--minutes", "0.05")
    assert status == 1 and outcomes["attention"]["state"] == "passed"
    assert re.fullmatch(r"it did not end within \d s", outcomes["head"]["note"])
    assert outcomes["sleep"]["note"] == "it takes about 25 s, and 0 s of 0.05 min are left"
    assert "Run them with: make gpu-check PARTS=sleep" in capsys.readouterr().out


def test_an_error_in_a_part_is_told_with_its_stack_in_the_log(tmp_path: Path) -> None:
    broken = (
        "import sys, gpu_parts, gpu_worker; gpu_parts.PARTS['head'] = gpu_parts.Part('checks', 1, 'math:sqrt', '');"
        "sys.argv = ['gpu_worker.py', *sys.argv[1:]]; gpu_worker.main()"
    )
    mine, theirs = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", broken, "--device", "cpu", "--folder", str(tmp_path), "--answers", str(theirs)],
        cwd=SCRIPT.parent,
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parent}:{ROOT}"},
        input='{"part": "head", "seconds": 1}\n{"part": "head", "seconds": 1}\n',
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=(theirs,),
        check=False,
    )
    os.close(theirs)
    with os.fdopen(mine) as answers:
        ready, failed = map(json.loads, answers)
    assert ready["machine"]["torch"] == torch.__version__
    assert failed["state"] == "failed" and failed["note"].startswith("TypeError: must be real number")
    assert done.returncode == 1 and "Traceback" in done.stdout


def test_names_select_parts_and_groups_in_the_order_of_the_list() -> None:
    assert chosen([]) == list(PARTS)
    assert chosen(["engines", "head"]) == ["head", "push", "push-nccl", "gsm8k"]
    assert list(PARTS)[-1] == "gsm8k"
    with pytest.raises(ValueError, match="no part is called hed; choose from checks, engines, measures, attention"):
        chosen(["hed"])


def test_the_list_starts_nothing_and_names_every_part() -> None:
    done = run("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(PARTS)
    # What does not need vLLM fits into the time that the check takes by default, with the start of torch.
    assert (
        sum(part.seconds for name, part in PARTS.items() if part.group != "engines" and name not in LATER)
        <= 6 * 60 - 15
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    done = run("head", "--json", str(tmp_path / "out.json"), "--log", str(tmp_path / "log"))
    assert done.returncode == 1 and "sees no GPU" in done.stderr and "--device cpu --tiny" in done.stderr


def test_the_table_folds_long_notes_and_has_columns_only_for_what_was_measured() -> None:
    outcomes = [Outcome("head", "failed", 1.25, "word " * 30), Outcome("sleep", "skipped", 0.0, "not here")]
    lines = table(outcomes).splitlines()
    assert lines[0].split() == ["part", "result", "s", "seen"] and max(map(len, lines)) < 110
    assert lines[2].split()[:4] == ["head", "failed", "1.2", "word"] and lines[-1].split() == [
        "sleep",
        "skipped",
        "not",
        "here",
    ]
    measured = Outcome("0.6b-sdpa", "passed", 9.0, "", {"mfu": 0.315, "peak_gib": 12.34})
    assert table([measured]).splitlines()[2].split() == ["0.6b-sdpa", "passed", "9.0", "31.5%", "12.3"]


def shifted(module: Any, name: str, by: float) -> Callable[[pytest.MonkeyPatch], None]:
    """A fault: a function's tensor is a little too large."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: right(*a, **k) * by)

    return plant


def faults() -> dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]]:
    """For each part of numbers: a fault that it must notice, and a word of the message."""
    import grpo.algorithm.losses
    import grpo.policy.attention
    import grpo.policy.head

    return {
        "attention": ("dQ|output", shifted(grpo.policy.attention, "scaled_dot_product_attention", 1.001)),
        "losses": ("log-prob", shifted(grpo.policy.attention, "scaled_dot_product_attention", 1.01)),
        "head": ("values|gradient", shifted(grpo.policy.head, "_logits", 1.001)),
    }


@pytest.mark.parametrize("part", ["attention", "losses", "head"])
def test_a_part_notices_a_fault(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_context import Context, Wrong

    word, plant = faults()[part]
    context = Context(torch.device("cpu"), True, tmp_path, 10.0)
    PARTS[part].run()(context)
    plant(monkeypatch)
    with pytest.raises(Wrong, match=word):
        PARTS[part].run()(context)


def test_presets_and_checkpointing_notice_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_numbers
    from gpu_context import Context, Wrong

    context, right = Context(torch.device("cpu"), True, tmp_path, 10.0), gpu_numbers.policy_terms
    calls = []

    def every_other_is_wrong(*arguments: Any) -> Any:
        calls.append(0)
        terms = right(*arguments)
        return terms if len(calls) % 2 else dataclasses.replace(terms, loss_sum=terms.loss_sum * 1.001)

    with monkeypatch.context() as patched:
        patched.setattr(gpu_numbers, "policy_terms", every_other_is_wrong)
        with pytest.raises(Wrong, match="gradient of grpo"):
            gpu_numbers.presets(context)
    load = gpu_numbers.load_policy

    def never_checkpoints(*arguments: Any) -> Any:
        model = load(*arguments)
        model.gradient_checkpointing_disable()
        return model

    monkeypatch.setattr(gpu_numbers, "load_policy", never_checkpoints)
    with pytest.raises(Wrong, match="computed 0 of 2 layers again"):
        gpu_numbers.checkpointing(context)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """An interpreter, and a folder of links to torch, transformers and DeepSpeed with what they need, and no more."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False)
    packages = folder / "packages"
    link_closure(("torch", "transformers", "deepspeed"), packages)
    yield str(folder / "venv" / "bin" / "python"), str(packages)


@pytest.mark.slow
def test_checks_and_measures_need_torch_transformers_and_deepspeed_alone(
    bare_python: tuple[str, str], tmp_path: Path
) -> None:
    python, packages = bare_python
    lacks = "import importlib.util as u; print([n for n in ('ray', 'vllm', 'xxhash', 'pytest') if u.find_spec(n)])"
    environment = {"PYTHONPATH": packages}
    assert subprocess.check_output([python, "-c", lacks], env={**os.environ, **environment}, text=True) == "[]\n"
    words = ("--device", "cpu", "--tiny", "--json", str(tmp_path / "out.json"), "--log", str(tmp_path / "log"))
    done = run(*words, python=python, **environment)
    outcomes = read(tmp_path / "out.json")
    assert done.returncode == 0, done.stdout + (tmp_path / "log").read_text()[-3000:]
    states = {name: one["state"] for name, one in outcomes.items()}
    lacking = {"push", "gsm8k"}
    assert states == {name: "skipped" if name in ONLY_GPU | lacking else "passed" for name in PARTS}
    assert outcomes["push"]["note"] == "it needs vllm and ray, which this environment lacks"
    assert "stages 1, 2 (3 needs accelerate)" in outcomes["steps"]["note"]
    measured = outcomes["1.7b-sdpa"]["figures"]
    assert measured["tokens_per_s"] > 0 and measured["planned_gib"] > 0 and measured["steps"] == 3


@pytest.mark.slow
def test_stage_3_and_the_engines_parts_pass_on_a_cpu(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tiny", "--json", str(tmp_path / "out.json"), "--log", str(tmp_path / "log"))
    done = run("steps", "engines", *words)
    assert done.returncode == 0, done.stdout + (tmp_path / "log").read_text()[-3000:]
    outcomes = read(tmp_path / "out.json")
    assert "stages 1, 2, 3 equal" in outcomes["steps"]["note"]
    assert outcomes["push"]["note"].startswith("2 pushes over gloo proven")
    assert outcomes["gsm8k"]["figures"]["step_s"] > 0
