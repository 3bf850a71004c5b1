"""What the programs of a run could read: paths of data and outputs that lie where programs see them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rewards.deadlines import code_verifiers
from sandbox import IsolationLevel, readable_by_programs

if TYPE_CHECKING:
    from grpo.config import DatasetConfig, TrainConfig, VerifierConfig


def exposed_paths(
    verifiers: Sequence[VerifierConfig], paths: Mapping[str, str], tools: Sequence[str] = ()
) -> list[str]:
    """Find files and folders that the policy's programs could read. They may contain expected outputs.

    Args:
        verifiers: configured verifiers. `rewards.deadlines` reports wrong options.
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
