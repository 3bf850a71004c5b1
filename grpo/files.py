"""Write a file or folder so that it appears complete or not at all: write it under another name, then rename it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path for the block to write. After the block, the written file replaces `path`.

    Args:
        path: final path; a missing folder is created.
        durable: True to wait until the data is on disk, for files that must survive a power cut.

    Raises:
        OSError: the file cannot be written or renamed; `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)  # a killed process may not have removed it
    try:
        yield partial
        if durable:
            for written in [*partial.rglob("*"), partial]:
                _to_disk(written)
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)  # renaming can replace only an empty folder
        partial.replace(path)
        if durable:
            _to_disk(path.parent)
    finally:
        _remove(partial)


@contextlib.contextmanager
def whole_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield an empty folder for the block to fill. After the block, the folder replaces `path`; see `whole_file`."""
    with whole_file(path, durable=durable) as partial:
        partial.mkdir()
        yield partial


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text in UTF-8; see `whole_file`."""
    with whole_file(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
