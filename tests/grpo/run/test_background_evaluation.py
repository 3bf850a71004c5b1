"""Evaluation beside training, with a stand-in for the process that evaluates."""

from __future__ import annotations

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_run import silent_progress
from tiny_policy import make_tiny_policy
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import DatasetConfig, EvaluationConfig, TrainConfig
from grpo.config.file import load
from grpo.data.prompts import PromptSet, load_prompts
from grpo.data.sources import load_sources, merged
from grpo.evaluation.problems import load_problems, load_task
from grpo.policy.stored import load_tokenizer
from grpo.report.metrics_log import read_history
from grpo.run import background_evaluation as module
from grpo.run import checkpoint
from grpo.run.background_evaluation import BackgroundEvaluation
from grpo.run.held_out import HeldOut
from grpo.train_loop import train
from grpo.types import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

# What `grpo eval` would leave: accuracy is the number of optimizer steps that made the policy, divided by 100.
STAND_IN = """
import json, pathlib, sys, time
arguments = sys.argv[1:]
assert arguments[1:3] == ["eval", "run"], arguments
policy, out = pathlib.Path(arguments[3]), pathlib.Path(arguments[7])
state = json.loads((policy / "config.json").read_text())
hold = out.parent / "hold"
while hold.exists():
    time.sleep(0.02)
if (out.parent / "fail").exists():
    sys.exit("no such verifier")
(out / "held_out").mkdir(exist_ok=True)
found = {"estimates": {"accuracy": {"value": state["steps"] / 100}, "completion_tokens": {"value": 9.0}},
         "statuses": {"timeout": 1, "error": 0}}
(out / "held_out" / "metrics.json").write_text(json.dumps(found))
print("evaluated", policy)
"""


REAL_PROGRAM = module._PROGRAM


class Learner(FakeLearner):
    def export(self, folder: str) -> None:
        super().export(folder)
        (Path(folder) / "config.json").write_text(json.dumps({"steps": self.optimizer_steps}))


def rows(count: int) -> Iterator[dict[str, str]]:
    for number in range(count):
        yield {"prompt": f"{number}+{number}=?", "answer": str(number % 3)}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


def settings_of(folder: Path, policy: Path, resume: str = "never", **evaluation: Any) -> TrainConfig:
    data = {"generator": f"{__name__}:rows", "options": {"count": 12}}
    held_out = {"generator": f"{__name__}:rows", "options": {"count": 11}, "template": "Say {prompt} {column}"}
    path = folder.with_suffix(".yaml")
    path.write_text(
        yaml.safe_dump(
            {
                "run": {"folder": str(folder), "resume": resume},
                "policy": {"path": str(policy)},
                "data": data,
                "verifiers": [{"name": "answer", "use": "numeric", "options": {"find": ["answer_tag"]}}],
                "rollout": {
                    "prompts_per_step": 4, "group_size": 2, "max_prompt_tokens": 18, "max_completion_tokens": 20,
                },
                "evaluation": {"every": 2, "mode": "background", "data": held_out, **evaluation},
                "train": {"steps": 6, "checkpoint_every": 2},
                "report": {"trackers": []},
            }
        )
    )  # fmt: skip
    return load(TrainConfig, path)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROGRAM", STAND_IN)


def run(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch, **generators: Any) -> FakeCluster:
    cluster = FakeCluster(Learner(), FakeGenerators(settings.max_sequence_tokens, **generators))
    monkeypatch.setattr("grpo.run.training.Cluster", cluster)
    train(settings, silent_progress())
    return cluster


def evaluated(folder: Path) -> dict[int, float]:
    curve = read_history(folder).curve("eval/accuracy")
    return dict(zip(curve.steps, curve.values, strict=True))


def test_numbers_come_in_at_the_step_of_the_policy_that_they_measure(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    cluster = run(settings_of(folder, policy), monkeypatch)
    # An optimizer step a training step: what was measured is the policy of that step, and the last is waited for.
    assert evaluated(folder) == {0: 0.0, 2: 0.02, 4: 0.04, 6: 0.06}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rollout/accuracy" in line] == [1, 2, 3, 4, 5, 6]
    late = [line for line in lines if "eval/accuracy" in line]
    assert {"eval/completion_tokens_mean", "eval/failed_verdicts", "time/eval_s"} <= set(late[0])
    assert not list((folder / "evaluations").glob("*/policy")), "what is reported is not owed"
    assert cluster.generators is not None
    assert all(samples == 2 for samples, _ in cluster.generators.asked), "the run's own generators evaluate nothing"


def test_training_goes_on_meanwhile(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, hold = tmp_path / "run", tmp_path / "run" / "evaluations" / "hold"
    hold.parent.mkdir(parents=True)
    hold.touch()
    reached: list[int] = []

    def let_go(version: int, samples: int) -> None:
        reached.append(version)
        if version == 4:
            hold.unlink(missing_ok=True)

    run(settings_of(folder, policy), monkeypatch, on_sampled=let_go)
    assert 4 in reached and evaluated(folder) == {0: 0.0, 2: 0.02, 4: 0.04, 6: 0.06}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    at = [line["step"] for line in lines]
    assert at.index(4) < at.index(0, 1), "the evaluation of step 0 came in after step 4"


def test_the_task_is_what_training_would_ask(tmp_path: Path, policy: Path) -> None:
    settings = settings_of(tmp_path / "run", policy)
    assert settings.evaluation is not None
    held_out = load_prompts(settings.evaluation.data, load_tokenizer(str(policy)), max_tokens=18)
    assert held_out.dropped == 1, "10+10=? is too long"
    BackgroundEvaluation(settings, held_out, "cpu")
    task = load_task(str(tmp_path / "run" / "evaluations" / "held_out.yaml"))
    problems = load_problems(task)
    # No row has this column, so its braces are text.
    assert [problem.question for problem in problems] == [prompt.text for prompt in held_out.prompts]
    assert problems[3].question == "Say 3+3=? {column}" and problems[4].reference == "1"
    assert (task.sampling.k, task.sampling.temperature, task.sampling.max_tokens) == (1, 0.0, 20)
    assert not task.talks


def test_the_task_has_the_conversations_of_the_run(tmp_path: Path, policy: Path) -> None:
    answers = {"tools": ["python"], "environment": {"use": "maze"}, "conversation": {"max_turns": 3}}
    settings = TrainConfig.model_validate(settings_of(tmp_path / "run", policy).model_dump(mode="json") | answers)
    assert settings.problems() == [] and settings.evaluation is not None
    held_out = load_prompts(settings.evaluation.data, load_tokenizer(str(policy)), max_tokens=18)
    BackgroundEvaluation(settings, held_out, "cpu")
    task = load_task(str(tmp_path / "run" / "evaluations" / "held_out.yaml"))
    assert (task.tools, task.environment, task.conversation) == (
        settings.tools,
        settings.environment,
        settings.conversation,
    )
    assert task.talks and task.max_prompt_tokens == settings.rollout.max_prompt_tokens


def test_the_task_asks_the_held_out_questions_of_each_source_in_its_template(tmp_path: Path, policy: Path) -> None:
    plain = settings_of(tmp_path / "run", policy).model_dump(mode="json")
    both = {"generator": f"{__name__}:rows", "options": {"count": 9}, "validation": 3}
    sources = [{"name": "said", "template": "Say {prompt}", **both}, {"name": "bare", **both}]
    evaluation = {"every": 2, "mode": "background"}
    settings = TrainConfig.model_validate(plain | {"data": {"sources": sources}, "evaluation": evaluation})
    assert settings.problems() == []
    loaded = load_sources(settings.data, load_tokenizer(str(policy)), max_tokens=18)
    held_out = merged([source.held_out for source in loaded.values() if source.held_out])
    BackgroundEvaluation(settings, held_out, "cpu")
    problems = load_problems(load_task(str(tmp_path / "run" / "evaluations" / "held_out.yaml")))
    assert [problem.question for problem in problems] == [prompt.text for prompt in held_out.prompts]
    assert [problem.question.startswith("Say ") for problem in problems] == [True] * 3 + [False] * 3


def test_nested_references_are_asked_for_and_chat_messages_are_refused(tmp_path: Path, policy: Path) -> None:
    settings = settings_of(tmp_path / "run", policy)
    data = DatasetConfig(path=str(tmp_path / "rows.jsonl"), reference="truth.value")
    evaluation = EvaluationConfig(data=data, mode="background")
    nested = settings.model_copy(update={"evaluation": evaluation})
    for question in ("1+1=?", [{"role": "user", "content": "1+1=?"}]):
        row = {"prompt": question, "truth": {"value": "2"}}
        held_out = PromptSet((Prompt("p0", "1+1=?", (1,), "2", row),), 0)
        if isinstance(question, str):
            BackgroundEvaluation(nested, held_out, "cpu")
            (problem,) = load_problems(load_task(str(tmp_path / "run" / "evaluations" / "held_out.yaml")))
            assert (problem.question, problem.reference) == ("1+1=?", "2")
        else:
            with pytest.raises(ValueError, match=r"holds chat messages.*use evaluation\.mode=inline"):
                BackgroundEvaluation(nested, held_out, "cpu")


def test_a_failed_evaluation_ends_the_run_and_a_resumed_one_makes_it_again(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fail = tmp_path / "run", tmp_path / "run" / "evaluations" / "fail"

    def break_it(version: int, samples: int) -> None:
        if version == 2:
            fail.touch()

    with pytest.raises(RuntimeError, match=r"evaluation of step \d ended with exit code 1:\n(.|\n)*no such verifier"):
        run(settings_of(folder, policy), monkeypatch, on_sampled=break_it)
    owed = {path.parent.name for path in (folder / "evaluations").glob("*/policy")}
    assert owed
    fail.unlink()
    run(settings_of(folder, policy, resume="auto"), monkeypatch)
    assert evaluated(folder) == {0: 0.0, 2: 0.02, 4: 0.04, 6: 0.06}


def test_a_run_stopped_while_it_waits_for_its_last_numbers_asks_for_them_on_resume(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    settings = settings_of(folder, policy)

    def interrupted(held_out: HeldOut, *, wait: bool = False) -> None:
        # Whoever owes too much waits earlier too; here it is the wait after the last checkpoint.
        found = checkpoint.latest(folder)
        if wait and found and found.step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(HeldOut, "report_late", interrupted)
        run(settings, stopped)
    assert 6 not in evaluated(folder)
    again = ["train", str(folder.with_suffix(".yaml")), "run.resume=auto"]
    answers = []
    for _ in range(2):
        cluster = FakeCluster(Learner(), FakeGenerators(settings.max_sequence_tokens))
        monkeypatch.setattr("grpo.run.training.Cluster", cluster)
        answers.append(CliRunner(env={"COLUMNS": "200"}).invoke(app, again))
        assert answers[-1].exit_code == 0, answers[-1].output
        # Nothing is owed the second time, and nothing is started.
        assert cluster.closed == (len(answers) == 1)
    assert evaluated(folder) == {0: 0.0, 2: 0.02, 4: 0.04, 6: 0.06}
    assert "step 6, evaluated in the background" in answers[0].output


def held(tmp_path: Path, policy: Path, **evaluation: Any) -> BackgroundEvaluation:
    settings = settings_of(tmp_path / "run", policy, **evaluation)
    assert settings.evaluation is not None
    prompts = load_prompts(settings.evaluation.data, load_tokenizer(str(policy)), max_tokens=18)
    background = BackgroundEvaluation(settings, prompts, "cpu")
    (background.folder / "hold").touch()
    background.add(3, Learner(optimizer_steps=3).export)
    return background


def test_what_is_under_way_ends_with_the_run_and_is_owed(tmp_path: Path, policy: Path) -> None:
    background = held(tmp_path, policy)
    (child,) = [one for one in psutil.Process().children() if "--task" in one.cmdline()]
    assert list(background.finished(wait=False)) == [] and background.owed == 1
    background.close()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    (background.folder / "hold").unlink()
    assert [(late.step, late.metrics["eval/accuracy"]) for late in background.finished(wait=True)] == [(3, 0.03)]
    assert background.owed == 0
    background.add(5, Learner(optimizer_steps=5).export)
    background.forget_after(4)
    assert background.owed == 0


def test_an_evaluation_has_a_deadline(tmp_path: Path, policy: Path) -> None:
    background = held(tmp_path, policy, deadline_s=0.2)
    with pytest.raises(TimeoutError, match=r"step 3 takes longer than evaluation\.deadline_s=0\.2; its log is"):
        list(background.finished(wait=True))
    background.close()


def test_what_does_not_fit_is_told(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.devices are for evaluation\.mode=background"):
        settings_of(tmp_path / "run", policy, mode="inline", devices="7")
    settings = settings_of(tmp_path / "run", policy)
    with pytest.raises(ValueError, match=r"needs GPUs that training leaves free; name them with evaluation\.devices"):
        BackgroundEvaluation(settings, load_prompts(settings.data, load_tokenizer(str(policy)), max_tokens=18), "cuda")


def test_the_evaluating_process_finds_what_it_imports() -> None:
    imports = [node for node in ast.walk(ast.parse(REAL_PROGRAM)) if isinstance(node, ast.ImportFrom)]
    assert len(imports) == 2
    for node in imports:
        assert node.module and hasattr(importlib.import_module(node.module), node.names[0].name), ast.unparse(node)


def test_the_evaluating_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """However that ends: here by SIGKILL."""
    # The real program, as far as the line that binds it.
    program = REAL_PROGRAM.partition("from grpo.cli.app")[0] + "import time\ntime.sleep(60)\n"
    starter = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {program!r}, str(os.getpid())], process_group=0)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    child.wait(10)
