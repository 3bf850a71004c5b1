"""The watchdog: a thread of the driver that notices a stalled run and reports where it stalled.

The report names the phase, the pending results and the actors that have not answered. The watchdog writes the Python
stacks of the driver and of all actors into the run's folder. Then it warns, stops or restarts the run.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import RenderableType

from grpo.cluster import processes as ray_processes
from grpo.cluster.activity import Activity
from grpo.cluster.failures import Stalled
from grpo.cluster.processes import ActorProcess
from grpo.config import WatchdogConfig as Settings
from grpo.report import run_files
from grpo.report.progress import Progress
from grpo.run.folder import note_fault
from grpo.types import Phase
from grpo.visible import visible

# If the main thread does not react to the signal for this many seconds, the driver is killed and cannot close properly.
_DEAF_S = 120.0
_START_SHARE = 0.9
_SIGNAL = signal.SIGUSR2
# Phases that report little activity: engines start, or evaluations run in other processes.
_QUIET = (Phase.START, Phase.WAIT)

logger = logging.getLogger(__name__)


class Watchdog:
    """Watches the run inside a `with` block. If the action is not `warn`, the block must be in the main thread."""

    def __init__(
        self,
        settings: Settings,
        run_dir: Path,
        activity: Activity,
        show: Callable[[RenderableType], None],
        start_s: float,
    ) -> None:
        """Prepare to watch the activity of a run.

        Args:
            settings: the watchdog's time limits and action.
            run_dir: the run's folder.
            activity: the run's activity, which the watchdog watches.
            show: function that shows a line.
            start_s: deadline of a start, in seconds; a start may report no activity for a long time.
        """
        self._settings = settings
        # Engines report little activity while they start, so the limit is then longer, but shorter than the start's
        # deadline.
        self._start_s = max(settings.stall_s, _START_SHARE * start_s)
        self._run_dir = run_dir
        self._activity = activity
        self._show = show
        self._over, self._heard = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._stalled = ""

    def __enter__(self) -> Watchdog:
        self._activity.moved()
        if self._settings.action != "warn":
            self._before = signal.signal(_SIGNAL, self._interrupt)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        if self._settings.action != "warn":
            signal.signal(_SIGNAL, self._before)

    def _watch(self) -> None:
        acted = False
        while not self._over.wait(min(1.0, self._settings.stall_s / 4)):
            quiet = self._activity.phase[0] in _QUIET
            if self._activity.still_s < (self._start_s if quiet else self._settings.stall_s):
                acted = False
            elif not acted:
                acted = True
                self._act()

    def _act(self) -> None:
        """Write the stacks into a file, report the stall in one line, and do the configured action."""
        still_s, (phase, text) = self._activity.still_s, self._activity.phase
        actors = [process for process in ray_processes.actors_of_job() if process.pid and not process.died_at]
        waits = self._activity.waits
        silent = {actor for wait in waits for actor in ray_processes.holding_up(wait.references)}
        guilty = ", ".join(process.description for process in actors if process.actor in silent)
        stalled = f"nothing has moved for {still_s:.0f} s in phase {text!r}"
        stalled += f": waiting for {', '.join(wait.what for wait in waits)}" if waits else ""
        stalled += f"; no answer from {guilty}" if guilty else ""
        try:
            where = f"stacks are in {self._write(phase, stalled, actors, silent)}"
        except OSError as failure:
            where = f"stacks could not be written: {failure}"
        self._stalled = f"{stalled}; {where}"
        # Reading the stacks takes seconds. Meanwhile the run may have continued or ended.
        gone_on = self._over.is_set() or self._activity.still_s < still_s
        if self._settings.action == "warn" or gone_on:
            note_fault(self._run_dir, self._stalled)
            self._show(self._stalled)
        else:
            self._end(actors)

    def _write(self, phase: Phase, stalled: str, actors: list[ActorProcess], silent: set[str]) -> Path:
        now = time.gmtime()
        path = self._run_dir / run_files.STALLS / f"{time.strftime('%Y%m%d-%H%M%S', now)}_{phase}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        stacks = ray_processes.stacks_of(sorted(actors, key=lambda actor: actor.actor not in silent))
        text = [
            f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', now)} {stalled}\n",
            "" if actors else "\nno actor is running\n",
            *(f"\n=== {name}\n{stack.rstrip()}\n" for name, stack in stacks.items()),
            f"\n=== driver (pid {os.getpid()}): all of its threads\n{_own_stacks()}",
        ]
        path.write_text("".join(text), encoding="utf-8")
        return path

    def _end(self, actors: list[ActorProcess]) -> None:
        # Send the signal before killing the actors. The main thread then reports the stall, not an actor's death.
        signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
        ray_processes.kill(actors)
        if not self._heard.wait(_DEAF_S):
            message = f"{self._stalled}; the driver does not react to the signal and is ended"
            note_fault(self._run_dir, message)
            print(visible(message), flush=True)
            os._exit(1)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._activity.interrupt(self._raise)

    def _raise(self) -> NoReturn:
        self._heard.set()
        raise Stalled(self._stalled)


class WatchedProgress:
    """A display that reports phases and steps to the watchdog, and logs phases and lines."""

    def __init__(self, progress: Progress, activity: Activity) -> None:
        """Pass every call on to `progress`."""
        self._progress = progress
        self._activity = activity

    @contextlib.contextmanager
    def phase(self, phase: Phase, text: str) -> Iterator[None]:
        """See `Progress`."""
        began = time.monotonic()
        logger.info("%s ...", text)
        with self._activity.within(phase, text), self._progress.phase(phase, text):
            yield
        logger.info("%s: %.1f s", text, time.monotonic() - began)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Progress`."""
        self._activity.moved()
        self._progress.step(step, metrics)

    def show(self, renderable: RenderableType) -> None:
        """See `Progress`."""
        if isinstance(renderable, str):
            logger.info("%s", renderable)
        self._progress.show(renderable)

    def close(self) -> None:
        """See `Progress`."""
        self._progress.close()


def _own_stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
