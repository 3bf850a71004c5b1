"""Download vLLM's wheel for GPUs, as `launch/requirements-gpu.lock` pins it, and unpack its Python files.

    python tests/wheel/fetch_wheel.py build/gpu-wheel

It uses the sources of your pip. The wheel has 0.3 GB; only its text stays. Nothing is downloaded again while the lock
stays the same.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LOCK = Path(__file__).parents[2] / "launch" / "requirements-gpu.lock"


def pinned(lock: str) -> str:
    """vLLM's requirement in the text of a lock, with the hashes of its files.

    Raises:
        ValueError: the lock has no vLLM.
    """
    found = re.search(r"^vllm==.*(?:(?<=\\)\n.*)*", lock, re.MULTILINE)
    if not found:
        raise ValueError(f"{LOCK} pins no vllm; run make lock")
    return found[0] + "\n"


def unpack(wheel: Path, folder: Path) -> int:
    """Replace `folder` by the wheel's Python files; return their number."""
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        archive.extractall(folder, names)
    return len(names)


def main() -> int:
    folder = Path(sys.argv[1])
    requirement, mark = pinned(LOCK.read_text(encoding="utf-8")), folder / "pinned"
    if mark.is_file() and mark.read_text(encoding="utf-8") == requirement:
        return 0
    with tempfile.TemporaryDirectory() as downloads:
        wanted = Path(downloads, "wanted.txt")
        wanted.write_text(requirement, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--require-hashes", "-r", str(wanted), "-d", downloads], check=False)
        wheels = list(Path(downloads).glob("vllm-*.whl"))
        if done.returncode or not wheels:
            print("wheel-check: pip could not download vLLM's wheel for GPUs, so nothing was checked", file=sys.stderr)
            return 1
        print(f"wheel-check: {wheels[0].name}: {unpack(wheels[0], folder)} Python files", flush=True)
    mark.write_text(requirement, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
