"""Intervals of work: joined where they touch, bounded, and told once."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

from rewards.pool.busy_clock import MOST, BusyClock


def test_neighbours_and_overlaps_are_one_and_gaps_are_kept() -> None:
    clock = BusyClock()
    for begin, end in ((1.0, 2.0), (2.01, 3.0), (3.5, 4.0), (3.2, 3.6), (2.9, 3.1), (9.0, 8.0)):
        clock.add("verify", begin, end)
    clock.add("sync", 2.0, 2.5)
    assert clock.take() == {"verify": [(1.0, 3.1), (3.2, 4.0)], "sync": [(2.0, 2.5)]}
    assert clock.take() == {}, "what was taken is told once"


def test_many_short_intervals_stay_few_and_cover_the_same_time() -> None:
    clock, generator = BusyClock(), random.Random(0)
    at, worked = 0.0, 0.0
    for _ in range(5000):
        at += generator.uniform(0.03, 0.1)
        clock.add("verify", at, at + 0.05)
        at, worked = at + 0.05, worked + 0.05
    # A long silence is still to be seen.
    clock.add("verify", at + 500, at + 501)
    found = clock.take()["verify"]
    assert 2 <= len(found) <= MOST and found == sorted(found)
    assert found[-1] == (at + 500, at + 501) and 0.03 <= found[0][0] <= 0.1
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    assert sum(end - begin for begin, end in found) >= worked


def test_making_is_timed_and_using_is_not() -> None:
    clock = BusyClock()

    def slowly() -> Iterator[int]:
        for item in (1, 2):
            time.sleep(0.06)
            yield item

    began = time.time()
    used = []
    for item in clock.each("sync", slowly()):
        time.sleep(0.1)
        used.append(item)
    found = clock.take()["sync"]
    assert used == [1, 2] and began <= found[0][0]
    making = [end - begin for begin, end in found]
    assert sum(making) < time.time() - began - 0.19 and making[0] >= 0.06, "two pauses of 0.1 s are left out"
    other = BusyClock()
    other.merge({"sync": found})
    assert other.take() == {"sync": found}
