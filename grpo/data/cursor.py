"""An endless walk over a data set that resumes exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

Item = TypeVar("Item")


class Cursor(Generic[Item]):
    """An endless, shuffled walk over items that goes on where its state was taken.

    Each epoch has a permutation of its own, drawn from the run's seed and the epoch's number. So a walk that resumes
    in the middle of an epoch draws the later epochs in the same order as a walk without a stop.
    """

    def __init__(self, items: Sequence[Item], seed: int, without: frozenset[int] = frozenset()) -> None:
        """Start before the first item of the first epoch.

        Args:
            items: the items of the walk.
            seed: seed of the order.
            without: numbers of items that the walk passes over. The order of the others does not depend on them, and a
                walk may resume with other numbers here.
        """
        self._items, self._without = items, without
        self._seed = seed
        self._start(epoch=0)

    def _start(self, epoch: int, taken: int = 0) -> None:
        # PyTorch's CPU generator reads the lowest 32 bits of a seed and no more.
        digest = hashlib.blake2b(f"{self._seed}/{epoch}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        self._order: list[int] = torch.randperm(len(self._items), generator=generator).tolist()
        self._epoch, self._taken = epoch, taken

    def next(self, count: int) -> list[Item]:
        """The next `count` items, going over into the next epoch where this one ends."""
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
        """Where the walk is, with the number of items that it walks over."""
        return {"items": len(self._items), "epoch": self._epoch, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: the state was taken over another number of items.
        """
        if state["items"] != len(self._items):
            raise ValueError(
                f"the checkpoint walked over {state['items']} rows, the data has {len(self._items)} now; "
                "resume with the same data and length limits, or start a new run folder"
            )
        # A checkpoint of version 0.1 holds the state of torchdata's loader, whose permutations are the same.
        taken = state["taken"] if "taken" in state else state["loader"]["_num_yielded"]
        self._start(state["epoch"], int(taken))
