"""The section `data.curriculum`: prompts are drawn by how often the policy solves them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from grpo.config.section import Positive, Section

Share = Annotated[float, Field(ge=0)]
SolveRate = Annotated[float, Field(ge=0, le=1)]


class PoolSharesConfig(Section):
    """Weights of the pools.

    A pool gives weight / (sum of all weights) of the prompts, exact to less than a prompt. An empty pool leaves its
    part to the other pools.
    """

    unseen: Share = 2.0
    """Prompts that have no measured group yet."""
    easy: Share = 1.0
    """Prompts with a solve rate of `easy_from` or more."""
    normal: Share = 4.0
    """Prompts between the two."""
    hard: Share = 1.0
    """Prompts with a solve rate of `hard_to` or less."""


class CurriculumConfig(Section):
    """Prompts by measured difficulty.

    The solve rate of a prompt is the share of `correct` completions in its last groups. Completions without a reward do
    not count.
    """

    shares: PoolSharesConfig = PoolSharesConfig()
    easy_from: SolveRate = 0.8
    """Smallest solve rate of an easy prompt."""
    hard_to: SolveRate = 0.2
    """Largest solve rate of a hard prompt."""
    groups: Positive = 2
    """Number of a prompt's last groups that its solve rate counts."""
    set_aside_solved: Positive | None = None
    """A prompt is set aside if every completion of this number of its groups in a row was correct; None sets none
    aside."""
    set_aside_unsolved: Positive | None = None
    """A prompt is set aside if no completion of this number of its groups in a row was correct; None sets none
    aside."""
    return_after: Positive | None = None
    """Steps after which a prompt that was set aside may be drawn again; None keeps it aside for the whole run."""

    def problems(self) -> Iterator[str]:
        """Find problems between several keys, each with its remedy."""
        if self.hard_to >= self.easy_from:
            yield (
                f"data.curriculum.hard_to={self.hard_to:g} must be smaller than data.curriculum.easy_from="
                f"{self.easy_from:g}, or a prompt would be hard and easy; 0.2 and 0.8 are usual"
            )
        if not any(self.shares.model_dump().values()):
            yield "data.curriculum.shares are all 0, so no pool gives prompts; raise at least one of them"
        if self.return_after is not None and self.set_aside_solved is None and self.set_aside_unsolved is None:
            yield (
                f"data.curriculum.return_after={self.return_after} returns prompts that were set aside, but none are; "
                "set set_aside_solved or set_aside_unsolved, or remove return_after"
            )
