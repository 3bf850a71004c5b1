"""The labelled corpus, read; used by the tests and by the benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parents[1] / "rewards" / "corpus"
# Share of the corpus that no rule was tuned on, by the hash of the pair.
HELD_BACK_ONE_IN = 3


@dataclass(frozen=True)
class Pair:
    """A labelled pair: whether `completion` is to be accepted for `gold`."""

    kind: str
    equal: bool
    gold: str
    answer: str
    completion: str
    held_back: bool


def read_pairs() -> Iterator[Pair]:
    """The corpus that the verifier was written and tuned with, a third of it held back."""
    yield from _read("")


def read_second() -> Iterator[Pair]:
    """The second set, all of it held back, written once the misses on the first held back were known.

    The few pairs that turned out to be in the first set as well are left out.
    """
    known = {(pair.gold, pair.answer) for pair in read_pairs()}
    yield from (pair for pair in _read("second_") if (pair.gold, pair.answer) not in known)


def read_third() -> Iterator[Pair]:
    """The third set: pairs that a reviewer wrote to break the verifier, which was then mended against them."""
    known = {(pair.gold, pair.answer) for pair in (*read_pairs(), *read_second())}
    yield from (pair for pair in _read("third_") if (pair.gold, pair.answer) not in known)


@dataclass(frozen=True)
class Row:
    """A labelled completion for any built-in verifier: whether it is to be accepted for `gold`."""

    verifier: str
    kind: str
    gold: Any
    answer: str
    expected: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)


def read_fourth() -> Iterator[Row]:
    """The fourth set: 300 rows that a reader of docs/verifiers.md wrote, who had seen neither code nor other sets."""
    for line in (CORPUS / "fourth.jsonl").read_text(encoding="utf-8").splitlines():
        yield Row(**json.loads(line))


def _read(prefix: str) -> Iterator[Pair]:
    for name in ("math", "find"):
        kind = ""
        for line in (CORPUS / f"{prefix}{name}.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                kind = line.strip("[]")
            elif line[:2] in ("= ", "! "):
                gold, separator, answer = line[2:].partition(" ;; ")
                assert separator, line
                digest = hashlib.sha256(f"{gold}\t{answer}".encode()).hexdigest()
                held_back = prefix == "second_" or (not prefix and int(digest, 16) % HELD_BACK_ONE_IN == 0)
                whole = answer.replace("⏎", "\n") if name == "find" else f"So the answer is $\\boxed{{{answer}}}$."
                yield Pair(kind, line[0] == "=", gold, answer, whole, held_back)
