"""From a data source to Prompts and to supervised rows, with a cursor that resumes."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import datasets
import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import PreTrainedTokenizerBase

from grpo import config
from grpo.chat import render, response_text
from grpo.packing import TrainingSequence
from grpo.types import Prompt
from rewards.named_code import refuse_standard_function, refuse_standard_module

# A file of this many bytes is looked into for being blank.
SMALL_FILE = 1024
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class HubUnreachable(ValueError):
    """The data set is named on the hub, and the hub does not answer: nothing is known of it."""


def load_rows(source: config.Dataset, where: str = "data") -> datasets.Dataset:
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


def _name(source: config.Dataset) -> str:
    """What rows are called after: their generator, first file or hub name."""
    return source.generator or next(iter(source.paths), None) or source.hub or ""


def _from_generator(dotted: str, options: dict[str, Any], where: str) -> datasets.Dataset:
    module, _, function = dotted.partition(":")
    refuse_standard_module(module, f"{where}.generator")
    try:
        generator = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as failure:
        raise ValueError(
            f"the generator {dotted!r} cannot be found: {failure}; write package.module:function"
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


def _from_hub(source: config.Dataset) -> datasets.Dataset:
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


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts that fit, and how many did not."""

    prompts: tuple[Prompt, ...]
    dropped: int


def load_prompts(
    source: config.Dataset, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, where: str = "data"
) -> PromptSet:
    """Read a source as prompts; those longer than `max_tokens` are dropped and counted.

    Args:
        source: the section of the configuration.
        tokenizer: the policy's.
        max_tokens: of a prompt, templates included.
        where: the section's name, for errors.

    Raises:
        ValueError: a missing column, an empty cell, a question that is neither text nor chat messages, messages
            without a chat template, or no prompt that fits.
    """
    rows = load_rows(source, where)
    questions = column(rows, source.prompt, f"{where}.prompt")
    references = column(rows, source.reference, f"{where}.reference")
    texts = render(source, tokenizer, questions, where=where)
    # A chat template writes the special tokens itself.
    chat = source.chat_template == "auto" and bool(tokenizer.chat_template)
    token_ids = _tokenize(tokenizer, texts, special=not chat)
    name = _name(source)
    prompts = tuple(
        Prompt(f"{name}:{index}", text, tuple(ids), reference, row)
        for index, (text, ids, reference, row) in enumerate(
            zip(texts, token_ids, references, rows.to_list(), strict=True)
        )
        if 0 < len(ids) <= max_tokens
    )
    if not prompts:
        raise ValueError(
            f"none of the {len(texts)} prompts of {name} has between 1 and rollout.max_prompt_tokens={max_tokens} "
            f"tokens; the shortest has {min(map(len, token_ids))}"
        )
    return PromptSet(prompts, len(texts) - len(prompts))


def load_supervised(
    source: config.Dataset, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[tuple[TrainingSequence, ...], int]:
    """Read a source as prompt-and-response sequences with loss on the response and its end only.

    Returns:
        The sequences, and how many rows were dropped because they are longer than `max_tokens`.

    Raises:
        ValueError: a missing column, an empty cell, a question or response that is neither text nor chat messages, a
            tokenizer without an end token, or no row that fits.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so a policy could not learn to stop")
    rows = load_rows(source)
    questions = column(rows, source.prompt, "data.prompt")
    responses = [
        response_text(response, f"row {index}: column {source.response!r} (data.response)")
        for index, response in enumerate(column(rows, source.response, "data.response"))
    ]
    chat = source.chat_template == "auto" and bool(tokenizer.chat_template)
    prompt_ids = _tokenize(tokenizer, render(source, tokenizer, questions), special=not chat)
    response_ids = _tokenize(tokenizer, responses, special=False)
    sequences = tuple(
        TrainingSequence((*prompt, *response, tokenizer.eos_token_id), len(prompt), (0.0,) * (len(response) + 1), 0.0)
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
        if prompt and len(prompt) + len(response) < max_tokens
    )
    if not sequences:
        shortest = min(len(one) + len(other) + 1 for one, other in zip(prompt_ids, response_ids, strict=True))
        raise ValueError(
            f"none of the {len(responses)} rows fits sft.max_tokens={max_tokens}; the shortest has {shortest} tokens"
        )
    return sequences, len(responses) - len(sequences)


Item = TypeVar("Item")


class Cursor(Generic[Item]):
    """An endless, shuffled walk over items that goes on where its state was taken.

    Each epoch is a torchdata StatefulDataLoader of its own, seeded by the run's seed and the epoch's number: resumed
    in its middle, one loader that goes on over epochs would draw the later ones in another order.
    """

    def __init__(self, items: Sequence[Item], seed: int, without: frozenset[int] = frozenset()) -> None:
        """Start before the first item of the first epoch.

        Args:
            items: what is walked over.
            seed: of the order.
            without: numbers of items that are passed over; the order of the others does not depend on them, and a walk
                may go on with others passed over.
        """
        self._items, self._without = items, without
        self._seed = seed
        self._start(epoch=0)

    def _start(self, epoch: int, state: dict[str, Any] | None = None) -> None:
        # PyTorch's CPU generator reads the lowest 32 bits of a seed and no more.
        digest = hashlib.blake2b(f"{self._seed}/{epoch}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        self._epoch = epoch
        self._loader: StatefulDataLoader[int] = StatefulDataLoader(
            range(len(self._items)), batch_size=None, shuffle=True, generator=generator, num_workers=0
        )
        if state is not None:
            self._loader.load_state_dict(state)
        self._iterator: Iterator[int] = iter(self._loader)

    def next(self, count: int) -> list[Item]:
        """The next `count` items, going over into the next epoch where this one ends."""
        taken: list[Item] = []
        while len(taken) < count:
            index = next(self._iterator, None)
            if index is None:
                self._start(self._epoch + 1)
            elif index not in self._without:
                taken.append(self._items[int(index)])
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Where the walk is, with the number of items it walks over."""
        return {"items": len(self._items), "epoch": self._epoch, "loader": self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: the state was taken over another number of items.
        """
        if state["items"] != len(self._items):
            raise ValueError(
                f"the checkpoint walked over {state['items']} rows, the data has {len(self._items)} now; "
                "resume with the same data and length limits, or start a new run folder"
            )
        self._start(state["epoch"], state["loader"])
