"""The page of memory that a worker shares with its pool: each field keeps its value beside the others."""

from __future__ import annotations

import builtins
import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards import stage
from rewards.stage import SharedPage


@pytest.fixture
def page() -> Iterator[SharedPage]:
    descriptor = os.memfd_create("page")
    os.ftruncate(descriptor, stage.PAGE_BYTES)
    shared = SharedPage(descriptor)
    yield shared
    shared.close()
    os.close(descriptor)


def test_a_new_page_says_that_nothing_has_begun(page: SharedPage) -> None:
    assert (page.begun(), page.revoked(), page.running()[0]) == ((-1, 0), (0, 0), -1)
    assert (page.read_stage(), page.importing(), page.works_elsewhere(), page.waited_s()) == ("", "", False, 0.0)


def test_each_field_keeps_its_value_beside_the_others(page: SharedPage) -> None:
    large, longest = (1 << 64) - 2, "x" * 60
    page.revoke(large, large)
    page.write_begun(large, large)
    page.write_running(large)
    page.write_stage(longest, elsewhere=True)
    page.write_import(longest)
    assert (page.revoked(), page.begun(), page.running()[0]) == ((large, large), (large, large), large)
    assert (page.read_stage(), page.importing(), page.works_elsewhere()) == ("x" * 48, "x" * 48, True)
    assert page.waited_s() == 0.0 and abs(page.running()[1] - time.monotonic()) < 60
    page.write_stage("a\x01b\n")
    assert (page.read_stage(), page.works_elsewhere()) == ("ab", False)


def test_waits_add_up_and_a_new_call_has_not_waited(page: SharedPage, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000_000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    monkeypatch.setattr(stage, "_page", page)
    page.write_begun(1, 5)
    for seconds in (2, 3):
        with stage.waiting():
            now[0] += seconds * 1_000_000_000
        now[0] += 7_000_000_000
    assert page.waited_s() == pytest.approx(5.0)
    page.write_waiting(True)
    now[0] += 1_000_000_000
    assert page.waited_s() == pytest.approx(6.0), "a wait under way counts"
    page.write_begun(2, 5)
    assert page.waited_s() == 0.0


def test_a_stage_is_written_for_the_worker_and_for_the_call(page: SharedPage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.enter("nowhere")
    monkeypatch.setattr(stage, "_page", page)
    at = ["before"]
    token = stage._call_stage.set(None)
    try:
        stage.enter("parse")
        assert (page.read_stage(), at) == ("parse", ["before"])
        stage.follow_call(at)
        stage.enter("run", elsewhere=True)
        assert (page.read_stage(), at, page.works_elsewhere()) == ("run", ["run"], True)
    finally:
        stage._call_stage.reset(token)


def test_the_outermost_module_of_every_import_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("noted_outer", "import noted_inner"), ("noted_inner", ""), ("noted_later", "")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    noted: list[str] = []

    class Page:
        def write_import(self, module: str) -> None:
            noted.append(module)

    monkeypatch.setattr(builtins, "__import__", builtins.__import__)
    stage.watch_imports(Page())  # type: ignore[arg-type]
    exec("import os, noted_outer, noted_inner, noted_later")
    assert noted == ["noted_outer", "", "noted_later", ""]
