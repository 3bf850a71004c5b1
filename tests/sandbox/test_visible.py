"""What of the host's files programs may read, and copies of what only root can read."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_host import Host

from sandbox import Isolation, IsolationLevel, Layer, MissingLayer, bounds, readable_by_programs
from sandbox.inside import interpreter_copy
from sandbox.inside.isolation.filesystem import SitePackage
from sandbox.worker_settings import level_of


@pytest.mark.parametrize(
    ("path", "readable"),
    [
        ("/usr/src/app/data.jsonl", False),
        ("/usr/share/data/tests.jsonl", False),
        ("/usr/local/share/data", False),
        ("/usr/local/src", False),
        ("/usr/data", False),
        ("/home/me/run", False),
        (os.path.join(sys.base_prefix, "envs", "data"), False),
        (os.path.join(sys.base_prefix, "pkgs"), False),
        (os.path.join(os.path.dirname(os.__file__), "site-packages", "data"), False),
        ("/usr/lib/data.jsonl", True),
        ("/usr/bin/../lib/data", True),
        (os.path.dirname(os.__file__), True),
    ],
)
def test_what_programs_can_read(path: str, readable: bool) -> None:
    assert readable_by_programs(path) is readable


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("/usr/lib")
    assert readable_by_programs(tmp_path / "data" / "tests.jsonl")


@pytest.fixture
def closed_place() -> Iterator[Path]:
    """A directory that only root can enter."""
    if os.geteuid() != 0:
        pytest.skip("only root has what others cannot read and that programs are to see")
    place = Path(tempfile.mkdtemp())
    yield place
    shutil.rmtree(place)


def test_packages_that_only_root_can_read_are_copied_once(closed_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = closed_place.parent / f"{closed_place.name}-cache"
    monkeypatch.setattr(interpreter_copy, "_PLACES", (str(cache),))
    for name in ("first", "first.libs"):
        (closed_place / name).mkdir()
        (closed_place / name / "__init__.py").write_text(name)
    packages = [SitePackage(str(closed_place / name)) for name in ("first", "first.libs")]
    try:
        copies = interpreter_copy.readable_packages(packages, "/nowhere")
        assert [copy.name for copy in copies] == ["first", "first.libs"]
        assert len({os.path.dirname(copy.path) for copy in copies}) == 1, "beside one another, as they were"
        assert interpreter_copy.readable([f"{copy.path}/__init__.py" for copy in copies])
        assert interpreter_copy.readable_packages(packages, "/nowhere") == copies
        assert interpreter_copy.readable_packages(copies, "/nowhere") == copies, "what can be read is taken as it is"
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def test_a_cache_that_another_user_made_is_not_trusted(closed_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = closed_place / "theirs"
    theirs.mkdir()
    os.chown(theirs, 54_321, 54_321)
    monkeypatch.setattr(interpreter_copy, "_PLACES", (str(theirs),))
    with pytest.raises(OSError, match="only root can change"):
        interpreter_copy.copied_interpreter(str(closed_place / "none"))


def test_root_in_a_container_runs_programs_as_another_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be root in a container")
    host = Host("root_in_a_container", level=IsolationLevel.CONFINED)
    try:
        assert Layer.OWN_UID in host.isolation.active
        assert int(host.ask("run", "import os; print(os.getuid())").stdout) > 0
        assert host.ask("run", "import numpy; print(numpy.arange(3).sum())").stdout == b"3\n"
    finally:
        host.close()


def test_no_level_that_promises_isolation_lets_programs_run_as_root() -> None:
    active = frozenset(Layer) - {Layer.OWN_UID}
    assert level_of(active) is IsolationLevel.FULL, "started without root there is no such layer to miss"
    assert level_of(active, frozenset({Layer.OWN_UID})) is IsolationLevel.LIMITED


@pytest.mark.parametrize(
    ("lacking", "promises"),
    [
        (set(), set()),
        ({Layer.CGROUP}, {"memory", "processor time"}),
        ({Layer.CGROUP, Layer.PRIVATE_ROOT}, {"memory", "processor time", "disk"}),
        (
            {Layer.CGROUP, Layer.PRIVATE_ROOT, Layer.USER_NAMESPACE, Layer.OWN_UID, Layer.PROCESS_NAMESPACE},
            {"memory", "processor time", "disk", "processes"},
        ),
    ],
)
def test_what_is_a_bound_and_what_a_promise(lacking: set[Layer], promises: set[str]) -> None:
    active = tuple(layer for layer in Layer if layer not in lacking)
    isolation = Isolation(IsolationLevel.CONFINED, active, tuple(MissingLayer(layer, "", "") for layer in lacking))
    assert {bound.limit for bound in bounds(isolation) if not bound.is_bound} == promises
