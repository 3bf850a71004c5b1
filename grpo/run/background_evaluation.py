"""Evaluation beside training: a separate `grpo eval` process evaluates an earlier policy while training continues.

Each policy gets a new process. The policies are evaluated one after the other, in the order of steps. For step 10, the
folder `evaluations/step_000010` in the run's folder holds the output of `grpo eval`. The folder also holds the policy
until the results are reported. So a resumed run knows which evaluations are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo import files
from grpo.config import DatasetConfig, TrainConfig
from grpo.data.cells import cell
from grpo.data.prompts import PromptSet
from grpo.data.templates import fill
from grpo.package_finder import python_command
from grpo.report import run_files

TASK = "held_out"
# Columns of the task: the question in the template that training uses, and the reference of the question.
_ASKED, _REFERENCE = "asked", "reference_answer"
# The evaluation process ends when its parent process ends, for any reason.
_PROGRAM = """
import sys
from rewards.pool.nursery import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from grpo.cli.app import app
app()
"""
# Maximum number of policies that wait for their evaluation.
MOST_OWED = 3
_LOG_SHOWN = 2000
# Seconds that the evaluation may take to stop its verifiers and engines and to exit.
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Late:
    """The results of an earlier policy. Training has continued since that policy.

    Attributes:
        step: number of training steps that made the policy.
        metrics: the same metrics that an evaluation with `evaluation.mode=inline` returns.
        policy: folder of the policy, which is deleted afterwards.
    """

    step: int
    metrics: dict[str, float]
    policy: Path


class BackgroundEvaluation:
    """Evaluates exported policies, one after the other, while the caller does other work."""

    def __init__(self, settings: TrainConfig, held_out: PromptSet, device: Literal["cpu", "cuda"]) -> None:
        """Write the task. No process starts yet.

        Raises:
            ValueError: the run uses GPUs, but `evaluation.devices` does not name GPUs for the evaluation; or a question
                is not plain text.
        """
        evaluation = settings.evaluation
        assert evaluation is not None
        if device == "cuda" and evaluation.devices is None:
            raise ValueError(
                "evaluation.mode=background needs GPUs that training leaves free; name them with evaluation.devices, "
                'for example "7", or use evaluation.mode=inline'
            )
        self._settings, self._evaluation, self._device = settings, evaluation, device
        self.folder = Path(settings.run.folder) / run_files.EVALUATIONS
        self._running: tuple[int, subprocess.Popen[bytes], float] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_task(self.folder, settings, held_out)

    def forget_after(self, step: int) -> None:
        """Delete the policies of steps after `step`, because a resumed run makes these policies again."""
        for later in run_files.steps_in(self.folder):
            if later > step:
                shutil.rmtree(self._place(later))

    def add(self, step: int, export: Callable[[str], None]) -> None:
        """Add the policy of `step`, which `export` writes into a folder; if no evaluation runs, start one.

        If a stopped run already wrote results for the step, the step is evaluated again.
        """
        place = self._place(step)
        shutil.rmtree(place, ignore_errors=True)
        with files.whole_folder(place / run_files.POLICY) as partial:
            export(str(partial.absolute()))
        self._start_next()

    def finished(self, *, wait: bool) -> Iterator[Late]:
        """Yield the evaluations that ended since the last call. If `wait` is set, wait for all pending evaluations.

        Raises:
            RuntimeError: an evaluation has failed; the message holds the end of its log.
            TimeoutError: an evaluation takes longer than `evaluation.deadline_s`.
        """
        self._start_next()
        while self._running is not None:
            step, process, started = self._running
            remaining_s = max(0.0, self._evaluation.deadline_s - (time.monotonic() - started))
            try:
                status = process.wait(remaining_s if wait else 0.0)
            except subprocess.TimeoutExpired:
                if remaining_s > 0.0 and not wait:
                    return
                raise TimeoutError(
                    f"the evaluation of step {step} takes longer than evaluation.deadline_s="
                    f"{self._evaluation.deadline_s:g}; its log is {self._log(step)}"
                ) from None
            self._running = None
            if status != 0:
                log_end = self._log(step).read_text(encoding="utf-8", errors="replace")[-_LOG_SHOWN:].strip()
                raise RuntimeError(f"the evaluation of step {step} ended with exit code {status}:\n{log_end}")
            policy = self._place(step) / run_files.POLICY
            yield Late(step, self._metrics(step, time.monotonic() - started), policy)
            # The results are reported, so the policy of this step is not needed any more.
            shutil.rmtree(policy)
            self._start_next()

    @property
    def owed(self) -> int:
        """Number of policies that wait for their evaluation."""
        return sum(1 for _ in self._owed())

    def close(self) -> None:
        """End the running evaluation; the next start of the run continues it."""
        if self._running is None:
            return
        process = self._running[1]
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running = None

    def _start_next(self) -> None:
        owed = next(self._owed(), None)
        if self._running is not None or owed is None:
            return
        environment = dict(os.environ)
        if self._evaluation.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._evaluation.devices
        with self._log(owed).open("ab") as log:
            process = subprocess.Popen(
                [*python_command(_PROGRAM), str(os.getpid()), *self._arguments(owed)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C must reach only the run, which then ends this process. So this process gets a new process
                # group.
                process_group=0,
            )
        self._running = owed, process, time.monotonic()

    def _arguments(self, step: int) -> list[str]:
        settings, place = self._settings, self._place(step)
        generator = settings.generator.model_copy(update={"replicas": 1})
        values: dict[str, Any] = {
            "dtype": settings.policy.dtype,
            "workers": settings.verification.workers,
            "max_failure_share": settings.verification.max_failure_share,
            # Training has already checked the held-out rows and removed unusable rows.
            "check_golds": "off",
            "deadline_s": settings.rollout.deadline_s,
            "log_level": settings.report.log_level,
            "generator": generator.model_dump(mode="json"),
            "cluster": {"device": {"cpu": "cpu", "cuda": "gpu"}[self._device]},
        }
        overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
        task = str((self.folder / f"{TASK}.yaml").absolute())
        return ["eval", "run", str(place / run_files.POLICY), "--task", task, "--out", str(place), *overrides]

    def _metrics(self, step: int, seconds: float) -> dict[str, float]:
        results = json.loads((self._place(step) / TASK / "metrics.json").read_text(encoding="utf-8"))
        statuses = results["statuses"]
        return {
            "eval/accuracy": results["estimates"]["accuracy"]["value"],
            "eval/completion_tokens_mean": results["estimates"]["completion_tokens"]["value"],
            "eval/failed_verdicts": float(statuses["timeout"] + statuses["error"]),
            "time/eval_s": seconds,
        }

    def _owed(self) -> Iterator[int]:
        return (step for step in run_files.steps_in(self.folder) if (self._place(step) / run_files.POLICY).is_dir())

    def _place(self, step: int) -> Path:
        return _place(self.folder, step)

    def _log(self, step: int) -> Path:
        return self._place(step) / "log.txt"


def owes_evaluations(settings: TrainConfig) -> bool:
    """Whether a stopped run has policies without reported results. If so, a resumed run must report these results."""
    evaluation, folder = settings.evaluation, Path(settings.run.folder) / run_files.EVALUATIONS
    if evaluation is None or evaluation.mode != "background":
        return False
    return any((_place(folder, step) / run_files.POLICY).is_dir() for step in run_files.steps_in(folder))


def _place(folder: Path, step: int) -> Path:
    return folder / run_files.step_name(step)


def _write_task(folder: Path, settings: TrainConfig, held_out: PromptSet) -> None:
    """Write the held-out prompts as a task of `grpo eval`, with the prompts and limits that training uses."""
    evaluation = settings.evaluation
    assert evaluation is not None
    verifier = settings.verifiers[0]
    described: dict[str, DatasetConfig] = {"": evaluation.data} if evaluation.data else {**settings.data.by_name}
    with files.whole_file(folder / f"{TASK}.jsonl") as rows, rows.open("w", encoding="ascii") as file:
        for prompt in held_out.prompts:
            data = described[prompt.source]
            question = cell(prompt.row, data.prompt)
            if not isinstance(question, str):
                where = "evaluation.data" if evaluation.data else settings.data.section(prompt.source)
                raise ValueError(
                    f"{where}.prompt={data.prompt!r} holds chat messages, and evaluation.mode=background needs plain "
                    "text; use evaluation.mode=inline"
                )
            columns = {_ASKED: fill(data.template, question, prompt.row), _REFERENCE: prompt.reference}
            file.write(json.dumps({**prompt.row, **columns}, default=str) + "\n")
    # All descriptions have the same system message and chat template: `TrainConfig.problems` refuses others.
    data = described[held_out.prompts[0].source]
    task = {
        "name": TASK,
        "source": "the held-out data of this run (evaluation.data or data.validation)",
        "data": {
            "path": str((folder / f"{TASK}.jsonl").absolute()),
            "prompt": _ASKED,
            "reference": _REFERENCE,
            "system": data.system,
            "chat_template": data.chat_template,
        },
        "verifier": {
            "use": verifier.use,
            "options": verifier.options,
            "deadline_s": settings.verification.deadline_s,
            "memory_mib": settings.verification.memory_mib,
        },
        **settings.model_dump(mode="json", include={"tools", "environment", "conversation"}),
        "max_prompt_tokens": settings.rollout.max_prompt_tokens,
        "sampling": {
            "temperature": 0.0,
            "max_tokens": evaluation.max_completion_tokens or settings.rollout.max_completion_tokens,
            "stop": list(settings.rollout.stop),
        },
    }
    files.write_text(folder / f"{TASK}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True))
