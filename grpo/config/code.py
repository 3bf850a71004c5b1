"""Code verifiers of a configuration: their options, and their demands on other settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rewards.verifiers.code import CodeVerifier
from sandbox import IsolationLevel, readable_by_programs

if TYPE_CHECKING:
    from grpo.config import DatasetConfig, TrainConfig, VerifierConfig


_NAMES = {
    "code",
    *(f"{module}{dot}CodeVerifier" for module in ("rewards.verifiers.code", "rewards.code") for dot in ":."),
}


def code_verifiers(verifiers: Sequence[VerifierConfig]) -> dict[str, CodeVerifier]:
    """The code verifiers of a configuration, by name.

    Raises:
        ValueError: the code verifier does not take these options.
    """
    built = {}
    for verifier in verifiers:
        if verifier.use in _NAMES:
            options = {name: value for name, value in verifier.options.items() if name != "bounds"}
            try:
                built[verifier.name] = CodeVerifier(**options)
            except (TypeError, ValueError) as problem:
                raise ValueError(f"verifiers: {verifier.name}: {problem}") from problem
    return built


def code_problems(verifiers: Sequence[VerifierConfig], deadline_s: float) -> list[str]:
    """Find wrong options, and a deadline that is too short for a program's timeout."""
    try:
        built = code_verifiers(verifiers)
    except ValueError as problem:
        return [str(problem)]
    return [
        f"verification.deadline_s={deadline_s:g} could end the verifier {name!r} before its program reaches "
        f"program_s={verifier.program_s:g}; this would count as a failed verdict; raise deadline_s to "
        f"{verifier.deadline_s:g} or more, or lower program_s"
        for name, verifier in built.items()
        if deadline_s < verifier.deadline_s
    ]


def time_for_programs(verifiers: Sequence[VerifierConfig]) -> float:
    """Return how long a verdict may take at most, in seconds, because of its program; 0 without programs."""
    try:
        return max((verifier.deadline_s for verifier in code_verifiers(verifiers).values()), default=0.0)
    except ValueError:  # `code_problems` reports it.
        return 0.0


def exposed_paths(
    verifiers: Sequence[VerifierConfig], paths: Mapping[str, str], tools: Sequence[str] = ()
) -> list[str]:
    """Find files and folders that the policy's programs could read. They may contain expected outputs.

    Args:
        verifiers: configured verifiers. `code_problems` reports wrong options.
        paths: setting -> path.
        tools: configured tools; `python` and `bash` run programs.
    """
    try:
        # Below CONFINED a program can read all files of the user. A user who sets such a level accepts this.
        confined = [name for name, item in code_verifiers(verifiers).items() if item.level >= IsolationLevel.CONFINED]
    except ValueError:
        return []
    confined += [tool for tool in tools if tool in ("python", "bash")]
    if not confined:
        return []
    return [
        f"{setting}={path} lies where the programs that {confined[0]!r} runs can read it, because their compilers and "
        "libraries are there; expected a place that they cannot see; move it out of /usr and the interpreter's folders"
        for setting, path in paths.items()
        if readable_by_programs(path)
    ]


def local_paths(config: TrainConfig) -> dict[str, str]:
    """The paths of a run's data and of its folder, by the setting that names them."""
    paths = {"run.folder": config.run.folder}
    sources: dict[str, DatasetConfig] = {config.data.section(name): rows for name, rows in config.data.by_name.items()}
    if config.evaluation and config.evaluation.data:
        sources["evaluation.data"] = config.evaluation.data
    for where, source in sources.items():
        paths |= {f"{where}.path": path for path in source.paths}
        if source.hub and not source.path:
            home = os.environ.get("HF_HOME", os.path.expanduser("~/.cache/huggingface"))
            paths[f"{where}.hub in HF_HOME"] = os.environ.get("HF_DATASETS_CACHE", home)
    return paths
