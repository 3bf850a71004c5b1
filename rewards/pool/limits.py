"""Check the settings of a verifier pool."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """The settings of a `VerifierPool`, with the defaults filled in. `VerifierPool` describes each setting."""

    workers: int
    deadline_s: float
    memory_mib: int | None
    replays: int
    spares: int
    start_s: float
    overlap: int

    @staticmethod
    def checked(
        workers: int | None,
        deadline_s: float,
        memory_mib: int | None,
        replays: int,
        spares: int | None,
        start_s: float,
        overlap: int,
    ) -> PoolLimits:
        """Fill in the defaults, and check the settings.

        Raises:
            ValueError: a setting is out of range; the message contains its value.
        """
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        extra = 2 * count if spares is None else spares
        for name, value, least in (
            ("workers", count, 1), ("deadline_s", deadline_s, 0.01), ("memory_mib", memory_mib or 64, 64),
            ("replays", replays, 0), ("spares", extra, 0), ("start_s", start_s, 0.1), ("overlap", overlap, 1),
        ):  # fmt: skip
            if not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
        return PoolLimits(count, deadline_s, memory_mib, replays, extra, start_s, overlap)
