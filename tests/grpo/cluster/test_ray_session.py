"""How a job gets its Ray."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from grpo.cluster import device
from grpo.cluster import session as ray_session
from grpo.cluster.private_folder import private_folder, remove_old_sessions, token_file
from grpo.config import ClusterConfig

LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


class Starting:
    """In place of `ray.init`: leaves a process behind, then fails as often as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, **options: Any) -> None:
        assert options["address"] == "local" and options["num_cpus"] == 3
        self.folder = Path(options["_temp_dir"]).parent
        self.token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        self.processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        if self.failures:
            raise self.failures.pop(0)

    def end(self) -> list[bool]:
        """End what still runs; whether each did."""
        ran = [process.poll() is None for process in self.processes]
        for process in self.processes:
            process.kill()
            process.wait()
        return ran


def start(monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> tuple[Exception | None, list[bool]]:
    starting, raised = Starting(*failures), None
    monkeypatch.setattr(ray, "init", starting)
    try:
        ray_session.start_local_ray(3)
    except Exception as failure:
        raised = failure
    psutil.wait_procs([psutil.Process(one.pid) for one in starting.processes[:-1]], timeout=10)
    return raised, starting.end()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder in place of /tmp, open to everybody, and no token of the person who runs the tests."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        yield Path(folder)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_no_other_user_reaches_the_token_and_the_sockets(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    starting = Starting()
    monkeypatch.setattr(ray, "init", starting)
    before = os.umask(0)
    try:
        ray_session.start_local_ray(3)
        token = starting.token.read_text()
        ray_session.start_local_ray(3)
    finally:
        os.umask(before)
        starting.end()
    assert starting.folder == temporary / f"grpo-{os.getuid()}" and mode_of(starting.folder) == 0o700
    # The processes of a run that goes on read it again whenever they start.
    assert starting.token.read_text() == token and len(token) == 64 and mode_of(starting.token) == 0o600
    assert starting.token.parent == starting.folder


@pytest.mark.parametrize("taken", ["open", "link", "file", "foreign"])
def test_a_folder_that_others_can_open_is_not_used(temporary: Path, tmp_path: Path, taken: str) -> None:
    name = temporary / f"grpo-{os.getuid()}"
    if taken == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        name.symlink_to(tmp_path / "elsewhere")
    elif taken == "file":
        name.touch(0o600)
    else:
        name.mkdir(0o700)
        if taken == "open":
            name.chmod(0o755)
        elif os.getuid():
            pytest.skip("only root can make a folder of another user's")
        else:
            os.chown(name, 1234, 1234)
    folder = private_folder()
    assert folder != name and folder.parent == temporary and mode_of(folder) == 0o700
    token = token_file(folder)
    token.chmod(0o644)
    assert token_file(folder).read_text() and mode_of(token) == 0o600


def test_the_folder_is_short_enough_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    longest = private_folder() / "ray" / "session_2026-12-01_11-41-00_123456_4194304" / "sockets" / "plasma_store"
    assert len(os.fsencode(longest)) <= 107


def test_only_sessions_of_long_ago_are_removed(tmp_path: Path) -> None:
    old = time.time() - 30 * 86_400
    for name, written in (("gone", old), ("recent", time.time()), ("running", old)):
        pid = os.getpid() if name == "running" else 2**22 + 1
        logs = tmp_path / f"session_{name}_{pid}" / "logs"
        logs.mkdir(parents=True)
        (logs / "gcs.out").touch()
        for path in (logs / "gcs.out", logs.parent):
            os.utime(path, (written, written))
    (tmp_path / "session_latest").symlink_to(tmp_path / "absent")
    remove_old_sessions(tmp_path)
    assert sorted(path.name.split("_")[1] for path in tmp_path.iterdir()) == ["latest", "recent", "running"]


def test_a_node_that_was_late_is_ended_and_another_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, Exception(LATE)) == (None, [False, True])


def test_late_twice_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    raised, ran = start(monkeypatch, Exception(LATE), Exception(LATE))
    assert isinstance(raised, TimeoutError) and "within its limit of 30 s" in str(raised)
    assert ran[0] is False and len(ran) == 2


@pytest.mark.parametrize("failure", [Exception("something else"), RuntimeError(LATE), ValueError("bad")])
def test_whatever_else_fails_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    assert start(monkeypatch, failure) == (failure, [True])


@pytest.mark.parametrize("wanted", ["auto", "gpu"])
def test_a_run_that_has_lost_its_gpus_still_wants_them(monkeypatch: pytest.MonkeyPatch, wanted: Any) -> None:
    resources = {"GPU": 1.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(device, "build", lambda: "cuda")
    with ray_session.on_one_device():
        assert ray_session.choose_device(ClusterConfig(device=wanted)) == "cuda"
        resources.clear()
        assert ray_session.choose_device(ClusterConfig(device=wanted)) == "cuda"
        # Another job of this process never had any.
        with ray_session.on_one_device():
            assert ray_session.choose_device(ClusterConfig(device="auto")) == "cpu"
        assert ray_session.choose_device(ClusterConfig(device=wanted)) == "cuda"
    assert ray_session.choose_device(ClusterConfig(device="auto")) == "cpu"


def test_gpus_that_were_never_there_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(device, "build", lambda: "cuda")
    assert (
        ray_session.choose_device(ClusterConfig(device="auto"))
        == ray_session.choose_device(ClusterConfig(device="cpu"))
        == "cpu"
    )
    with pytest.raises(ValueError, match="the cluster has no GPU"):
        ray_session.choose_device(ClusterConfig(device="gpu"))
