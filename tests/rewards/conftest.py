"""Where the tests find the data sets, if they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with the data sets; skips the test where there is none."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("VERIGRPO_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder} (set VERIGRPO_DATA)")
    return folder
