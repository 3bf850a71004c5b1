"""The guides of docs/: commands of other programs parse, names exist, a script runs, an offline check needs no hub."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from docs_pages import ROOT, block, blocks
from documented_metrics import documented_names, is_documented
from fake_hub import fill_cache, gsm8k_rows
from huggingface_hub.cli.hf import app as hf
from tiny_policy import PRINTABLE, make_tiny_policy

from grpo.config import DatasetConfig, PolicyConfig
from grpo.config.inputs import dataset_problems
from grpo.config.launch import LaunchConfig
from grpo.config.reference import reference

GUIDES = ("first_gpu_run", "choosing_settings", "reproducing", "offline", "using_the_policy", "glossary")
TEXTS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in GUIDES}
# Parses each line of its input as arguments of `vllm serve`; it starts nothing.
PARSE = """
import shlex, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for line in sys.stdin:
    parser.parse_args(shlex.split(line))
"""


def lines_of(program: str) -> list[list[str]]:
    """The words after `program` of all lines of the guides that begin with it."""
    lines = [line for name in GUIDES for text in blocks(f"{name}.md", "\\w*") for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


def in_ticks(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_is_short(guide: str) -> None:
    assert len(TEXTS[guide].splitlines()) <= 150


@pytest.mark.parametrize("guide", GUIDES)
def test_the_metrics_and_keys_of_a_guide_exist(guide: str) -> None:
    keys = {re.sub(r"\[\]", "", key.name) for part in reference() for key in part.keys}
    sections = {name.rpartition(".")[0] for name in keys}
    roots = {name.split(".")[0] for name in keys}
    families = {name.split("/")[0] for name in documented_names()} - {"evaluations"}
    for text in in_ticks(TEXTS[guide]):
        # `data.path=x`, `learner.lora.rank: 16` and the bare key.
        key = re.match(r"[\w.]+", text)
        if key and "." in key[0] and key[0].split(".")[0] in roots and not text.endswith((".md", ".yaml", ".json")):
            assert key[0] in keys | sections, text
        if re.fullmatch(r"\w+/\w+", text) and text.split("/")[0] in families:
            assert is_documented(text), text


def test_the_commands_of_the_hub_parse() -> None:
    commands = lines_of("hf")
    assert len(commands) >= 4
    for words in commands:
        _parse_hf(words)
    with pytest.raises(click.ClickException):
        _parse_hf(["download", "a/b", "--locel-dir", "x"])


def _parse_hf(words: list[str]) -> None:
    command: Any = hf
    context: Any = None
    while words and hasattr(command, "commands"):
        context = typer.Context(command, parent=context)
        _, command, words = command.resolve_command(context, list(words))
    command.make_context(words[0] if words else "hf", list(words), parent=context)


def test_the_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [words[0] for words in lines_of("make")]
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), targets


@pytest.mark.slow
def test_the_commands_of_vllm_parse() -> None:
    commands = lines_of("vllm")
    assert len(commands) == 2 and all(words[0] == "serve" for words in commands)
    lines = "\n".join(shlex.join(words[1:]) for words in commands)
    for text, status in ((lines, 0), (f"{lines} --enable-loraa", 2)):
        done = subprocess.run([sys.executable, "-c", PARSE], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr[-2000:]


@pytest.mark.slow
def test_the_script_answers_with_a_policy(tmp_path: Path) -> None:
    (tmp_path / "try_it.py").write_text(block("using_the_policy.md", "python", "# try_it.py"))
    make_tiny_policy(tmp_path / "policy", PRINTABLE)
    words = [sys.executable, "try_it.py", "policy"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]


def test_the_sections_of_the_offline_page_are_valid() -> None:
    job = yaml.safe_load(block("offline.md", "yaml", "HF_HUB_OFFLINE"))["launch"]
    variables = LaunchConfig.model_validate({"nodes": 1, "gpus_per_node": 0, "cpus_per_node": 1, **job}).environment
    assert variables == {"HF_HOME": "/shared/lab/hf", "HF_HUB_OFFLINE": "1"}
    files = yaml.safe_load(block("offline.md", "yaml", "policy:"))
    PolicyConfig.model_validate(files["policy"])
    assert dataset_problems("data", DatasetConfig.model_validate(files["data"])) == []


@pytest.mark.slow
@pytest.mark.parametrize(("prepared", "status", "said"), [(True, 0, "160 of 160"), (False, 1, "NOT CHECKED")])
def test_an_offline_check_reads_the_prepared_cache(tmp_path: Path, prepared: bool, status: int, said: str) -> None:
    home = tmp_path / "hf"
    fill_cache(home, "Qwen/Qwen2.5-1.5B-Instruct", "openai/gsm8k" if prepared else "other/data", "main", gsm8k_rows(80))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    script = block("offline.md", "", "HF_HUB_OFFLINE=1")
    variables = {"HF_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=tmp_path,
        env={**os.environ, **variables, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status and said in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
