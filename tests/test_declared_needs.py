"""The scripts for a borrowed GPU run with the packages that they say they need, and with what these declare."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from declared_needs import ROOT, closure, imports_of, link_closure, missing_imports

BENCH = ROOT / "tests" / "bench" / "learner.py"
CHECKS = sorted((ROOT / "tests" / "gpu").glob("*.py"))
NEEDS = ("torch", "transformers", "deepspeed")
# Parts that start engines need these too. Such a file says so, and other files import it only when the part runs.
ENGINES = {"vllm", "ray"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("needs") / "packages"
    link_closure((*NEEDS, "pytest") if CHECKS else NEEDS, folder)
    return folder


def test_the_closure_leaves_something_out(packages: Path) -> None:
    """A folder with all packages would prove nothing."""
    assert {"numpy", "safetensors", "pydantic"} <= closure(NEEDS).keys()
    assert (packages / "torch").is_dir() and (packages / "deepspeed").is_dir()
    for absent in ("vllm", "ray", "xxhash", "datasets", "peft"):
        assert absent not in closure(NEEDS) and not (packages / absent).exists()


def test_each_script_says_what_it_needs() -> None:
    for script in (BENCH, *(path for path in CHECKS if path.name == "gpu_check.py")):
        told = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").lower()
        assert all(name in told for name in NEEDS), script


@pytest.mark.slow
def test_scripts_import_with_their_needs_alone(packages: Path) -> None:
    missing = missing_imports((BENCH, *CHECKS), packages)
    files = {str(path.relative_to(ROOT)): path for path in (BENCH, *CHECKS)}
    wrong = {}
    for place, module in missing.items():
        name, _, line = place.partition(":")
        tree = ast.parse(files[name].read_text(encoding="utf-8"))
        says_so = "vLLM" in (ast.get_docstring(tree) or "")
        in_function = bool(line) and int(line) not in {node.lineno for node in tree.body}
        runs_itself = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
        part = name.startswith("tests/gpu/") and not runs_itself and not files[name].name.startswith("test_")
        lazy = module.split(".")[0] in ENGINES and name.startswith("tests/gpu/") and (in_function or (part and says_so))
        if not lazy:
            wrong[place] = module
    assert wrong == {}, "these imports need a package that the script does not declare"


@pytest.mark.slow
def test_an_undeclared_import_is_found(packages: Path) -> None:
    """Also one in a function, and one that a module of this project makes."""
    planted = ROOT / "build" / "planted_needs.py"
    planted.parent.mkdir(exist_ok=True)
    planted.write_text("import torch\n\n\ndef later():\n    import xxhash\n    import grpo.weights.nccl\n")
    try:
        assert missing_imports([planted], packages) == {
            "build/planted_needs.py:5": "xxhash",
            "build/planted_needs.py:6": "vllm",
        }
    finally:
        planted.unlink()


def test_imports_for_type_checkers_do_not_count() -> None:
    text = "if TYPE_CHECKING:\n    import vllm\nelse:\n    import json\ndef f():\n    import numpy"
    assert [ast.unparse(node) for node in imports_of(ast.parse(text))] == ["import json", "import numpy"]
