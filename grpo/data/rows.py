"""Read the rows of a data source: hub, files or a generator function."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from grpo import config
from grpo.data.bars import without_bars
from grpo.data.row_files import Places, find_files, read_files
from grpo.deferred import deferred
from grpo.hub_access import PAGE, why_offline
from rewards.named_code import first_name, locate

if TYPE_CHECKING:
    import datasets
else:
    datasets = deferred("datasets")


class HubUnreachable(ValueError):
    """The hub does not answer, so nothing is known about the data set."""


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of a source, and the place of each row."""

    rows: datasets.Dataset
    places: Places


def load_rows(source: config.DatasetConfig, where: str = "data") -> datasets.Dataset:
    """Read the rows of a source. The arguments and errors are the same as in `load_source`."""
    return load_source(source, where).rows


@without_bars()
def load_source(source: config.DatasetConfig, where: str = "data") -> Source:
    """Read the rows of a source, with their places.

    Args:
        source: section of the configuration.
        where: name of the section, for errors.

    Raises:
        HubUnreachable: the hub does not answer.
        ValueError: the source does not exist, is not readable, or has no rows.
    """
    files: list[Path] = []
    if source.generator:
        rows = _from_generator(source.generator, source.options, where)
    elif source.path:
        files = find_files(source.paths)
        rows = read_files(files, source.split)
    else:
        rows = _from_hub(source, where)
    places = Places(first_name(source_name(source)), tuple(files), len(rows))
    if source.limit:
        rows = rows.select(range(min(source.limit, len(rows))))
    if len(rows) == 0:
        raise ValueError(f"{source_name(source)} has no rows")
    return Source(rows, places)


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


def _from_hub(source: config.DatasetConfig, where: str) -> datasets.Dataset:
    assert source.hub is not None
    offline = why_offline()
    copy = f"give a local copy with {where}.path=FILE"
    try:
        if source.files:
            # `datasets` no longer reads repositories with a loading script, but it reads their files.
            revision = f"@{quote(source.revision, safe='')}" if source.revision else ""
            urls = [f"hf://datasets/{source.hub}{revision}/{name}" for name in source.files]
            return datasets.load_dataset("json", data_files=urls, split="train")
        return datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
    except ConnectionError as failure:
        raise HubUnreachable(
            f"the hub does not answer for the data set {source.hub!r} ({offline or failure}); fill the hub's cache on "
            f"a machine with a network ({PAGE}), or {copy}"
        ) from failure
    except FileNotFoundError as failure:
        raise ValueError(f"the data set {source.hub!r} cannot be read from the hub ({failure}); {copy}") from failure
