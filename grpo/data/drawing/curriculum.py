"""Draw prompts by measured difficulty: pools of unseen, easy, normal and hard prompts, each with a share of the draws.

The solve rate of a prompt is the share of correct completions in its last groups (`data.curriculum`). Groups whose
completions are all correct or all wrong have no advantage, so prompts between teach more in the same time. DAPO
(arXiv:2503.14476) samples such groups and removes them; a curriculum draws fewer of them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Generic

from grpo.config.signals.curriculum import CurriculumConfig
from grpo.data.drawing.cursor import Item, shuffled

POOLS = ("unseen", "easy", "normal", "hard")
# Prompts that are not drawn, because the policy solves them always or never.
ASIDE = ("solved", "unsolved")


class Curriculum(Generic[Item]):
    """Draws items by their solve rates, and continues from a saved state.

    A pool is a queue. The unseen pool begins in a shuffled order that depends only on the seed. An item that is drawn
    leaves its pool; when its group is measured, it joins the end of the pool of its new solve rate. So the draws depend
    only on the seed and on the measured groups, in their order.
    """

    def __init__(
        self,
        items: Sequence[Item],
        seed: int,
        settings: CurriculumConfig,
        without: frozenset[int] = frozenset(),
        source: str = "",
    ) -> None:
        """Start with every item in the unseen pool.

        Args:
            items: items to draw.
            seed: seed of the order.
            settings: thresholds and shares.
            without: numbers of items to skip.
            source: name of the source; sources of the same size have different orders.
        """
        self._items, self._settings, self._without, self._source = items, settings, without, source
        self._weights: dict[str, float] = settings.shares.model_dump()
        # For each pool, its items in the order of their next draw, with the step at which they joined the pool.
        self._pools: dict[str, OrderedDict[int, int]] = {name: OrderedDict() for name in (*POOLS, *ASIDE)}
        self._pools["unseen"].update((at, 0) for at in shuffled(len(items), seed, source) if at not in without)
        self._credit = dict.fromkeys(POOLS, 0.0)
        self._under_way: dict[int, str] = {}
        self._groups: dict[int, deque[tuple[int, int]]] = {}
        self._steps = 0

    def next(self, count: int) -> list[Item]:
        """Return the next `count` items.

        If no other item is left, items that were set aside are drawn again, so that a step never asks the same question
        twice. If every item is under way, the item that has been under way for the longest time is drawn again.
        """
        return [self._items[self._draw()] for _ in range(count)]

    def _draw(self) -> int:
        name = self._due()
        if name is None:
            index = next(iter(self._under_way))
            name = self._under_way.pop(index)
        else:
            index, _ = self._pools[name].popitem(last=False)
        self._under_way[index] = name
        return index

    def _due(self) -> str | None:
        """The pool of the next item; None if every pool is empty.

        Smooth weighted round-robin: each pool that is not empty earns its share, and the pool with the largest credit
        pays 1.
        """
        filled = [name for name in POOLS if self._pools[name]]
        ready = [name for name in filled if self._weights[name] > 0]
        if not ready:
            return next((name for name in (*filled, *ASIDE) if self._pools[name]), None)
        total = sum(self._weights[name] for name in ready)
        for name in ready:
            self._credit[name] += self._weights[name] / total
        due = max(ready, key=lambda name: self._credit[name])
        self._credit[due] -= 1
        return due

    def observe(self, measured: Sequence[tuple[int, int, int]]) -> dict[str, float]:
        """Record the groups of a training step.

        Args:
            measured: for each group, the number of the item, the correct completions, and the completions with a
                verdict. A group without any verdict measures nothing.

        Returns:
            Metrics: `<pool>_groups`, the number of the step's groups that were drawn from the pool, and
            `<pool>_prompts`, the number of items in the pool.
        """
        self._steps += 1
        drawn = dict.fromkeys((*POOLS, *ASIDE), 0)
        for index, correct, known in measured:
            before = self._under_way.pop(index, None) or self._pool_of(index)
            drawn[before] += 1
            if known:
                memory = self._groups.setdefault(index, deque(maxlen=self._longest))
                memory.append((correct, known))
                before = self._measured_pool(memory)
            for pool in self._pools.values():
                pool.pop(index, None)
            self._pools[before][index] = self._steps
        self._return()
        numbers = {f"{name}_groups": float(count) for name, count in drawn.items()}
        return numbers | {f"{name}_prompts": float(len(pool)) for name, pool in self._pools.items()}

    @property
    def _longest(self) -> int:
        chosen = self._settings
        return max(chosen.groups, chosen.set_aside_solved or 0, chosen.set_aside_unsolved or 0)

    def _pool_of(self, index: int) -> str:
        return next(name for name, pool in self._pools.items() if index in pool)

    def _measured_pool(self, memory: Sequence[tuple[int, int]]) -> str:
        groups = list(memory)
        solved, unsolved = self._settings.set_aside_solved, self._settings.set_aside_unsolved
        if solved and len(groups) >= solved and all(correct == known for correct, known in groups[-solved:]):
            return "solved"
        if unsolved and len(groups) >= unsolved and not any(correct for correct, _ in groups[-unsolved:]):
            return "unsolved"
        return self._by_rate(groups)

    def _by_rate(self, groups: Sequence[tuple[int, int]]) -> str:
        counted = groups[-self._settings.groups :]
        rate = sum(correct for correct, _ in counted) / sum(known for _, known in counted)
        if rate >= self._settings.easy_from:
            return "easy"
        return "hard" if rate <= self._settings.hard_to else "normal"

    def _return(self) -> None:
        """Return the items that have been set aside for `return_after` steps to the pools of their solve rates."""
        after = self._settings.return_after
        for name in ASIDE if after else ():
            pool = self._pools[name]
            while pool and after and next(iter(pool.values())) + after <= self._steps:
                index, _ = pool.popitem(last=False)
                self._pools[self._by_rate(list(self._groups[index]))][index] = self._steps

    def state_dict(self) -> dict[str, Any]:
        """Return pools, solve rates and items under way, as plain data."""
        return {
            "items": len(self._items),
            "curriculum": {
                "pools": {name: list(pool.items()) for name, pool in self._pools.items()},
                "under_way": list(self._under_way.items()),
                "credit": dict(self._credit),
                "groups": {index: list(memory) for index, memory in self._groups.items()},
                "steps": self._steps,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state. Other shares and thresholds hold for the draws and the groups from here on.

        Raises:
            ValueError: the state comes from other items, or from a run without a curriculum.
        """
        of = f" of the source {self._source!r}" if self._source else ""
        if "curriculum" not in state:
            raise ValueError(
                f"the checkpoint was written without data.curriculum{of}, and so has no solve rates; remove "
                "data.curriculum, or start a new run folder"
            )
        if state["items"] != len(self._items):
            raise ValueError(
                f"the checkpoint was written with {state['items']} rows{of}, but the data has {len(self._items)} now; "
                "resume with the same data and length limits, or start a new run folder"
            )
        stored = state["curriculum"]
        shuffled_now = list(self._pools["unseen"])
        for name, pool in self._pools.items():
            pool.clear()
            pool.update((index, step) for index, step in stored["pools"][name] if index not in self._without)
        self._under_way = {index: name for index, name in stored["under_way"] if index not in self._without}
        known = {index for pool in self._pools.values() for index in pool} | set(self._under_way)
        # The first run left these items out.
        self._pools["unseen"].update((index, 0) for index in shuffled_now if index not in known)
        self._credit = dict(stored["credit"])
        self._groups = {index: deque(memory, maxlen=self._longest) for index, memory in stored["groups"].items()}
        self._steps = stored["steps"]
