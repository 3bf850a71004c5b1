"""Commands that start no engine do not import one. The import of torch or of a model takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_policy import PRINTABLE, make_tiny_policy

ENGINES = {"torch", "ray", "vllm", "deepspeed", "sympy", "accelerate", "transformers.modeling_utils"}
# Libraries for data and tokens. Only commands that read data or a policy need them.
READERS = {"datasets", "pandas", "transformers", "huggingface_hub"}
PAGES = {"matplotlib", "fastapi", "openai"}
EVERYTHING = ENGINES | READERS | PAGES
QUICKSTART = "configs/quickstart.yaml"
ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys
from grpo.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    print(json.dumps([end.code, sorted(sys.modules)]))
"""

# Print a line when the import of torch begins.
WATCHED = """
import sys
from importlib.abc import MetaPathFinder

class Watch(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torch":
            print("torch begins", flush=True)

sys.meta_path.insert(0, Watch())
"""


def run(*arguments: object) -> tuple[int, set[str], str]:
    """Run a command; return its exit code, the modules that it imported, and all that it printed."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    printed, _, last = done.stdout.rstrip("\n").rpartition("\n")
    code, modules = json.loads(last)
    return code, set(modules), printed + done.stderr


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"), PRINTABLE)


@pytest.mark.parametrize(
    ("command", "code", "part"),
    [
        (["view", "--help"], 0, "RUN..."),
        (["config", "rollout"], 0, "group_size"),
        (["config", "algorithm.ratio"], 0, "The clipped surrogate"),
        (["eval", "tasks"], 0, "gsm8k"),
        (["eval", "anything", "--task", "gsm9k"], 2, "did you mean 'gsm8k'"),
        (["eval", "./absent", "--task", "gsm8k"], 2, "'./absent' is neither a folder with a policy"),
        (["push", "./absent", "owner/name"], 2, "'./absent' is neither a folder with a policy"),
        (["launch", "local", QUICKSTART, "--dry-run"], 2, "no section `launch`"),
        (["train", QUICKSTART, "train.stpes=1"], 2, "did you mean train.steps"),
        (["sft", "configs/quickstart_sft.yaml", "sft.stpes=1"], 2, "did you mean sft.steps"),
        (["check", QUICKSTART, "train.stpes=1"], 2, "did you mean train.steps"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_commands_without_a_policy_import_no_large_library(command: list[str], code: int, part: str) -> None:
    ended, modules, printed = run(*command)
    assert ended == code and part in printed, printed
    allowed = {"huggingface_hub"} if command[0] == "push" else set()
    assert EVERYTHING & modules <= allowed


@pytest.mark.slow
def test_a_check_imports_no_engine(policy: Path) -> None:
    ended, modules, printed = run("check", QUICKSTART, f"policy.path={policy}")
    assert ended == 0 and "verdict: ready" in printed, printed
    assert modules >= READERS, "this test would pass although nothing was read"
    assert (ENGINES | PAGES) & modules == set()


def test_a_check_without_its_policy_imports_no_engine(tmp_path: Path) -> None:
    ended, modules, printed = run("check", QUICKSTART, f"policy.path={tmp_path / 'absent'}")
    assert ended == 2 and "neither a folder with a policy" in printed, printed
    # The rows are read, so that their problems are reported too; `datasets` imports the hub's client.
    assert (EVERYTHING - (READERS - {"transformers"})) & modules == set()


def test_the_loops_import_neither_models_nor_generator() -> None:
    names = ["grpo.train_loop", "grpo.sft_loop", "grpo.dpo_loop", "grpo.evaluation.evaluate"]
    program = f"import sys, {', '.join(names)}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    modules = set(done.stdout.split())
    assert "ray" in modules
    assert (EVERYTHING - {"torch", "ray"}) & modules == set()


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["train", QUICKSTART, "policy.path=./absent"], "GRPO run: loads its libraries"),
        (
            ["sft", "configs/quickstart_sft.yaml", "policy.new=null", "policy.path=./absent"],
            "SFT run: loads its libraries",
        ),
    ],
    ids=["train", "sft"],
)
def test_a_job_prints_its_first_line_before_it_imports_torch(tmp_path: Path, command: list[str], line: str) -> None:
    program = [sys.executable, "-c", WATCHED + PROGRAM, *command, f"run.folder={tmp_path / 'run'}"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "neither a folder with a policy" in done.stderr
    first, *others = done.stdout.splitlines()
    assert first.startswith(line) and "torch begins" in others, done.stdout
