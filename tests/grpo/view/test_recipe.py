"""The recipe that the page shows before the curves."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.view.recipe import recipe


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"path": "rows.jsonl", "sources": []}, "rows.jsonl"),
        ({"path": None, "hub": "owner/rows"}, "owner/rows"),
        ({"generator": "grpo.data.arithmetic:chains"}, "grpo.data.arithmetic:chains"),
        (
            {
                "path": "of_all.jsonl",
                "sources": [
                    {"name": "sums", "path": None, "generator": "rows.py:sums", "ratio": 2},
                    {"name": "math", "path": "math.jsonl", "ratio": 1.0},
                ],
            },
            "sums (rows.py:sums, ratio 2), math (math.jsonl, ratio 1.0)",
        ),
    ],
)
def test_the_recipe_has_the_data_of_one_source_and_of_several(data: dict[str, Any], shown: str) -> None:
    assert recipe({"data": data}) == [("data", shown)]
