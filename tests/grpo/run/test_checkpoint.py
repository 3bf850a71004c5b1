"""Checkpoints are whole or not there."""

from __future__ import annotations

import enum
import gc
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.learner.deepspeed_setup import plain_data_only
from grpo.run.checkpoint import STATE, Checkpoint, NoRoom, latest, write


class Unpicklable:
    """What a checkpoint must not bring to life."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_learner_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    torch.save({"module": Unpicklable()}, file)
    with pytest.raises(ValueError, match=r"holds posix\.system, which may run code"), plain_data_only("a folder", []):
        # As DeepSpeed reads it.
        torch.load(file, weights_only=False)
    torch.save({"stage": Stage.ONE, "weights": torch.ones(2)}, file)
    with plain_data_only("a folder", [Stage]):
        assert torch.load(file, weights_only=False)["stage"] is Stage.ONE
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class Stage(enum.IntEnum):
    """A record of DeepSpeed's kind."""

    ONE = 1


def write_learner(folder: str) -> None:
    (Path(folder) / "learner" / "state").mkdir(parents=True)
    (Path(folder) / "learner" / "state" / "rank_0.pt").write_bytes(b"weights")
    (Path(folder) / "policy").mkdir()
    (Path(folder) / "policy" / "config.json").write_text("{}")


def listing(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_is_found_again(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    state = {"step": 3, "cursor": {"epoch": 1, "order": torch.arange(4), "nested": [1.5, None, "x"]}}
    written = write(tmp_path, 3, write_learner, state, keep=2)
    found = latest(tmp_path)
    assert found == written == Checkpoint(3, tmp_path / "checkpoints" / "step_000003")
    assert (found.policy / "config.json").read_text() == "{}"
    assert (found.folder / "learner" / "state" / "rank_0.pt").read_bytes() == b"weights"
    read = found.driver_state()
    assert read["step"] == 3 and read["cursor"]["nested"] == [1.5, None, "x"]
    assert torch.equal(read["cursor"]["order"], torch.arange(4))


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("a rank died"), KeyboardInterrupt()]
)
def test_what_fails_half_way_leaves_the_older_one(tmp_path: Path, failure: BaseException) -> None:
    older = write(tmp_path, 1, write_learner, {"step": 1}, keep=1)

    def fail(folder: str) -> None:
        write_learner(folder)
        raise failure

    with pytest.raises(type(failure)):
        write(tmp_path, 2, fail, {"step": 2}, keep=1)
    assert latest(tmp_path) == older
    assert older.driver_state() == {"step": 1}
    assert listing(tmp_path) == ["step_000001"]


def test_a_driver_state_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write(tmp_path, 1, write_learner, {"step": 1}, keep=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2, write_learner, {"step": 2}, keep=1)
    assert latest(tmp_path) == older and listing(tmp_path) == ["step_000001"]


def test_it_has_no_name_before_it_is_whole_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def watch(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(path.name)
        # The folder of all checkpoints is synced last, to make the new name last.
        assert latest(tmp_path) is None or path.name == "checkpoints"
        sync(descriptor)

    monkeypatch.setattr("os.fsync", watch)

    def look(folder: str) -> None:
        write_learner(folder)
        assert latest(tmp_path) is None

    write(tmp_path, 1, look, {}, keep=1)
    assert {"rank_0.pt", "config.json", STATE, "learner", "checkpoints"} <= set(synced)
    assert synced[-1] == "checkpoints"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 9, 10, 999_999, 1_000_000):
        write(tmp_path, step, write_learner, {"step": step}, keep=2)
    assert listing(tmp_path) == ["step_1000000", "step_999999"]
    newest = latest(tmp_path)
    assert newest is not None and newest.step == 1_000_000


def test_what_a_killed_writer_left_is_passed_over_and_cleared(tmp_path: Path) -> None:
    write(tmp_path, 1, write_learner, {"step": 1}, keep=5)
    left = tmp_path / "checkpoints" / ".step_000002.partial"
    left.mkdir()
    (left / "half").write_text("x")
    (tmp_path / "checkpoints" / "step_old").mkdir()
    (tmp_path / "checkpoints" / "step_000007.bak").mkdir()
    found = latest(tmp_path)
    assert found is not None and found.step == 1
    written = write(tmp_path, 2, write_learner, {"step": 2}, keep=5)
    assert not (written.folder / "half").exists() and not left.exists()


def test_a_step_may_be_written_again(tmp_path: Path) -> None:
    write(tmp_path, 1, write_learner, {"step": 1, "take": 1}, keep=1)
    again = write(tmp_path, 1, write_learner, {"step": 1, "take": 2}, keep=1)
    assert again.driver_state()["take"] == 2 and listing(tmp_path) == ["step_000001"]


def test_the_driver_state_brings_nothing_to_life(tmp_path: Path) -> None:
    written = write(tmp_path, 1, write_learner, {"object": Unpicklable()}, keep=1)
    with pytest.raises(pickle.UnpicklingError):
        written.driver_state()


MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def of_size(size: int) -> Callable[[str], None]:
    def write_tensor(folder: str) -> None:
        torch.save(torch.zeros(size, dtype=torch.uint8), Path(folder) / "state.pt")

    return write_tensor


def test_a_disk_that_fills_keeps_the_older_one_and_says_how_much_room_is_missing(small_disk: Path) -> None:
    with pytest.raises(NoRoom, match=r"step 1 was given up: it needs more than .* there is no earlier checkpoint"):
        write(small_disk, 1, of_size(3 * MIB), {"step": 1}, keep=1)
    older = write(small_disk, 1, of_size(MIB // 2), {"step": 1}, keep=1)
    with pytest.raises(NoRoom) as full:
        write(small_disk, 2, of_size(2 * MIB), {"step": 2}, keep=1)
    assert isinstance(full.value.__cause__, RuntimeError | OSError), "the disk itself refused"
    assert "step 2 was given up" in str(full.value) and "the checkpoint of step 1 is whole and stays" in str(full.value)
    assert (
        latest(small_disk) == older and older.driver_state() == {"step": 1} and listing(small_disk) == ["step_000001"]
    )
    # The error holds the file that could not be written.
    del full
    gc.collect()
    # Another program fills the disk: that is seen before anything is written.
    (small_disk / "other").write_bytes(b"x" * (MIB + MIB // 4))
    begun: list[str] = []
    with pytest.raises(NoRoom, match=r"was not begun: .*needs 0\.50 MiB .*has 0\.2\d MiB free.*Free 0\.[23]\d MiB"):
        write(small_disk, 2, begun.append, {"step": 2}, keep=1)
    assert not begun and listing(small_disk) == ["step_000001"]
    (small_disk / "other").unlink()
    assert write(small_disk, 2, of_size(MIB // 2), {"step": 2}, keep=1) == latest(small_disk)


def test_an_error_that_has_nothing_to_do_with_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    def fail(folder: str) -> None:
        raise RuntimeError("a rank ran out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        write(tmp_path, 1, fail, {"step": 1}, keep=1)


def test_what_killed_writers_left_does_not_fill_the_disk(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step_000009.partial"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x" * MIB)
    write(tmp_path, 10, write_learner, {"step": 10}, keep=1)
    assert not left.exists()
