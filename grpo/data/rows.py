"""The rows of a data source: hub, files or a generator function."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from grpo import config
from rewards.named_code import hidden_by_ours, module_today, refuse_standard_function, refuse_standard_module

# A file of this many bytes is looked into for being blank.
SMALL_FILE = 1024


FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class HubUnreachable(ValueError):
    """The data set is named on the hub, and the hub does not answer: nothing is known of it."""


def load_rows(source: config.DatasetConfig, where: str = "data") -> datasets.Dataset:
    """Read a source whole.

    Args:
        source: the section of the configuration.
        where: the section's name, for errors.

    Raises:
        HubUnreachable: the hub does not answer.
        ValueError: nothing is there, it cannot be read, or it has no rows.
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
        raise ValueError(f"{_name(source)} has no rows")
    return rows


def _name(source: config.DatasetConfig) -> str:
    """The name that rows are called after: of their generator, first file or data set on the hub."""
    return source.generator or next(iter(source.paths), None) or source.hub or ""


def _from_generator(dotted: str, options: dict[str, Any], where: str) -> datasets.Dataset:
    module, _, function = dotted.partition(":")
    refuse_standard_module(module, f"{where}.generator")
    try:
        generator = getattr(importlib.import_module(module_today(module)), function)
    except (ImportError, AttributeError, ValueError) as failure:
        raise ValueError(
            f"the generator {dotted!r} cannot be found: {failure}"
            f"{hidden_by_ours(module) or '; write package.module:function'}"
        ) from failure
    refuse_standard_function(generator, f"{where}.generator={dotted}")
    try:
        inspect.signature(generator).bind(**options)
    except TypeError as failure:
        raise ValueError(f"the generator {dotted!r} does not take {where}.options={options}: {failure}") from failure
    made = list(generator(**options))
    # A column may be missing from some rows, the first among them.
    columns = dict.fromkeys(column for row in made for column in row)
    return datasets.Dataset.from_dict({column: [row.get(column) for row in made] for column in columns})


def _from_files(paths: Sequence[Path]) -> datasets.Dataset:
    for path in paths:
        if path.suffix not in FORMATS:
            raise ValueError(f"{path} should end in one of {', '.join(FORMATS)}")
        if not path.is_file():
            raise ValueError(f"there is no file {path} (looked from {Path.cwd()})")
        # `datasets` calls a file of blank lines corrupt.
        if path.stat().st_size < SMALL_FILE and path.read_bytes().strip() in (b"", b"[]"):
            raise ValueError(f"{path} is empty")
    names = ", ".join(map(str, paths))
    if len({FORMATS[path.suffix] for path in paths}) > 1:
        raise ValueError(f"{names} are of different formats; give files of one")
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
    """A row's value in a column; one nested in others is named with dots (`reward_model.ground_truth`).

    None where what should hold it is empty.
    """
    value: Any = row
    for part in [name] if name in row else name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def column(rows: datasets.Dataset, name: str, key: str) -> list[Any]:
    """A column's values.

    Args:
        rows: which have it.
        name: of the column, with dots where it is nested.
        key: of the configuration that names it, for errors.

    Raises:
        ValueError: there is none, or a row has nothing in it.
    """
    known = _column_names(rows.features)
    if name not in rows.column_names and name not in known:
        raise ValueError(f"{key}={name!r} is not a column of the data; it has {', '.join(known)}")
    values = rows[name][:] if name in rows.column_names else [cell(row, name) for row in rows.to_list()]
    for index, value in enumerate(values):
        if value is None:
            raise ValueError(f"row {index} has nothing in column {name!r} ({key})")
    return values


def _column_names(features: Mapping[str, Any], before: str = "") -> list[str]:
    found = []
    for name, feature in features.items():
        nested = isinstance(feature, Mapping) and feature
        found += _column_names(feature, f"{before}{name}.") if nested else [f"{before}{name}"]
    return found
