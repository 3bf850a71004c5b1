"""The table of sizes in docs/first_gpu_run.md is the memory plan's, and its rows fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_pages import ROOT
from gpu_sizes import CONFIG, FREE_SHARE, SEQUENCES, USABLE_GIB, Row, rows, table, write_shape

from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.planning.memory import GIB
from grpo.planning.memory_fit import Memory, shortage
from grpo.planning.policy_shape import planned_shape

PAGE = ROOT / "docs" / "first_gpu_run.md"


@pytest.fixture(scope="module")
def computed() -> list[Row]:
    return rows()


def test_the_page_has_the_table_of_the_plan(computed: list[Row]) -> None:
    assert table(computed) in PAGE.read_text(encoding="utf-8"), (
        f"put the output of `python tests/docs/gpu_sizes.py` into {PAGE.name}"
    )


def test_every_row_fits(computed: list[Row]) -> None:
    assert {row.policy for row in computed} == {"0.6B", "1.7B", "4B", "8B"}
    for row in computed:
        assert row.short is None, row
        assert row.share >= FREE_SHARE - 1e-9, row
        assert row.sequences >= SEQUENCES, row


@pytest.mark.parametrize(("policy", "sizes"), [("4B", (24, 48)), ("8B", tuple(USABLE_GIB))])
def test_what_the_page_says_does_not_fit_does_not(policy: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    # All weights, and the smallest share that holds the generator's weights.
    settings = ["generator.gpu_memory_share=0.2", "learner.microbatch_tokens=4096"]
    config = load(TrainConfig, ROOT / CONFIG, [f"policy.path={write_shape(policy, tmp_path)}", *settings])
    shape = planned_shape(config)
    assert shape is not None
    for size in sizes:
        here = Memory(USABLE_GIB[size] * GIB, 1024 * GIB, 1024 * GIB)
        assert shortage(config, shape, here) is not None, size
