"""Evaluation beside training: `grpo eval`, in a process of its own, on a policy that training has left behind.

One policy is evaluated at a time, in the order of steps. Its folder `evaluations/step_000010` in the run's holds what
`grpo eval` writes, and the policy until its numbers are reported: so a run that is stopped and gone on with knows what
is still owed.
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
from grpo.config import TrainConfig
from grpo.data.prompts import PromptSet
from grpo.data.rows import cell
from grpo.package_finder import python_command
from grpo.report import run_files

TASK = "held_out"
# The question as training asks it, template and all, and its reference.
_ASKED, _REFERENCE = "asked", "reference_answer"
# The process ends with the one that started it, however that ends.
_PROGRAM = """
import sys
from rewards.pool.nursery import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from grpo.cli.app import app
app()
"""
# Policies that may wait for their numbers.
MOST_OWED = 3
_LOG_SHOWN = 2000
# Seconds to come down in, verifiers and engines with it.
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Late:
    """The numbers of a policy that training has left behind.

    Attributes:
        step: the training steps that had made it.
        metrics: as an evaluation between two steps has them.
    """

    step: int
    metrics: dict[str, float]


class BackgroundEvaluation:
    """Evaluates exported policies, one after the other, beside whatever else its owner does."""

    def __init__(self, settings: TrainConfig, held_out: PromptSet, device: Literal["cpu", "cuda"]) -> None:
        """Write the task; nothing is started yet.

        Raises:
            ValueError: training has all GPUs that are known of, and the evaluation none; questions are no plain text.
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
        """Drop policies of later steps, which a resumed run makes again."""
        for later in run_files.steps_in(self.folder):
            if later > step:
                shutil.rmtree(self._place(later))

    def add(self, step: int, export: Callable[[str], None]) -> None:
        """Take over the policy of `step`, which `export` writes into a folder, and start on it if nothing is under way.

        The numbers of the step that are there already, of a run that was stopped, are made again.
        """
        place = self._place(step)
        shutil.rmtree(place, ignore_errors=True)
        with files.whole_folder(place / run_files.POLICY) as partial:
            export(str(partial.absolute()))
        self._start_next()

    def finished(self, *, wait: bool) -> Iterator[Late]:
        """The evaluations that have ended since this was last asked; with `wait`, all that are owed.

        Raises:
            RuntimeError: one has failed; the end of its log is told.
            TimeoutError: one takes longer than `evaluation.deadline_s`.
        """
        self._start_next()
        while self._running is not None:
            step, process, started = self._running
            left = max(0.0, self._evaluation.deadline_s - (time.monotonic() - started))
            try:
                status = process.wait(left if wait else 0.0)
            except subprocess.TimeoutExpired:
                if left > 0.0 and not wait:
                    return
                raise TimeoutError(
                    f"the evaluation of step {step} takes longer than evaluation.deadline_s="
                    f"{self._evaluation.deadline_s:g}; its log is {self._log(step)}"
                ) from None
            self._running = None
            if status != 0:
                told = self._log(step).read_text(encoding="utf-8", errors="replace")[-_LOG_SHOWN:].strip()
                raise RuntimeError(f"the evaluation of step {step} ended with exit code {status}:\n{told}")
            yield Late(step, self._metrics(step, time.monotonic() - started))
            # Reported: from now on nothing is owed for this step.
            shutil.rmtree(self._place(step) / run_files.POLICY)
            self._start_next()

    @property
    def owed(self) -> int:
        """Policies that wait for their numbers."""
        return sum(1 for _ in self._owed())

    def close(self) -> None:
        """End what is under way; the next start of the run goes on with it."""
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
                # Ctrl-C is the run's: it decides what becomes of its evaluation.
                process_group=0,
            )
        self._running = owed, process, time.monotonic()

    def _arguments(self, step: int) -> list[str]:
        settings, place = self._settings, self._place(step)
        generator = settings.generator.model_copy(update={"replicas": 1})
        said: dict[str, Any] = {
            "dtype": settings.policy.dtype,
            "workers": settings.verification.workers,
            "max_failure_share": settings.verification.max_failure_share,
            # Training has looked at the held-out rows, and left out what cannot be used.
            "check_golds": "off",
            "deadline_s": settings.rollout.deadline_s,
            "log_level": settings.report.log_level,
            "generator": generator.model_dump(mode="json"),
            "cluster": {"device": {"cpu": "cpu", "cuda": "gpu"}[self._device]},
        }
        overrides = [f"{name}={json.dumps(value)}" for name, value in said.items()]
        task = str((self.folder / f"{TASK}.yaml").absolute())
        return ["eval", "run", str(place / run_files.POLICY), "--task", task, "--out", str(place), *overrides]

    def _metrics(self, step: int, seconds: float) -> dict[str, float]:
        found = json.loads((self._place(step) / TASK / "metrics.json").read_text(encoding="utf-8"))
        statuses = found["statuses"]
        return {
            "eval/accuracy": found["estimates"]["accuracy"]["value"],
            "eval/completion_tokens_mean": found["estimates"]["completion_tokens"]["value"],
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
    """Whether a stopped run has left policies whose numbers its resume is to report."""
    evaluation, folder = settings.evaluation, Path(settings.run.folder) / run_files.EVALUATIONS
    if evaluation is None or evaluation.mode != "background":
        return False
    return any((_place(folder, step) / run_files.POLICY).is_dir() for step in run_files.steps_in(folder))


def _place(folder: Path, step: int) -> Path:
    return folder / run_files.step_name(step)


def _write_task(folder: Path, settings: TrainConfig, held_out: PromptSet) -> None:
    """The held-out prompts as a task: the same questions, chosen and cut as training has read them."""
    evaluation = settings.evaluation
    assert evaluation is not None
    data, verifier = evaluation.data, settings.verifiers[0]
    with files.whole_file(folder / f"{TASK}.jsonl") as rows, rows.open("w", encoding="ascii") as file:
        for prompt in held_out.prompts:
            question = cell(prompt.row, data.prompt)
            if not isinstance(question, str):
                raise ValueError(
                    f"evaluation.data.prompt={data.prompt!r} holds chat messages, and evaluation.mode=background asks "
                    "plain text; use evaluation.mode=inline"
                )
            asked = {_ASKED: data.template.replace("{prompt}", question), _REFERENCE: prompt.reference}
            file.write(json.dumps({**prompt.row, **asked}, default=str) + "\n")
    task = {
        "name": TASK,
        "source": "the held-out data of this run (evaluation.data)",
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
        "sampling": {
            "temperature": 0.0,
            "max_tokens": evaluation.max_completion_tokens or settings.rollout.max_completion_tokens,
            "stop": list(settings.rollout.stop),
        },
    }
    files.write_text(folder / f"{TASK}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True))
