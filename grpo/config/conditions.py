"""Published conditions of evaluations, for `grpo eval --like NAME`: how the completions of each task are sampled."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a publication sampled its completions.

    Attributes:
        source: the publication, and what these settings do not cover.
        sampling: sampling settings of all tasks.
        k: task -> completions for each problem, if the publication states another number for it than `sampling`.
        max_tokens: task -> longest completion, if it is another one than in `sampling`.
    """

    source: str
    sampling: Mapping[str, Any]
    k: Mapping[str, int] = field(default_factory=dict)
    max_tokens: Mapping[str, int] = field(default_factory=dict)

    def of_task(self, task: str) -> dict[str, Any]:
        """Return the sampling settings of a task."""
        settings = dict(self.sampling)
        settings |= {"k": self.k[task]} if task in self.k else {}
        return settings | ({"max_tokens": self.max_tokens[task]} if task in self.max_tokens else {})


_REASONING = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 32768}
PUBLISHED = {
    "deepseek-r1": Conditions(
        "DeepSeek-R1 (arXiv:2501.12948): 64 completions of up to 32,768 tokens at temperature 0.6, top-p 0.95",
        {**_REASONING, "k": 64},
    ),
    "open-r1": Conditions(
        "README of huggingface/open-r1: as DeepSeek-R1, with fewer completions on the larger tasks",
        _REASONING,
        k={"aime24": 64, "aime25": 64, "math500": 4, "gpqa_diamond": 8, "livecodebench": 16},
    ),
    "qwen3-thinking": Conditions(
        "Qwen3 (arXiv:2505.09388), thinking mode: up to 32,768 tokens (AIME: 38,912) at temperature 0.6, top-p 0.95, "
        "top-k 20",
        {**_REASONING, "top_k": 20},
        k={"aime24": 64, "aime25": 64, "gpqa_diamond": 10},
        max_tokens={"aime24": 38912, "aime25": 38912},
    ),
}


def published(name: str) -> Conditions:
    """Return the conditions of a publication.

    Raises:
        ValueError: there are no such conditions; the message lists all names.
    """
    if name not in PUBLISHED:
        near = difflib.get_close_matches(name, PUBLISHED, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"like={name!r} is not known{hint} Known: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
