"""The tool that plants faults shows the fault that no test notices, and counts the others as caught."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parent / "bench" / "planted_faults.py"
SOURCE = """
def grade(points: int) -> str:
    if points < 0:
        raise ValueError(f"{points - 1} points")
    return "good" if points >= 50 else "bad"
"""
TESTS = """
from marks import grade

def test_grades() -> None:
    assert grade(60) == "good" and grade(40) == "bad"

def test_that_fails_without_a_fault() -> None:
    assert grade(50) == "bad"
"""


def planted(folder: Path) -> list[str]:
    (folder / "marks.py").write_text(SOURCE)
    (folder / "test_marks.py").write_text(TESTS)
    command = [sys.executable, str(TOOL), "1", "100", "marks.py", "--", "test_marks.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return [line for line in done.stdout.splitlines() if "marks.py" in line or "faults caught" in line]


def test_faults_that_no_test_notices_are_shown(tmp_path: Path) -> None:
    *survived, count = planted(tmp_path)
    assert count == "2 of 6 faults caught, of 6 that can be planted"
    assert sorted(survived) == [
        "SURVIVED marks.py:3: '0' -> '1' (1 tests)",
        "SURVIVED marks.py:3: 'points < 0' -> 'points <= 0' (1 tests)",
        "SURVIVED marks.py:5: '50' -> '51' (1 tests)",
        "SURVIVED marks.py:5: 'points >= 50' -> 'points > 50' (1 tests)",
    ]
