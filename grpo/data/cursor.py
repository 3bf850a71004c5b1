"""Draw items of a data set in a shuffled order without end. A resumed run continues in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

Item = TypeVar("Item")


class Cursor(Generic[Item]):
    """Draws items in a shuffled order without end, and continues from a saved state.

    The permutation of an epoch depends only on the run's seed and the epoch's number. So after a resume in the middle
    of an epoch, the later epochs have the same order as without a stop.
    """

    def __init__(self, items: Sequence[Item], seed: int, without: frozenset[int] = frozenset()) -> None:
        """Start before the first item of the first epoch.

        Args:
            items: items to draw.
            seed: seed of the order.
            without: numbers of items to skip. The order of the other items does not depend on them, and a resumed run
                may skip other items.
        """
        self._items, self._without = items, without
        self._seed = seed
        self._start(epoch=0)

    def _start(self, epoch: int, taken: int = 0) -> None:
        # PyTorch's CPU generator reads only the lowest 32 bits of a seed.
        digest = hashlib.blake2b(f"{self._seed}/{epoch}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        self._order: list[int] = torch.randperm(len(self._items), generator=generator).tolist()
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
            ValueError: the state comes from another number of items.
        """
        if state["items"] != len(self._items):
            raise ValueError(
                f"the checkpoint was written with {state['items']} rows of data, but the data has {len(self._items)} "
                "now; resume with the same data and length limits, or start a new run folder"
            )
        # A checkpoint of version 0.1 holds the state of torchdata's loader, whose permutations are the same.
        taken = state["taken"] if "taken" in state else state["loader"]["_num_yielded"]
        self._start(state["epoch"], int(taken))
