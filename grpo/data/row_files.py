"""Local files of rows: which files a path names, how they are read, and the line of each row."""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from grpo.deferred import deferred

if TYPE_CHECKING:
    import datasets
else:
    datasets = deferred("datasets")

# Files smaller than this, in bytes, are checked for blank content.
SMALL_FILE = 1024
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
ENDINGS = ", ".join(FORMATS)
# Files that `datasets` writes into the folder of `save_to_disk`.
_SAVED = ("state.json", "dataset_dict.json")
_SHOWN = 5
# Bytes that are decoded at a time.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Places:
    """The place of each row, for messages and names.

    Attributes:
        name: name of the source, for rows without a file.
        files: files with the rows, in order; empty if the rows come from another place.
        rows: number of rows.
    """

    name: str
    files: tuple[Path, ...]
    rows: int

    def __getitem__(self, index: int) -> str:
        """`row 7 (rows.jsonl:8)`: the index from 0, and the file with its line, if the lines can be counted."""
        if not self.files:
            return f"row {index}"
        file, within, line = self._of(index)
        return f"row {within} ({file}:{line})" if line else f"row {within} of {file}"

    def id_of(self, index: int) -> str:
        """The name of a row: `FILE:INDEX` if there are several files, otherwise `SOURCE:INDEX`."""
        if len(self.files) < 2:
            return f"{self.name}:{index}"
        file, within, _ = self._of(index)
        return f"{file}:{within}"

    def _of(self, index: int) -> tuple[str, int, int | None]:
        for file, lines in self._lines:
            if index < len(lines):
                return str(file), index, lines[index]
            index -= len(lines)
        raise AssertionError(f"row {index} is behind the last row of {self.name}")

    @cached_property
    def _lines(self) -> list[tuple[str, list[int | None]]]:
        """For each file, the line of each of its rows."""
        lines_of_files = [(str(file), _lines_of(file)) for file in self.files]
        # A JSON object may be written over several lines. Then the lines cannot be counted.
        if sum(len(lines) for _, lines in lines_of_files) == self.rows:
            return lines_of_files
        return [(self.name, [None] * self.rows)]


def find_files(names: Sequence[str]) -> list[Path]:
    """Return the files that paths name: files, folders of files, and patterns such as `data/*.jsonl`.

    Raises:
        ValueError: a path names no file with rows, or the files have different formats.
    """
    files = [file for name in names for file in _files_of(name)]
    for file in files:
        if not is_saved(file) and _format(file) is None:
            raise ValueError(f"{file} should end in one of {ENDINGS}; .gz may follow")
        # `datasets` reports a file of blank lines as corrupt, so check for it first.
        if file.is_file() and file.stat().st_size < SMALL_FILE and file.read_bytes().strip() in (b"", b"[]"):
            raise ValueError(f"{file} is empty")
    if len({"saved" if is_saved(file) else _format(file) for file in files}) > 1:
        raise ValueError(
            f"{', '.join(map(str, files))} have different formats; give files of a single format, "
            "for example with a pattern: data/*.jsonl"
        )
    return files


def is_saved(path: Path) -> bool:
    """Whether a path is a folder that `datasets` wrote with `save_to_disk`."""
    return any((path / name).is_file() for name in _SAVED)


def _files_of(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file() or is_saved(path):
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _format(file))
        if not files:
            raise ValueError(f"the folder {path} has no file that ends in one of {ENDINGS}")
        return files
    if any(character in name for character in "*?["):
        files = sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())
        if not files:
            raise ValueError(f"no file matches {name} (looked from {Path.cwd()})")
        return files
    if _format(path) is None and not path.parent.is_dir():
        raise ValueError(f"there is no file or folder {path} (looked from {Path.cwd()})")
    near = difflib.get_close_matches(path.name, [file.name for file in _siblings(path)], n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    ending = "" if _format(path) else f"; a file should end in one of {ENDINGS}"
    raise ValueError(f"there is no file {path} (looked from {Path.cwd()}){hint}{ending}")


def _siblings(path: Path) -> list[Path]:
    return list(path.parent.iterdir()) if path.parent.is_dir() else []


def _format(path: Path) -> str | None:
    inner = Path(path.stem) if path.suffix == ".gz" else path
    form = FORMATS.get(inner.suffix)
    return None if form == "parquet" and path.suffix == ".gz" else form


def read_files(files: Sequence[Path], split: str) -> datasets.Dataset:
    """Read the rows of files of a single format, in order.

    Args:
        files: files from `find_files`.
        split: split to take from a folder of `save_to_disk` that has several.

    Raises:
        ValueError: a file cannot be read; the message names the lines.
    """
    if is_saved(files[0]):
        return datasets.concatenate_datasets([_from_disk(folder, split) for folder in files])
    form = _format(files[0])
    assert form is not None
    if form == "csv":
        return _from_tables(files)
    if form == "json" and not all(map(_is_utf8, files)):
        raise ValueError(_listed([problem for file in files for problem in _damage(file)]))
    try:
        return datasets.load_dataset(form, data_files=[str(file) for file in files], split="train")
    except (datasets.exceptions.DatasetsError, ValueError) as failure:
        problems = [problem for file in files for problem in _damage(file)] if form == "json" else []
        if problems:
            raise ValueError(_listed(problems)) from failure
        kind = "".join(files[0].suffixes[-2:] if files[0].suffix == ".gz" else files[0].suffixes[-1:])[1:]
        names = ", ".join(map(str, files))
        raise ValueError(f"{names} cannot be read as {kind}: {failure.__cause__ or failure}") from failure


def _listed(problems: Sequence[str]) -> str:
    more = f"\nand {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "\n".join(problems[:_SHOWN]) + more


def _from_disk(folder: Path, split: str) -> datasets.Dataset:
    saved = datasets.load_from_disk(str(folder))
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(map(str, saved))}: name one with split=")
    return saved[split]


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _is_utf8(path: Path) -> bool:
    """Whether a file is UTF-8 text. `datasets` reads other files, too, and fails only when their values are used."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with _open(path) as opened:
            while chunk := opened.read(_CHUNK):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except (EOFError, gzip.BadGzipFile) as failure:
        raise ValueError(f"{path} cannot be unpacked ({failure}); copy or download it again") from failure
    return True


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = content.count(b"\n", 0, failure.start) + 1
        raise ValueError(_not_utf8(path, line, content[failure.start])) from failure


def _not_utf8(path: Path, line: int, byte: int) -> str:
    return (
        f"{path}:{line}: the file is not UTF-8 text (byte 0x{byte:02x}); convert it, for example with "
        f"`iconv -f latin1 -t utf-8 {path} > converted{path.suffix}`"
    )


def _from_tables(files: Sequence[Path]) -> datasets.Dataset:
    """Read CSV files. Every value is text, so that an answer such as 007 or NA keeps its letters."""
    columns: dict[str, list[str | None]] = {}
    problems, count = [], 0
    for file in files:
        for line, row in _table_rows(file):
            if None in row or None in row.values():
                kind = "more" if None in row else "fewer"
                problems.append(f"{file}:{line}: the row has {kind} values than the first line has columns")
                continue
            for name, value in row.items():
                columns.setdefault(name, [None] * count).append(value or None)
            count += 1
            for values in columns.values():
                values += [None] * (count - len(values))
    if problems:
        raise ValueError(_listed(problems))
    return datasets.Dataset.from_dict(columns)


def _table_rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    inner = Path(file.stem) if file.suffix == ".gz" else file
    with _open(file) as opened:
        lines = io.StringIO(_text(file, opened.read()), newline="")
    reader = csv.DictReader(lines, delimiter="\t" if inner.suffix == ".tsv" else ",", strict=True)
    before = 1
    try:
        for row in reader:
            yield before + 1, row
            before = reader.line_num
    except csv.Error as failure:
        # `reader.line_num` still counts the rows before the damaged row.
        line = reader.reader.line_num
        raise ValueError(f"{file}:{line}: the file cannot be read as csv: {failure}") from failure


def _damage(file: Path) -> list[str]:
    """Find the lines of a JSON file that hold no object."""
    with _open(file) as opened:
        if _is_array(opened):
            return _damaged_array(file, opened.read())
        return [problem for line, text in enumerate(opened, 1) if (problem := _damaged_line(file, line, text))]


def _is_array(opened: IO[bytes]) -> bool:
    start = opened.read(SMALL_FILE).removeprefix(b"\xef\xbb\xbf").lstrip()
    opened.seek(0)
    return start.startswith(b"[")


def _damaged_line(file: Path, line: int, content: bytes) -> str:
    if not content.strip():
        return ""
    try:
        value = json.loads(content.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as failure:
        return _not_utf8(file, line, content[failure.start])
    except json.JSONDecodeError as failure:
        return f"{file}:{line}: the line is not a JSON object ({failure.msg}, column {failure.colno}): {content!r:.90}"
    kind = type(value).__name__
    return "" if isinstance(value, dict) else f"{file}:{line}: expected a JSON object for the row, got a {kind}"


def _damaged_array(file: Path, content: bytes) -> list[str]:
    try:
        json.loads(_text(file, content))
    except json.JSONDecodeError as failure:
        return [f"{file}:{failure.lineno}: the file is not JSON ({failure.msg}, column {failure.colno})"]
    except ValueError as failure:
        return [str(failure)]
    return []


def _lines_of(file: Path) -> list[Any]:
    """The line of each row of a file; None for each row if the format has no lines."""
    form = _format(file)
    if form == "csv":
        return [line for line, _ in _table_rows(file)]
    if form == "parquet":
        import pyarrow.parquet

        return [None] * pyarrow.parquet.read_metadata(file).num_rows
    if form is None:
        return []
    with _open(file) as opened:
        if _is_array(opened):
            return [None] * len(json.loads(opened.read().decode("utf-8-sig")))
        return [line for line, content in enumerate(opened, 1) if content.strip()]
