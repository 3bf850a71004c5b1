"""Who may import whom: one ordered list of wings, one room for each engine, one wall in the sandbox."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("grpo", "launch", "rewards", "sandbox")
# A wing may import what stands below it, and nothing beside it or above it. Imports inside functions count.
ORDER = (
    {"cli"},
    {"grpo"},  # grpo/__init__.py: the face
    {"jobs"},
    {"planning"},
    {"train_loop", "sft_loop", "dpo_loop", "reward_loop", "reward_evaluation", "evaluation"},
    {"comparison_lessons"},
    {"fine_tuning"},
    {"run", "launch"},
    {"cluster"},
    {"generator", "learner"},
    {"weights"},
    {"labelling"},
    {"view", "rollout", "data", "policy"},
    {"agents"},
    {"environments"},
    {"conversation"},
    {"report", "algorithm"},
    {"types", "config"},
    {"terminal"},
    {"rewards"},
    {"sandbox"},
    {"addresses", "deferred", "files", "hub_access", "messages", "package_finder", "start_up", "visible"},
)
LARGEST_FOLDER = 20
ENGINES = {"ray", "vllm", "deepspeed"}
# What drives the engines when it is imported. Everything else imports on a machine that has none of them.
DRIVERS = {
    "cluster",
    "comparison_lessons",
    "dpo_loop",
    "evaluation.engine_sampler",
    "evaluation.evaluate",
    "evaluation.jobs",
    "fine_tuning",
    "generator.cpu_norm",
    "generator.cpu_sampler",
    "generator.cpu_slots",
    "generator.engine",
    "generator.sampling",
    "learner.device",
    "learner.rank",
    "learner.state",
    "planning.profile",
    "report.ray_metrics",
    "reward_evaluation",
    "reward_loop",
    "run.actors",
    "run.held_out",
    "run.pushing",
    "run.recovery",
    "run.training",
    "run.verification",
    "run.watchdog",
    "sft_loop",
    "train_loop",
    "weights.engines",
    "weights.gpu_engines",
    "weights.gpu_senders",
    "weights.nccl",
}
# Each package is imported in these places only: a folder ends with a slash.
ROOMS = {
    # The launchers only knock: one waits until a cluster is up, one hands it a job.
    "ray": {"grpo/cluster/", "grpo/report/ray_metrics.py", "launch/ray_job.py", "launch/ready.py"},
    "vllm": {"grpo/generator/", "grpo/weights/"},
    # Ulysses attention is part of the policy, and DeepSpeed's.
    "deepspeed": {"grpo/learner/", "grpo/policy/sequence_parallel.py"},
    "peft": {"grpo/policy/adapters.py"},
    "fastapi": {"grpo/agents/server.py", "grpo/labelling/page.py", "grpo/view/"},
}
# What a library keeps private changes without notice, so what we touch of it stands in one file for each library.
PRIVATE = {
    "grpo/cluster/session.py": "ray",
    "grpo/weights/group.py": "torch",
    # A dispatch mode sees every operator. Torch documents it, but its module has a private name.
    "grpo/planning/layer_bytes.py": "torch's dispatch",
    "grpo/weights/registry.py": "vllm",
    # Under the name of its compiled operators torch knows vLLM's.
    "grpo/generator/cpu_norm.py": "vllm's operators",
    "grpo/generator/cpu_sampler.py": "vllm's operators",
    "sandbox/inside/isolation/syscall_filter.py": "pyseccomp",
    # The end of an interpreter: threads, and functions to call at exit.
    "sandbox/inside/program.py": "python",
    "sandbox/inside/interpreter.py": "python, atexit",
}
PURE = ("grpo/algorithm/", "grpo/planning/simulation/", "grpo/rollout/staleness.py", "rewards/mathematics/")


def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of the four packages."""
    files = {}
    for path in [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert len(files) > 200
    return files


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from package import module` counts as that module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            submodules = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from submodules
            if len(submodules) < len(node.names):
                yield source
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            yield from [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []


IMPORTS = {name: set(imported(path)) for name, path in MODULES.items()}


def wing(module: str) -> str:
    package, *rest = module.split(".")
    return rest[0] if package == "grpo" and rest else package


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other: strongly connected components (Kosaraju's two passes)."""
    order: list[str] = []
    seen: set[str] = set()

    def walk(start: str, edges: Mapping[str, set[str]], out: list[str]) -> None:
        seen.add(start)
        for other in sorted(edges.get(start, set()) - seen):
            if other not in seen:
                walk(other, edges, out)
        out.append(start)

    for name in graph:
        if name not in seen:
            walk(name, graph, order)
    backwards: dict[str, set[str]] = defaultdict(set)
    for name, others in graph.items():
        for other in others:
            backwards[other].add(name)
    seen.clear()
    components = []
    for name in reversed(order):
        if name not in seen:
            component: list[str] = []
            walk(name, backwards, component)
            components.append(set(component))
    return [component for component in components if len(component) > 1]


def test_each_wing_imports_only_what_stands_below_it() -> None:
    tier = {name: place for place, names in enumerate(ORDER) for name in names}
    assert {wing(name) for name in MODULES} == set(tier)
    wrong = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        for other in others & MODULES.keys()
        if wing(name) != wing(other)
        and "grpo" not in (wing(name), wing(other))
        and tier[wing(name)] >= tier[wing(other)]
    ]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [{"b", "c"}]
    assert circles({name: (others & MODULES.keys()) - {name} for name, others in IMPORTS.items()}) == []


def test_the_two_sides_of_the_sandbox_import_nothing_of_each_other() -> None:
    sides = {name: name.split(".")[1] for name in MODULES if name.startswith(("sandbox.inside", "sandbox.outside"))}
    assert set(sides.values()) == {"inside", "outside"}
    for name, side in sides.items():
        assert not [other for other in IMPORTS[name] if sides.get(other, side) != side], name


def test_no_folder_holds_more_files_than_a_reader_can_keep_in_mind() -> None:
    sizes: dict[str, int] = defaultdict(int)
    for path in [path for top in (*PACKAGES, "tests") for path in (ROOT / top).rglob("*.py")]:
        sizes[str(path.parent.relative_to(ROOT))] += 1
    assert {folder: size for folder, size in sizes.items() if size > LARGEST_FOLDER} == {}


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_each_engine_has_its_room(package: str) -> None:
    users = {
        str(MODULES[name].relative_to(ROOT))
        for name, others in IMPORTS.items()
        if package in {other.split(".")[0] for other in others}
    }
    assert [user for user in users if not user.startswith(tuple(ROOMS[package]))] == []
    assert all(any(user.startswith(room) for user in users) for room in ROOMS[package]), "a room that is not needed"


def test_what_libraries_keep_private_is_touched_in_one_file_each() -> None:
    users = set()
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_own(node.value)}
        own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {"_exit", "_replace"}
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - own
        parts = {part for module in IMPORTS[name] for part in module.split(".")} - {"__future__"}
        if any(part.startswith("_") and not part.startswith("__") for part in used | parts) or "generated" in parts:
            users.add(str(path.relative_to(ROOT)))
    assert users == PRIVATE.keys()


def is_own(value: ast.expr) -> bool:
    return ast.unparse(value) in ("self", "cls", "super()")


def test_what_is_pure_imports_only_what_is_pure() -> None:
    """Algorithm, simulator and mathematics: functions of their arguments, without files, processes and clocks."""
    for name, path in MODULES.items():
        if str(path.relative_to(ROOT)).startswith(PURE) and name != "grpo.planning.simulation.command":
            packages = {other.split(".")[0] for other in IMPORTS[name]}
            assert not packages & {"asyncio", "multiprocessing", "socket", "subprocess", *ENGINES}, name


def test_nothing_is_imported_relatively() -> None:
    assert [name for name, others in IMPORTS.items() if any(other.startswith(".") for other in others)] == []


def test_only_one_room_writes_to_terminals() -> None:
    """A console or table of rich's own reads markup in its strings, which may be a prompt's or a completion's."""
    writers = set()
    for name, path in MODULES.items():
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {
            ast.unparse(call).split(".")[-1] for call in calls if ast.unparse(call) not in ("Table.grid", "re.escape")
        }
        if called & {"Console", "Table", "from_markup", "escape", "render_markup"} or "rich.markup" in IMPORTS[name]:
            writers.add(name)
    assert {name for name in writers if name.startswith("grpo.")} <= {"grpo.terminal"}, "see grpo/terminal.py"


PROGRAM = """
import importlib, sys
for engine in {engines}:
    sys.modules[engine] = None  # as if it were not installed
for name in {names}:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_all_but_the_drivers_import_where_no_engine_is_installed() -> None:
    drivers = {f"grpo.{driver}" for driver in DRIVERS}
    pure = [name for name in MODULES if name not in drivers and not name.startswith("grpo.cluster.")]
    pure = [name for name in pure if name.split(".")[0] != "launch" and not name.endswith("__main__")]
    pure = [name for name in pure if not name.startswith("sandbox.inside")]
    assert {"grpo", "grpo.types", "grpo.algorithm.minibatches", "grpo.cli.app", "grpo.report.recorder"} <= set(pure)
    program = PROGRAM.format(engines=sorted(ENGINES), names=pure)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


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


def test_architecture_lists_every_wing_and_every_file() -> None:
    rows = [line.split(" | ") for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `").rstrip("/"): row[2].strip(" |").split() for row in rows}
    folders: dict[str, list[str]] = defaultdict(list)
    for path in MODULES.values():
        folders[str(path.parent.relative_to(ROOT))] += [path.stem] if path.stem not in ("__init__", "__main__") else []
    assert listed == {folder: sorted(names) for folder, names in folders.items()}


def test_the_name_of_a_class_means_one_thing() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(name)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_test_files_have_names_of_their_own() -> None:
    """Pytest imports test files by their bare names, so two files of a name cannot be collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
