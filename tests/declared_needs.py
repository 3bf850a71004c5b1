"""What a script's imports find if only its declared distributions, and all that these require, are installed."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# Runs a list of (label, code) in the given folders alone, and prints the module that each code misses.
_RUNNER = """
import json, sys
folders, codes = json.loads(sys.stdin.read())
sys.path[:0] = folders
missing = {}
for label, code in codes:
    try:
        exec(compile(code, label, "exec"), {"__name__": "imported"})
    except ModuleNotFoundError as problem:
        missing[label] = problem.name
print("\\n" + json.dumps(missing), flush=True)
"""


def closure(names: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions of these names, of all that they require in this environment, and so on."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a build of torch without CUDA has no use for all that the marker asks for
        needs = (Requirement(each) for each in found[name].requires or ())
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def link_closure(names: Iterable[str], folder: Path) -> None:
    """Fill `folder` with links to the files of the closure, and to nothing else."""
    folder.mkdir(exist_ok=True)
    for distribution in closure(names).values():
        for file in distribution.files or ():
            top, link = file.parts[0], folder / file.parts[0]
            if top not in ("..", "__pycache__") and not link.is_symlink():
                link.symlink_to(Path(str(distribution.locate_file(top))))


def imports_of(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports of a file but those for type checkers, also those in functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports_of(ast.Module(node.orelse, []))
        else:
            yield from imports_of(node)


def missing_imports(scripts: Iterable[Path], packages: Path) -> dict[str, str]:
    """Run each script's imports, and the whole script but for its last block, with only `packages` to import from.

    A script that runs finds its folder and this project, too.

    Returns:
        By place (`file` or `file:line`): the name of the module that an import does not find.
    """
    scripts = list(scripts)
    codes = []
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        label = str(script.relative_to(ROOT))
        codes.append((label, f"__file__ = {str(script)!r}\n{text.replace('from __future__ import annotations', '')}"))
        codes += [
            (f"{label}:{node.lineno}", ast.unparse(node))
            for node in imports_of(ast.parse(text))
            if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
        ]
    folders = [*dict.fromkeys(str(script.parent) for script in scripts), str(ROOT), str(packages)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", _RUNNER],
        input=json.dumps([folders, codes]),
        env={**environment, "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    missing: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return missing
