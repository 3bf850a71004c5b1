"""The user's functions: try them before a run, copy them into its folder, and call them at steps and checkpoints."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grpo.algorithm.contracts import FinishedStep, SavedCheckpoint, StepCallback
from grpo.algorithm.tiny_batch import try_functions
from grpo.cluster import activity
from grpo.config import TrainConfig
from grpo.report import run_files
from grpo.run.checkpoint import Checkpoint
from grpo.types import Group, Phase
from rewards.named_code import locate, source_file
from rewards.raised import describe

_NAME = re.compile(r"[\w.-]+")


class Callbacks:
    """Calls the user's functions. If a function raises, the run stops after a checkpoint is written."""

    def __init__(self, settings: TrainConfig) -> None:
        """Load and try every function that the config names.

        Raises:
            ValueError: a function cannot be loaded, or breaks its contract (`grpo.algorithm.contracts`).
        """
        try_functions(settings.algorithm, settings.rollout.max_completion_tokens)
        self._folder = Path(settings.run.folder)
        self._step = [_callback("callbacks.step", use) for use in settings.callbacks.step]
        self._checkpoint = [_callback("callbacks.checkpoint", use) for use in settings.callbacks.checkpoint]
        self._failure: RuntimeError | None = None

    @property
    def failed(self) -> bool:
        """Whether a function raised, so that the run must stop after a checkpoint."""
        return self._failure is not None

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> dict[str, float]:
        """Call the step functions; return the metrics, under `custom/`, of the functions that did not raise."""
        finished = FinishedStep(step, MappingProxyType(dict(metrics)), tuple(groups), self._folder)
        custom: dict[str, float] = {}
        for key, function in self._step:
            custom |= self._call(key, step, _numbers, function, finished, custom) or {}
        return custom

    def checkpoint(self, saved: Checkpoint | None) -> None:
        """Call the checkpoint functions. If `saved` is None, no checkpoint was written, and no function is called.

        Raises:
            RuntimeError: a function raised, in this call or in the last call of `step`.
        """
        if saved is not None and not self.failed:
            given = SavedCheckpoint(saved.step, saved.folder, self._folder)
            for key, function in self._checkpoint:
                self._call(key, saved.step, function, given)
        if self._failure:
            raise self._failure

    def _call(self, key: str, step: int, function: Callable[..., Any], *values: object) -> Any:
        try:
            with activity.current().within(Phase.CALLBACK):
                return function(*values)
        except (Exception, SystemExit) as problem:
            # The first failure is the cause of the stop.
            self._failure = self._failure or _stopped(key, step, problem)
            return None


def _stopped(key: str, step: int, problem: BaseException) -> RuntimeError:
    stopped = RuntimeError(
        f"{key} raised at step {step}: {describe(problem)}; the checkpoint of step {step} is written. Correct the "
        "function, or remove it from the config, then continue with resume=auto"
    )
    stopped.__cause__ = problem
    return stopped


def _callback(key: str, use: str) -> tuple[str, Callable[..., Any]]:
    key = f"{key}: {use}"
    function = locate(use, key)
    try:
        inspect.signature(function).bind(None)
    except TypeError as problem:
        raise ValueError(f"{key} must take one value, a FinishedStep or a SavedCheckpoint: {problem}") from problem
    return key, function


def _numbers(function: StepCallback, finished: FinishedStep, before: Mapping[str, float]) -> dict[str, float]:
    returned: object = function(finished)
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise ValueError(f"returned {type(returned).__name__}; expected numbers by name, or None")
    if bad := [name for name in returned if not isinstance(name, str) or not _NAME.fullmatch(name)]:
        raise ValueError(f"returned the name {bad[0]!r}; expected letters, digits, '_', '.' and '-'")
    numbers = {f"custom/{name}": float(value) for name, value in returned.items()}
    if twice := numbers.keys() & before.keys():
        raise ValueError(f"returned {sorted(twice)[0]}, which another function returned before; use another name")
    return numbers


def keep_sources(folder: Path, functions: Mapping[str, str]) -> list[str]:
    """Copy the source file of each function into the run's folder.

    Args:
        folder: the run's folder.
        functions: name of each function, by the function's key in the config.

    Returns:
        A line for each file whose text differs from the copy that an earlier start made.
    """
    kept, changed = folder / run_files.FUNCTIONS, []
    for key, use in functions.items():
        kept.mkdir(exist_ok=True)
        copy, text = kept / f"{key}.py", source_file(use).read_bytes()
        if copy.exists() and copy.read_bytes() != text:
            changed.append(f"{key}: the text of {use}")
        copy.write_bytes(text)
    return changed
