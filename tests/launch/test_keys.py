"""Keys of `launch` that a launcher cannot use are refused, never ignored."""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from launch_configs import ROOT, job

from grpo.config.launch import LaunchConfig, NodesConfig
from launch.job import Target
from launch.keys import REFUSED, key_problems
from launch.start import render

TARGETS: tuple[Target, ...] = typing.get_args(Target)
# A job that each launcher takes.
TAKEN: dict[Target, dict[str, Any]] = {
    "local": {"nodes": 1, "cpus_per_node": 2},
    "slurm": {},
    "kuberay": {"venv": None, "image": "x/y:1", "memory_gib_per_node": 8, "kuberay": {"storage_claim": "shared"}},
    "ray": {},
}
VALUES: dict[str, Any] = {
    "gpu_type": "h100",
    "memory_gib_per_node": 9,
    "partition": "long",
    "node_selector": {"gpu": "h100"},
    "image": "lab/y:1",
    "venv": "/opt/venv",
    "interface": "ib0",
    "max_restarts": 3,
    "nodes_deadline_s": 77,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", REFUSED)
def test_a_key_is_used_or_refused(tmp_path: Path, key: str, target: Target) -> None:
    launch = {**TAKEN[target], key: VALUES[key]}
    if target == "slurm":
        # What Slurm itself asks for beside these keys.
        (tmp_path / "bin").mkdir()
        for program in ("python", "grpo"):
            (tmp_path / "bin" / program).touch()
        launch |= {"venv": str(tmp_path)} if key == "venv" else {}
        launch |= {"gpus_per_node": 4} if key == "gpu_type" else {}
        launch |= {"slurm": {"container": "pyxis"}} if key == "image" else {}
    shown = launch[key] if isinstance(launch[key], str) else ""
    if target not in REFUSED[key]:
        text, without = render(target, job(tmp_path, launch)), render(target, job(tmp_path, TAKEN[target]))
        # The configuration in the text has the key in any case.
        assert outside_of_config(text) != outside_of_config(without)
        return
    with pytest.raises(ValueError) as caught:
        render(target, job(tmp_path, launch))
    told = str(caught.value)
    assert f"- launch.{key}={shown}" in told and "to leave this key out of this launch, add: " in told
    # The remedy works.
    _, _, remedy = told.rpartition("add: ")
    name, _, value = remedy.partition("=")
    assert name == f"launch.{key}"
    defaults = {"null": None, "{}": {}, "20": 20, "900": 900}
    render(target, job(tmp_path, {**launch, key: defaults[value]}))


def outside_of_config(text: str) -> str:
    text = re.sub(r"(?s)<<'END_OF_CONFIG_.*?\nEND_OF_CONFIG_\w+\n", "", text)
    return re.sub(r"(?s)  config.yaml: \|\n.*?\n---\n", "", text)


def test_nodes_of_a_second_kind_are_judged_too(tmp_path: Path) -> None:
    launch = {"generators": {"nodes": 1, "gpus_per_node": 0, "cpus_per_node": 4, "partition": "l40s"}}
    first, second = key_problems(job(tmp_path, launch), "ray")
    assert first.startswith("launch.generators.partition=l40s: the Ray cluster runs already")
    assert second == "to leave this key out of this launch, add: launch.generators.partition=null"


def test_what_asks_for_nothing_is_no_problem(tmp_path: Path) -> None:
    assert key_problems(job(tmp_path, {"max_restarts": 0, "venv": sys.prefix}), "local") == []
    (first, _) = key_problems(job(tmp_path, {"venv": sys.prefix}), "kuberay")
    assert first.startswith(f"launch.venv={sys.prefix}: the pods use the software of launch.image")
    assert key_problems(job(tmp_path, {"max_restarts": 20, "partition": None}), "ray") == []


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        ({"gpu_type": "h100"}, "launch.gpu_type=h100 has no effect without GPUs"),
        (
            {"gpus_per_node": 8, "gpu_type": "h100", "slurm": {"options": {"gres": "gpu:8"}}},
            "launch.gpu_type and launch.slurm.options.gres",
        ),
        ({"slurm": {"container": "pyxis"}}, "launch.slurm.container=pyxis runs an image; name it"),
    ],
)
def test_keys_that_another_key_makes_void_are_refused(tmp_path: Path, launch: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        render("slurm", job(tmp_path, launch))
    assert told in str(caught.value)


def test_the_page_says_which_launcher_uses_a_key() -> None:
    """Every key of `launch` has a row in docs/cluster.md, and the row says what the code does."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 1 + len(TARGETS) and cells[0].startswith("`") and set(cells[1:]) <= {"yes", "no"}:
            rows |= dict.fromkeys(re.findall(r"\w+", cells[0]), cells[1:])
    keys = set(LaunchConfig.model_fields) - {"slurm", "kuberay", "ray"}
    assert set(rows) == keys and set(NodesConfig.model_fields) <= keys
    for key, cells in rows.items():
        refused = [target for target, cell in zip(TARGETS, cells, strict=True) if cell == "no"]
        # A local run has one machine, which `generators` contradicts.
        expected = set(REFUSED.get(key, {})) | ({"local"} if key == "generators" else set())
        assert set(refused) == expected, key
