"""Read the rows of a data source: hub, files or a generator function."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from grpo import config
from rewards.named_code import locate

# Files smaller than this, in bytes, are checked for blank content.
SMALL_FILE = 1024

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class HubUnreachable(ValueError):
    """The hub does not answer, so nothing is known about the data set."""


def load_rows(source: config.DatasetConfig, where: str = "data") -> datasets.Dataset:
    """Read all rows of a source.

    Args:
        source: section of the configuration.
        where: name of the section, for errors.

    Raises:
        HubUnreachable: the hub does not answer.
        ValueError: the source does not exist, is not readable, or has no rows.
    """
    if source.generator:
        rows = _from_generator(source.generator, source.options, where)
    elif source.path:
        rows = _from_files([Path(path) for path in source.paths])
    else:
        rows = _from_hub(source)
    if source.limit:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise ValueError(f"{source_name(source)} has no rows")
    return rows


def source_name(source: config.DatasetConfig) -> str:
    """Return the name for the rows: the generator, the first file or the data set on the hub."""
    return source.generator or next(iter(source.paths), None) or source.hub or ""


def _from_generator(dotted: str, options: dict[str, Any], where: str) -> datasets.Dataset:
    generator = locate(dotted, f"{where}.generator={dotted}")
    try:
        inspect.signature(generator).bind(**options)
    except TypeError as failure:
        raise ValueError(f"the generator {dotted!r} does not take {where}.options={options}: {failure}") from failure
    generated = list(generator(**options))
    # A column may be missing from some rows, including the first row.
    columns = dict.fromkeys(column for row in generated for column in row)
    return datasets.Dataset.from_dict({column: [row.get(column) for row in generated] for column in columns})


def _from_files(paths: Sequence[Path]) -> datasets.Dataset:
    for path in paths:
        if path.suffix not in FORMATS:
            raise ValueError(f"{path} should end in one of {', '.join(FORMATS)}")
        if not path.is_file():
            raise ValueError(f"there is no file {path} (looked from {Path.cwd()})")
        # `datasets` reports a file of blank lines as corrupt, so check for it first.
        if path.stat().st_size < SMALL_FILE and path.read_bytes().strip() in (b"", b"[]"):
            raise ValueError(f"{path} is empty")
    names = ", ".join(map(str, paths))
    if len({FORMATS[path.suffix] for path in paths}) > 1:
        raise ValueError(f"{names} have different formats; give files of a single format")
    try:
        return datasets.load_dataset(FORMATS[paths[0].suffix], data_files=[str(path) for path in paths], split="train")
    except (datasets.exceptions.DatasetsError, ValueError) as failure:
        kind = paths[0].suffix[1:]
        raise ValueError(f"{names} cannot be read as {kind}: {failure.__cause__ or failure}") from failure


def _from_hub(source: config.DatasetConfig) -> datasets.Dataset:
    assert source.hub is not None
    try:
        return datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
    except ConnectionError as failure:
        raise HubUnreachable(
            f"the hub does not answer for the data set {source.hub!r} ({failure}); give a local copy with path="
        ) from failure
    except FileNotFoundError as failure:
        raise ValueError(
            f"the data set {source.hub!r} cannot be read from the hub ({failure}); give a local copy with path="
        ) from failure


def cell(row: Mapping[str, Any], name: str) -> Any:
    """Return a row's value in a column. Dots separate nested names (`reward_model.ground_truth`).

    The result is None if an outer value is empty.
    """
    value: Any = row
    for part in [name] if name in row else name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def column(rows: datasets.Dataset, name: str, key: str) -> list[Any]:
    """Return the values of a column.

    Args:
        rows: rows with the column.
        name: name of the column, with dots if it is nested.
        key: config key that names the column, for errors.

    Raises:
        ValueError: the column does not exist, or a row has no value in it.
    """
    known = _column_names(rows.features)
    if name not in rows.column_names and name not in known:
        raise ValueError(f"{key}={name!r} is not a column of the data; it has {', '.join(known)}")
    values = rows[name][:] if name in rows.column_names else [cell(row, name) for row in rows.to_list()]
    for index, value in enumerate(values):
        if value is None:
            raise ValueError(f"row {index} has no value in column {name!r} ({key}); fill it, or remove the row")
    return values


def _column_names(features: Mapping[str, Any], before: str = "") -> list[str]:
    names = []
    for name, feature in features.items():
        nested = isinstance(feature, Mapping) and feature
        names += _column_names(feature, f"{before}{name}.") if nested else [f"{before}{name}"]
    return names
