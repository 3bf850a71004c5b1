"""Progress bars of the library `datasets`, which would stand between the lines of a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from grpo.deferred import deferred

if TYPE_CHECKING:
    import datasets
else:
    datasets = deferred("datasets")


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars inside the block. Bars of downloads belong to another library, and stay."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
