"""Ctrl-C and a scheduler's SIGTERM: finish the step, save a checkpoint, and stop."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType

from grpo.cluster.failures import ProcessDied, Stalled
from grpo.visible import visible


class Interrupt:
    """While active, the first SIGINT or SIGTERM requests a stop, and the second signal stops the run at once.

    A loop checks `requested` between steps. The context must be entered in the main thread.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested and isinstance(error, ProcessDied | Stalled):
            # The user requested a stop, so these errors must not cause a restart.
            print(visible(f"stopped without a checkpoint of this step: {error}"), file=sys.stderr, flush=True)
            raise KeyboardInterrupt from error

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        print(
            f"{name}: stopping after this step, with a checkpoint; a second signal stops at once",
            file=sys.stderr,
            flush=True,
        )
