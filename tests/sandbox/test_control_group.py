"""Control groups: what is found, written and removed on a simulated tree, and the kernel's own where it has them.

What needs `memory` and `pids` delegated is skipped elsewhere, with the reason.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox import Layer, Limits, Sandbox
from sandbox.control_group import ControlGroup, delegated_group


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`/slice/service` as the supervisor's group; only `/slice` has the controllers enabled."""
    for group, controllers in (("", "cpu"), ("slice", "cpu memory pids"), ("slice/service", "")):
        path = tmp_path / "fs" / group
        path.mkdir(exist_ok=True)
        (path / "cgroup.subtree_control").write_text(controllers)
        (path / "cgroup.procs").write_text("")
    (tmp_path / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {tmp_path}/fs cgroup2 rw 0 0\n")
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/slice/service\n")
    return tmp_path


def test_the_group_above_is_taken(tree: Path) -> None:
    assert delegated_group(tree / "own", tree / "mounts") == tree / "fs" / "slice"


def test_the_own_group_is_taken_first(tree: Path) -> None:
    (tree / "fs/slice/service/cgroup.subtree_control").write_text("memory pids io")
    assert delegated_group(tree / "own", tree / "mounts") == tree / "fs/slice/service"


def test_without_both_controllers_it_is_not_delegated(tree: Path) -> None:
    (tree / "fs/slice/cgroup.subtree_control").write_text("memory")
    reason = delegated_group(tree / "own", tree / "mounts")
    assert reason == "memory and pids are not delegated to /slice/service or the group above it"


def test_without_version_2_there_is_none(tree: Path) -> None:
    (tree / "mounts").write_text("cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n")
    assert delegated_group(tree / "own", tree / "mounts") == "no control groups of version 2 are mounted"


def test_limits_only_rise(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tree / "fs/slice/worker-1"
    # The kernel makes a group's files with the group.
    monkeypatch.setattr(Path, "mkdir", lambda self: (os.mkdir(self), (self / "cgroup.procs").touch()))
    group = ControlGroup(tree / "fs/slice", "worker-1")
    before = int((made / "memory.max").read_text()), int((made / "pids.max").read_text())
    group.allow(Limits(memory_bytes=1 << 20, processes=1))
    assert (int((made / "memory.max").read_text()), int((made / "pids.max").read_text())) == before
    group.allow(Limits(memory_bytes=4 << 30, processes=500))
    assert int((made / "memory.max").read_text()) >= 4 << 30
    assert int((made / "pids.max").read_text()) >= 500
    os.write(group.join_descriptor, b"0")
    assert (made / "cgroup.procs").read_text() == "0"
    for file in made.iterdir():
        file.unlink()  # the kernel lets a group go with its files
    group.remove()
    assert not made.exists()


def test_what_another_process_raised_is_not_lowered(tree: Path) -> None:
    made = tree / "fs/slice/worker-2"
    group = ControlGroup.__new__(ControlGroup)
    group._path = made
    made.mkdir()
    (made / "memory.max").write_text(f"{64 << 30}\n")
    (made / "pids.max").write_text("max\n")
    group.allow(Limits(processes=100))
    assert (made / "memory.max").read_text() == f"{64 << 30}\n"
    assert 100 <= int((made / "pids.max").read_text()) < 1000


def mounted_groups() -> list[Path]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(line[1]) for line in lines if line[2] == "cgroup2" and os.access(line[1], os.W_OK)]


@pytest.mark.skipif(not mounted_groups(), reason="no writable control group of version 2 is mounted")
def test_a_group_that_cannot_be_limited_is_not_left_behind() -> None:
    parent = mounted_groups()[0]
    if (parent / "cgroup.subtree_control").read_text().strip():
        pytest.skip(f"{parent} hands controllers on")
    with pytest.raises(OSError, match=r"memory\.max"):
        ControlGroup(parent, f"sandbox-test-{os.getpid()}")
    assert not (parent / f"sandbox-test-{os.getpid()}").exists()


def test_a_worker_is_held_by_its_group() -> None:
    parent = delegated_group()
    if isinstance(parent, str):
        pytest.skip(parent)
    with Sandbox() as sandbox:
        assert Layer.CGROUP in sandbox.isolation.active
        (worker,) = sandbox.worker_pids
        (line,) = [one for one in Path(f"/proc/{worker}/cgroup").read_text().splitlines() if one.startswith("0::")]
        group = parent / Path(line).name
        assert group.name.startswith(f"sandbox-{os.getpid()}-")
        limits = Limits(memory_bytes=3 << 30, processes=200)
        assert sandbox.run("print(1)", limits=limits).stdout == b"1\n"
        assert int((group / "memory.max").read_text()) >= 2 * limits.memory_bytes
        assert 400 <= int((group / "pids.max").read_text()) <= 600
    assert not group.exists()


def test_it_is_reported_either_way() -> None:
    with Sandbox() as sandbox:
        missing = {item.layer: item for item in sandbox.isolation.missing}
        if Layer.CGROUP in sandbox.isolation.active:
            assert Layer.CGROUP not in missing
        else:
            assert "delegate" in missing[Layer.CGROUP].remedy
