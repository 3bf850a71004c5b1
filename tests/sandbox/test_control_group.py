"""Control groups: what is found, written and removed on a simulated tree, and the kernel's own where it has them.

What needs `memory` and `pids` delegated is skipped elsewhere, with the reason.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import IsolationLevel, Layer, Limits, ProgramStatus, Sandbox
from sandbox.group_meter import GroupMeter
from sandbox.outside.cell_handle import limits_message
from sandbox.outside.control_group import ControlGroup, Delegated, delegated_group


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`/slice/service` as the supervisor's group; only `/slice` has the controllers enabled."""
    for group, controllers in (("", "cpu"), ("slice", "cpu memory pids"), ("slice/service", "")):
        path = tmp_path / "fs" / group
        path.mkdir(exist_ok=True)
        (path / "cgroup.subtree_control").write_text(controllers)
        (path / "cgroup.procs").write_text("")
    (tmp_path / "mounts").write_text(
        f"22 27 0:21 / /proc rw - proc proc rw\n41 31 0:38 / {tmp_path}/fs rw,relatime - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "own").write_text("4:memory:/elsewhere\n0::/slice/service\n")
    return tmp_path


@pytest.fixture
def old_tree(tmp_path: Path) -> Path:
    """Version 1 as a container sees it: its own groups are mounted, their names are told from further up."""
    for controller in ("memory", "pids", "cpu,cpuacct"):
        (tmp_path / controller / "job").mkdir(parents=True)
        (tmp_path / controller / "job" / "cgroup.procs").write_text("")
    lines = [
        f"{number} 31 0:{number} /docker/c1 {tmp_path}/{name} rw - cgroup cgroup rw,{name}\n"
        for number, name in enumerate(("memory", "pids", "cpu,cpuacct"), 33)
    ]
    (tmp_path / "mounts").write_text("".join(lines))
    names = ("8:pids:/docker/c1/job", "4:memory:/docker/c1/job", "2:cpu,cpuacct:/docker/c1/job", "0::/")
    (tmp_path / "own").write_text("".join(f"{name}\n" for name in names))
    return tmp_path


def test_the_group_above_is_taken(tree: Path) -> None:
    group = tree / "fs" / "slice"
    assert delegated_group(tree / "own", tree / "mounts") == Delegated(group, group, group, 2)


def test_the_own_group_is_taken_first(tree: Path) -> None:
    (tree / "fs/slice/service/cgroup.subtree_control").write_text("memory pids io")
    found = delegated_group(tree / "own", tree / "mounts")
    assert isinstance(found, Delegated) and found.memory == tree / "fs/slice/service"


def test_without_both_controllers_it_is_not_delegated(tree: Path) -> None:
    (tree / "fs/slice/cgroup.subtree_control").write_text("memory")
    reason = delegated_group(tree / "own", tree / "mounts")
    assert isinstance(reason, str)
    assert reason.startswith(
        "memory and pids are not delegated to /slice/service or the group above it; no control group"
    )


def test_of_version_1_each_controller_has_a_group(old_tree: Path) -> None:
    places = (old_tree / name / "job" for name in ("memory", "pids", "cpu,cpuacct"))
    assert delegated_group(old_tree / "own", old_tree / "mounts") == Delegated(*places, 1)
    (old_tree / "mounts").write_text((old_tree / "mounts").read_text().replace("rw,pids", "rw,rdma"))
    reason = delegated_group(old_tree / "own", old_tree / "mounts")
    assert reason == "no control groups of version 2 are mounted; no control group of version 1 can be made for pids"


def make_files_as_the_kernel_does(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def make(self: Path) -> None:
        os.mkdir(self)
        for name in ("cgroup.procs", *names):
            (self / name).write_text("1\n" if "usage" in name or "current" in name else "")

    monkeypatch.setattr(Path, "mkdir", make)


@pytest.mark.parametrize("version", [1, 2])
def test_each_program_gets_its_bound_over_what_is_used_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    limit, usage, events = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"),
        2: ("memory.max", "memory.current", "memory.events"),
    }[version]
    make_files_as_the_kernel_does(monkeypatch, limit, usage, events)
    group = ControlGroup(Delegated(tmp_path, tmp_path, None, version), "sandbox-1-x")
    made, files = tmp_path / "sandbox-1-x", group.files
    assert files is not None
    meter, limits = GroupMeter(files), Limits(memory_bytes=100 << 20, disk_bytes=1 << 20, output_bytes=1 << 20)
    (made / usage).write_text(f"{7 << 20}\n")
    (made / events).write_text("low 0\noom_kill 3\n")
    (made / limit).write_text("")  # unlike the kernel's, this file keeps what is not overwritten
    meter.begin(limits_message(limits), beside=0)
    assert int((made / limit).read_text()) == (7 + 100 + 1 + 2 + 16 + 32) << 20
    assert not meter.ran_out()
    (made / events).write_text("low 0\noom_kill 4\n")
    assert meter.ran_out()
    os.write(files.join[0], b"0")
    assert (made / "cgroup.procs").read_text() == "0"
    for file in made.iterdir():
        file.unlink()  # the kernel lets a group go with its files
    group.remove()
    assert not made.exists()


def test_room_for_processes_only_grows(tmp_path: Path) -> None:
    group = ControlGroup.__new__(ControlGroup)
    group._pids = tmp_path
    for before, limits, after in ((64 << 10, 100, 64 << 10), (100, 200, 464), ("max", 100, 264)):
        (tmp_path / "pids.max").write_text(f"{before}\n")
        group.allow(Limits(processes=limits))
        assert int((tmp_path / "pids.max").read_text()) == after


def delegated_here() -> Delegated:
    parent = delegated_group()
    if isinstance(parent, str):
        pytest.skip(parent)
    return parent


def test_a_group_that_cannot_be_limited_is_not_left_behind() -> None:
    parent = delegated_here()
    name = f"sandbox-{os.getpid()}-test"
    with pytest.raises(OSError, match=r"memory\."):
        ControlGroup(replace(parent, version=3 - parent.version), name)
    assert not any((group / name).exists() for group in parent.parents)


def test_groups_of_supervisors_that_were_killed_are_swept() -> None:
    parent = delegated_here()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    left = parent.memory / f"sandbox-{child}-left"
    left.mkdir()
    ControlGroup(parent, f"sandbox-{os.getpid()}-test").remove()
    assert not left.exists()


def test_a_worker_is_held_by_its_group() -> None:
    parent = delegated_here()
    with Sandbox() as sandbox:
        assert Layer.CGROUP in sandbox.isolation.active
        (worker,) = sandbox.worker_pids
        lines = Path(f"/proc/{worker}/cgroup").read_text().splitlines()
        (name,) = {name for line in lines if (name := line.rpartition("/")[2]).startswith("sandbox-")}
        assert name.startswith(f"sandbox-{os.getpid()}-")
        limits = Limits(processes=200)
        assert sandbox.run("print(1)", limits=limits).stdout == b"1\n"
        assert 400 <= int((parent.pids / name / "pids.max").read_text()) <= 600
    assert not any((group / name).exists() for group in parent.parents)


def test_the_kernel_bounds_twelve_processes_together() -> None:
    """Each stays below the limit, together they are far above it; nothing looks."""
    delegated_here()
    source = """
import ctypes, mmap, os, time
for _ in range(12):
    if os.fork() == 0:
        m = mmap.mmap(-1, 60 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(m)), 1, 60 << 20)
        time.sleep(5); os._exit(0)
for _ in range(12):
    if os.wait()[1]: os._exit(1)
"""
    limits = Limits(wall_s=20, memory_bytes=100 << 20, disk_bytes=1 << 20, output_bytes=1 << 20)
    with Sandbox(level=IsolationLevel.NONE, without=frozenset({Layer.WATCH})) as sandbox:
        result = sandbox.run(source, limits=limits)
        assert (result.status, result.exit_code) == (ProgramStatus.MEMORY, 1), result
        assert sandbox.run("print(1)").stdout == b"1\n"


def test_it_is_reported_either_way() -> None:
    with Sandbox() as sandbox:
        missing = {item.layer: item for item in sandbox.isolation.missing}
        if Layer.CGROUP in sandbox.isolation.active:
            assert Layer.CGROUP not in missing
        else:
            assert "delegate" in missing[Layer.CGROUP].remedy
