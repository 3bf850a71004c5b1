"""Logs: a file for each process, the newest linked, bounded, and safe to show on a terminal."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.report import log_file
from grpo.report.log_file import ActorFile, LogPlace
from grpo.report.logs import driver_log, follow_libraries, logs_failures, open_actor_log, present_place, see_log

ROOT = Path(__file__).parents[3]
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +\S+ \d+ [\w.]+: .*")
logger = logging.getLogger("grpo.example")


def log_of(folder: Path, actor: str = "driver") -> str:
    return (folder / "logs" / f"{actor}.log").read_text(encoding="utf-8")


def test_each_process_writes_a_file_and_the_newest_is_linked(tmp_path: Path) -> None:
    for life in ("first", "second"):
        with driver_log(tmp_path, "info"):
            logger.info("the %s life", life)
    link = tmp_path / "logs" / "driver.log"
    assert link.is_symlink() and not Path(os.readlink(link)).is_absolute(), "a run's folder may be moved"
    assert "the second life" in link.read_text()
    lives = sorted((tmp_path / "logs" / "history").glob("driver.*.log"))
    assert ["the first life" in one.read_text() for one in lives] == [True, False]
    lines = log_of(tmp_path).splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert f" driver {os.getpid()} grpo.example: the second life" in lines[-2]
    assert "Python" in lines[0] and "torch" in lines[0] and "the command: " in lines[1]


def test_a_job_that_refuses_to_start_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    with pytest.raises(OSError) as refused, driver_log(folder, "info"):
        logger.info("the data is read")
        raise OSError("no such data")
    assert not folder.parent.exists() and not hasattr(refused.value, "__notes__")
    with driver_log(folder, "info"):
        logger.info("the data is read")
        folder.mkdir(parents=True)
        logger.info("the folder is made")
    assert re.findall(r"the (data|folder)", log_of(folder)) == ["data", "folder"]


def test_the_level_is_of_our_records_and_libraries_keep_theirs(tmp_path: Path) -> None:
    for level, present in (("debug", "abc"), ("info", "bc"), ("warning", "c"), ("error", "")):
        folder = tmp_path / level
        folder.mkdir()
        with driver_log(folder, level):  # type: ignore[arg-type]
            place = present_place()
            assert place and (folder / "logs" / "history" / place.driver).exists(), "actors look for it"
            for name, send in (("a", logger.debug), ("b", logger.info), ("c", logger.warning)):
                send("record %s", name)
            logging.getLogger("some.library").info("an address with a secret")
            logging.getLogger("some.library").warning("from a library")
        text = log_of(folder)
        assert re.findall(r"record (\w)", text) == list(present)
        assert "secret" not in text and text.count("from a library") == 1
    assert logging.getLogger("grpo").level == logging.NOTSET and present_place() is None


def test_libraries_that_keep_records_from_the_root_are_followed(tmp_path: Path) -> None:
    alone = logging.getLogger("vllm_like")
    alone.propagate = False
    with driver_log(tmp_path, "info"):
        below = logging.getLogger("vllm_like.engine")
        follow_libraries()
        follow_libraries()
        for handler in alone.handlers:
            handler.setFormatter(logging.Formatter("as Ray formats: %(message)s"))
        below.warning("KV cache")
    assert "as Ray formats" not in log_of(tmp_path) and log_of(tmp_path).count("vllm_like.engine: KV cache") == 1
    assert not alone.handlers


def test_the_terminal_stays_as_it_is(tmp_path: Path) -> None:
    """Python's own warnings on standard error still come, ours do not, with and without a log."""
    program = """
import logging, sys, pathlib
from grpo.report.logs import driver_log
import rewards
def both(when):
    logging.getLogger("library").warning("library " + when)
    logging.getLogger("grpo.run").error("grpo " + when)
    logging.getLogger("rewards.pool").error("rewards " + when)
both("without")
with driver_log(pathlib.Path(sys.argv[1]), "info"):
    both("within")
both("after")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "library without\nlibrary within\nlibrary after\n")


def test_hostile_text_neither_commands_a_terminal_nor_passes_for_a_record(tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07 \r\u202e x\n2026-01-01T00:00:00.000Z INFO driver 1 grpo: forged"
    with driver_log(tmp_path, "info"):
        logger.warning("reason: %s", hostile)
        try:
            raise RuntimeError(hostile)
        except RuntimeError:
            logger.exception("raised")
    text = log_of(tmp_path)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "⟨U+001B⟩]0;title" in text and "Traceback (most recent call last)" in text
    assert "\n2026-01-01" not in text and "\n    2026-01-01" in text


def test_a_lone_surrogate_can_be_written(tmp_path: Path) -> None:
    # In a process of its own: pytest keeps what is logged, and cannot send a surrogate to the process that reports.
    program = f"""
import logging, pathlib
from grpo.report.logs import driver_log
with driver_log(pathlib.Path({str(tmp_path)!r}), "info"):
    logging.getLogger("grpo.example").warning("a lone %s here", chr(0xD800))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert re.search(r"a lone \S+ here", log_of(tmp_path))


def test_secrets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    secrets = "0123456789abcdef hf_abcdefghijklmnopqrstu https://me:pass@host/v1?key=query redis://:word@host:1"
    with driver_log(tmp_path, "info"):
        logger.info("%s", secrets)
        logger.error("failed", exc_info=ValueError(secrets))
    text = log_of(tmp_path)
    for secret in ("0123456789abcdef", "abcdefghij", "pass", "query", "word"):
        assert secret not in text, secret
    assert text.count("https://host/v1") == 2 and text.count("redis://***host:1") == 2


def test_a_file_and_a_record_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "FILE_BYTES", 4000)
    with driver_log(tmp_path, "info"):
        for number in range(400):
            logger.info("record %d %s", number, "x" * 60)
        assert "record 399" in log_of(tmp_path), "the link stays on the newest part"
        logger.info("%s", "y" * 1_000_000)
    files = list((tmp_path / "logs" / "history").glob("driver.*"))
    assert len(files) == 1 + log_file.OLDER_FILES
    assert sum(one.stat().st_size for one in files) < 4 * 4000 + 2 * log_file.RECORD_CHARACTERS
    assert any("934,464 characters are left out" in one.read_text() for one in files)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_a_job_or_a_thread_is_in_the_log_and_a_failure_names_it(tmp_path: Path) -> None:
    def raises(error: BaseException) -> None:
        raise error

    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(RuntimeError) as raised, driver_log(tmp_path / "a", "info"):
        thread = threading.Thread(target=raises, args=(KeyError("in a thread"),), name="verifier-nodes")
        before = threading.excepthook
        thread.start()
        thread.join()
        raises(RuntimeError("a rank is lost"))
    assert threading.excepthook is not before
    assert raised.value.__notes__ == [f"see {tmp_path / 'a' / 'logs' / 'driver.log'}"]
    text = log_of(tmp_path / "a")
    assert "uncaught in thread verifier-nodes" in text and "KeyError: 'in a thread'" in text
    assert "the job has failed" in text and "RuntimeError: a rank is lost" in text
    with pytest.raises(ValueError, match="a mistake") as mistake, driver_log(tmp_path / "b", "info"):
        raises(ValueError("a mistake"))
    assert not hasattr(mistake.value, "__notes__"), "a user's mistake is told whole"
    with pytest.raises(KeyboardInterrupt), driver_log(tmp_path / "c", "info"):
        raises(KeyboardInterrupt())
    assert "interrupted" in log_of(tmp_path / "c") and "Traceback" not in log_of(tmp_path / "c")


@logs_failures
class Actor:
    def __init__(self, number: int) -> None:
        self.number = 1 / number

    def called(self) -> None:
        raise ValueError("in a call")

    async def awaited(self) -> None:
        raise ValueError("in a coroutine")

    def yielded(self) -> Iterator[int]:
        yield 1
        raise ValueError("in a generator")


def test_what_a_method_of_an_actor_raises_is_in_its_log(tmp_path: Path) -> None:
    with driver_log(tmp_path, "info"):
        actor = Actor(1)
        for call in (
            lambda: Actor(0),
            actor.called,
            lambda: asyncio.run(actor.awaited()),
            lambda: list(actor.yielded()),
        ):
            with pytest.raises((ValueError, ZeroDivisionError)):
                call()
    text = log_of(tmp_path)
    assert [re.search(r"Actor\.(\w+) has failed", part) is not None for part in text.split(" ERROR ")[1:]] == [True] * 4
    assert "ZeroDivisionError" in text and "in a coroutine" in text and "in a generator" in text


ACTOR = """
import logging, os, sys, pathlib
from grpo.report.log_file import LogPlace
from grpo.report.logs import open_actor_log
folder, driver, end = sys.argv[1:]
place = LogPlace(folder, "info", driver)
path = open_actor_log(place, "learner rank 0", lambda: pathlib.Path(folder).parent / "session")
logging.getLogger("grpo.learner").info("a step")
child = os.fork()
if child == 0:
    logging.getLogger("grpo.learner").info("in the child")
    os._exit(0)
os.waitpid(child, 0)
if end == "raise":
    raise KeyError("at the end")
os.abort()
"""


def in_a_process(place: LogPlace, end: str) -> str:
    arguments = [sys.executable, "-c", ACTOR, place.folder, place.driver, end]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False).stderr


def test_an_actor_logs_until_its_end_whatever_that_is(tmp_path: Path) -> None:
    with driver_log(tmp_path, "info"):
        place = present_place()
        assert place is not None
        assert "KeyError" in in_a_process(place, "raise"), "Python's own report on standard error stays"
        text = log_of(tmp_path, "learner-0")
        assert "learner-0" in text and "a step" in text and "KeyError: 'at the end'" in text
        in_a_process(place, "abort")
        assert "Fatal Python error: Aborted" in log_of(tmp_path, "learner-0")
        assert see_log("learner rank 0") == f"; see {tmp_path / 'logs' / 'learner-0.log'}"
    lives = sorted((tmp_path / "logs" / "history").glob("learner-0.*.log"))
    assert len(lives) == 4, "two processes, and a file for the fork of each: two of them cannot rotate one file"
    assert sum("in the child" in one.read_text() for one in lives) == 2
    assert see_log("learner rank 0") == "", "no log is open any more"


def test_a_node_that_does_not_see_the_folder_logs_elsewhere_and_says_so(tmp_path: Path) -> None:
    # The path exists there by chance, but without what the driver has written.
    (tmp_path / "other" / "logs" / "history").mkdir(parents=True)
    (tmp_path / "other" / "session").mkdir()
    in_a_process(LogPlace(str(tmp_path / "other" / "logs"), "info", "driver.of.another.machine.log"), "raise")
    assert not list((tmp_path / "other" / "logs").rglob("*.log"))
    text = (tmp_path / "other" / "session" / "grpo" / "learner-0.log").read_text()
    assert text.count("this log is only on this node") == 1 and "a step" in text
    with driver_log(tmp_path, "info"):
        assert "Ray's session folder" in see_log("generator 3")
    assert open_actor_log(None, "generator 3", Path.cwd) == "", "a driver without a log"


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = ActorFile("driver", tmp_path / "logs")
    assert not list(tmp_path.iterdir())
    (tmp_path / "logs").write_text("not a folder")
    file.handle(logging.LogRecord("grpo", logging.INFO, "", 0, "lost", (), None))
    assert capfd.readouterr() == ("", "")
