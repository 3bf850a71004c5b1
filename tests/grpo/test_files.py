"""What is written through `grpo.files` is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grpo import files


def test_a_file_and_a_folder_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    path, folder = tmp_path / "new" / "a.txt", tmp_path / "policy"
    files.write_text(path, "old")
    files.write_text(path, "é")
    assert path.read_text(encoding="utf-8") == "é" and path.stat().st_mode & 0o777 == 0o666 & ~umask()
    for name in ("old", "new"):
        with files.whole_folder(folder) as partial:
            (partial / name).write_text(name)
            assert partial.parent == tmp_path and (name == "old") != folder.exists()
    assert [each.name for each in folder.iterdir()] == ["new"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "policy"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_ones_and_nothing_beside_them(tmp_path: Path, failure: BaseException) -> None:
    files.write_text(tmp_path / "a", "old")
    (tmp_path / "policy").mkdir()
    with pytest.raises(type(failure)), files.whole_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise failure
    with pytest.raises(type(failure)), files.whole_folder(tmp_path / "policy") as partial:
        (partial / "half").write_text("half")
        raise failure
    assert (tmp_path / "a").read_text() == "old" and not [*(tmp_path / "policy").iterdir()]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "policy"]


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / ".policy.partial").mkdir()
    (tmp_path / ".policy.partial" / "half").write_text("half")
    with files.whole_folder(tmp_path / "policy") as partial:
        (partial / "config.json").write_text("{}")
    assert [each.name for each in (tmp_path / "policy").iterdir()] == ["config.json"]


def test_a_durable_one_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert (tmp_path / "a").exists() == (path == tmp_path)
        synced.append(path.name)

    monkeypatch.setattr("os.fsync", sync)
    files.write_text(tmp_path / "a", "text", durable=True)
    assert synced == [".a.partial", tmp_path.name]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
