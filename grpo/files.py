"""Files and folders that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """The block writes a file at the path that it is given, which then takes the place of `path`.

    Args:
        path: the file; its folder is made where it is missing.
        durable: wait until the disk has it, for what must outlive a power cut.

    Raises:
        OSError: it cannot be written or renamed; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)  # a killed process may have left it
    try:
        yield partial
        if durable:
            for written in [*partial.rglob("*"), partial]:
                _to_disk(written)
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)  # only an empty folder can be renamed over
        partial.replace(path)
        if durable:
            _to_disk(path.parent)
    finally:
        _remove(partial)


@contextlib.contextmanager
def whole_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """The block fills an empty folder, which then takes the place of `path`; see `whole_file`."""
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
