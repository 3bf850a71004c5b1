"""Draw items of a data set in a shuffled order without end. A resumed run continues in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Generic, Protocol, TypeVar

import torch

Item = TypeVar("Item")


def shuffled(count: int, seed: int, source: str = "", epoch: int = 0) -> list[int]:
    """Return the numbers below `count` in the shuffled order of an epoch. Each seed and source has another order."""
    # PyTorch's CPU generator reads only the lowest 32 bits of a seed.
    name = f"{seed}/{source}/{epoch}" if source else f"{seed}/{epoch}"
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return list(torch.randperm(count, generator=generator).tolist())


class Drawing(Protocol[Item]):
    """What draws the items of one source, and continues from a saved state."""

    def next(self, count: int) -> list[Item]:
        """Return the next `count` items."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        ...


class Cursor(Generic[Item]):
    """Draws items in a shuffled order without end, and continues from a saved state.

    The permutation of an epoch depends only on the run's seed and the epoch's number. So after a resume in the middle
    of an epoch, the later epochs have the same order as without a stop.
    """

    def __init__(
        self, items: Sequence[Item], seed: int, without: frozenset[int] = frozenset(), source: str = ""
    ) -> None:
        """Start before the first item of the first epoch.

        Args:
            items: items to draw.
            seed: seed of the order.
            without: numbers of items to skip. The order of the other items does not depend on them, and a resumed run
                may skip other items.
            source: name of the source; sources of the same size have different orders.
        """
        self._items, self._without = items, without
        self._source, self._seed = source, seed
        self._start(epoch=0)

    def _start(self, epoch: int, taken: int = 0) -> None:
        self._order = shuffled(len(self._items), self._seed, self._source, epoch)
        self._epoch, self._taken = epoch, taken

    def next(self, count: int) -> list[Item]:
        """Return the next `count` items. After the last item of an epoch, the next epoch begins."""
        items: list[Item] = []
        while len(items) < count:
            if self._taken == len(self._order):
                self._start(self._epoch + 1)
            index = self._order[self._taken]
            self._taken += 1
            if index not in self._without:
                items.append(self._items[index])
        return items

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the number of items."""
        return {"items": len(self._items), "epoch": self._epoch, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state comes from another number of items, or from several sources.
        """
        if "sources" in state:
            raise ValueError(_other_sources(state["sources"], []))
        if "curriculum" in state:
            raise ValueError(
                "the checkpoint was written with data.curriculum, whose order of prompts depends on solve rates; "
                "resume with data.curriculum, or start a new run folder"
            )
        if state["items"] != len(self._items):
            of = f"the source {self._source!r}" if self._source else "data"
            raise ValueError(
                f"the checkpoint was written with {state['items']} rows of {of}, but the data has {len(self._items)} "
                "now; resume with the same data and length limits, or start a new run folder"
            )
        # A checkpoint of version 0.1 holds the state of torchdata's loader, whose permutations are the same.
        taken = state["taken"] if "taken" in state else state["loader"]["_num_yielded"]
        self._start(state["epoch"], int(taken))


class Mixture(Generic[Item]):
    """Draws items of several sources in the ratio of their shares, and continues from a saved state.

    After n draws, a source has given its share of n, exact to less than one item. The draws depend on nothing else, so
    the order within a source is the order of its cursor. A source that runs out begins its next epoch.
    """

    def __init__(self, cursors: Mapping[str, Drawing[Item]], ratios: Mapping[str, float]) -> None:
        """Start before the first item of each source.

        Args:
            cursors: cursor of each source, by the name of the source.
            ratios: weight of each source, above 0.
        """
        self._cursors, self._ratios = cursors, dict(ratios)
        # Fractions of the written numbers, so that 0.1 and 0.2 are exactly 1 and 2 tenths.
        exact = {name: Fraction(str(ratio)) for name, ratio in ratios.items()}
        self._shares = {name: ratio / sum(exact.values()) for name, ratio in exact.items()}
        self._drawn = dict.fromkeys(cursors, 0)

    def next(self, count: int) -> list[Item]:
        """Return the next `count` items."""
        items: list[Item] = []
        for _ in range(count):
            name = self._due()
            self._drawn[name] += 1
            items += self._cursors[name].next(1)
        return items

    def _due(self) -> str:
        """The source of the next item.

        It is the source with the earliest deadline among those whose share is not used up. On a single processor, this
        order keeps every deadline of proportional shares (Baruah et al. 1996, "Proportionate Progress", section 2).
        """
        draw = sum(self._drawn.values()) + 1
        ready = (name for name, drawn in self._drawn.items() if drawn < self._shares[name] * draw)
        return min(ready, key=lambda name: (self._drawn[name] + 1) / self._shares[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the position in each source."""
        return {
            "sources": {
                name: cursor.state_dict() | {"drawn": self._drawn[name], "ratio": self._ratios[name]}
                for name, cursor in self._cursors.items()
            }
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. If a ratio has changed, the new shares count from here on.

        Raises:
            ValueError: the state comes from other sources, or from another number of items.
        """
        sources = state.get("sources", {})
        if sources.keys() != self._cursors.keys():
            raise ValueError(_other_sources(sources, list(self._cursors)))
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(sources[name])
        if all(sources[name]["ratio"] == ratio for name, ratio in self._ratios.items()):
            self._drawn = {name: sources[name]["drawn"] for name in self._cursors}


def _other_sources(before: Mapping[str, Any], now: Sequence[str]) -> str:
    then, today = (", ".join(map(repr, names)) or "none" for names in (before, now))
    return (
        f"the checkpoint was written with these data.sources: {then}; now there are: {today}; resume with the same "
        "sources, or start a new run folder"
    )
