"""Who may import whom: each engine has one room, and the rest works on a machine that has none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = {"ray", "vllm", "deepspeed"}
ROOMS = {
    # The launchers only knock: one waits until a cluster is up, one hands it a job.
    "ray": {
        "grpo/actors.py",
        "grpo/cluster.py",
        "grpo/generator_actor.py",
        "grpo/generator_group.py",
        "grpo/learner_actor.py",
        "grpo/preflight.py",
        "grpo/ray_metrics.py",
        "grpo/ray_processes.py",
        "grpo/ray_session.py",
        "grpo/replica.py",
        "grpo/verifier_nodes.py",
        "grpo/waiting.py",
        "launch/ray_job.py",
        "launch/ready.py",
    },
    "vllm": {
        "grpo/cpu_norm.py",
        "grpo/generator.py",
        "grpo/gpu_senders.py",
        "grpo/gpu_transfer_engines.py",
        "grpo/nccl.py",
        "grpo/transfer_engines.py",
        "grpo/weight_transfer.py",
    },
    "deepspeed": {"grpo/learner.py", "grpo/sequence_parallel.py"},
    "peft": {"grpo/adapters.py"},
    "fastapi": {"grpo/view.py"},
}
# What drives the engines; everything else in `grpo` is pure.
DRIVERS = {
    "actors",
    "cluster",
    "cpu_norm",
    "eval_engine",
    "evaluate",
    "generator",
    "generator_actor",
    "generator_group",
    "gpu_senders",
    "gpu_transfer_engines",
    "learner",
    "learner_actor",
    "memory_plan",
    "nccl",
    "plan",
    "preflight",
    "preparation",
    "profile",
    "ray_metrics",
    "ray_processes",
    "ray_session",
    "recovery",
    "replica",
    "run",
    "sft",
    "train",
    "transfer_engines",
    "verifier_nodes",
    "waiting",
    "watchdog",
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of every module of a package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert found
    return found


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, anywhere in it; relative ones as they are written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            yield from [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_each_engine_has_its_room() -> None:
    for engine, rooms in ROOMS.items():
        found = {
            str(path.relative_to(ROOT))
            for package in ("grpo", "launch", "rewards", "sandbox")
            for path in modules(package).values()
            if engine in packages(path)
        }
        assert found == rooms, engine


def test_rewards_know_nothing_of_training_and_the_sandbox_nothing_of_either() -> None:
    for package, forbidden in (("rewards", {"grpo"}), ("sandbox", {"grpo", "rewards"})):
        for name, path in modules(package).items():
            assert not packages(path) & forbidden, name


def test_only_the_command_line_knows_the_launchers() -> None:
    assert [name for name, path in modules("grpo").items() if "launch" in packages(path)] == ["grpo.cli"]


def test_nothing_is_imported_relatively() -> None:
    for package in ("grpo", "launch", "rewards", "sandbox"):
        for name, path in modules(package).items():
            assert not [one for one in imported(path) if one.startswith(".")], name


def test_only_one_room_writes_to_terminals() -> None:
    """A console or table of rich's own reads markup in its strings, which may be a prompt's or a completion's."""
    found = set()
    for name, path in modules("grpo").items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {ast.unparse(call).split(".")[-1] for call in calls if ast.unparse(call) != "Table.grid"}
        if called & {"Console", "Table", "from_markup", "escape", "render_markup"} or "rich.markup" in imported(path):
            found.add(name)
    assert found - {"grpo.terminal"} == set()


def test_mathematics_imports_no_room_beyond_it() -> None:
    """types and config <- pure mathematics <- rollout collection <- engines."""
    allowed = {
        "advantages": set[str](),
        "losses": set[str](),
        "types": {"rewards.busy_clock", "rewards.verdict"},
        "aggregation": set[str](),
        "mismatch": {"grpo.losses"},
        "section": set[str](),
        "objective_config": {"grpo.section"},
        "launch_config": {"grpo.section"},
        "learner_config": {"grpo.section"},
        "inputs_config": {"grpo.learner_config", "grpo.section"},
        "generator_config": {"grpo.section"},
        "cluster_config": {"grpo.section"},
        "config": {
            "grpo.cluster_config",
            "grpo.generator_config",
            "grpo.inputs_config",
            "grpo.launch_config",
            "grpo.learner_config",
            "grpo.objective_config",
            "grpo.section",
            "grpo.verifiers_config",
        },
        "packing": set[str](),
        "simulated_generators": set[str](),
        "simulate": {"grpo.simulated_generators"},
        "lengths": {"grpo", "grpo.rollout_store"},
        "flops": {"grpo.packing"},
        "attention": {"grpo.packing"},
        "batching": {"grpo.aggregation", "grpo.objective_config", "grpo.packing", "grpo.types"},
        "rescoring": {"grpo.batching", "grpo.config", "grpo.losses", "grpo.packing", "grpo.types"},
        "staleness": set[str](),
        "group_state": {"grpo.types", "rewards.verdict"},
        "collector": {"grpo.group_state", "grpo.rollout", "grpo.staleness", "grpo.types"},
        "eval_statistics": {"rewards.audit"},
        "eval_types": {"grpo.types"},
        "eval_metrics": {"grpo.eval_statistics", "grpo.eval_store", "rewards.verdict"},
        "eval_store": {"grpo.types", "rewards.verdict"},
        "endpoint": {"grpo.addresses", "grpo.eval_config", "grpo.eval_types", "grpo.types"},
        "rollout": {
            "grpo.advantages",
            "grpo.types",
            "rewards.build",
            "rewards.compose",
            "rewards.selection",
            "rewards.verdict",
        },
    }
    for name, expected in allowed.items():
        own = {one for one in imported(ROOT / "grpo" / f"{name}.py") if one.split(".")[0] in ("grpo", "rewards")}
        assert own <= expected, name


PROGRAM = """
import importlib, sys
for engine in {engines}:
    sys.modules[engine] = None  # as if it were not installed
for name in {names}:
    importlib.import_module(name)
"""


def run_without_engines(names: list[str]) -> None:
    program = PROGRAM.format(engines=sorted(ENGINES), names=names)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_all_but_the_drivers_import_where_no_engine_is_installed() -> None:
    pure = [name for name in modules("grpo") if name.removeprefix("grpo.") not in DRIVERS]
    assert {"grpo", "grpo.types", "grpo.batching", "grpo.cli", "grpo.report"} <= set(pure)
    run_without_engines([*pure, "rewards", "rewards.pool", "rewards.build", "sandbox"])


def test_importing_a_package_is_light() -> None:
    program = (
        "import sys, grpo, rewards, sandbox\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sympy', 'ray', 'vllm', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
