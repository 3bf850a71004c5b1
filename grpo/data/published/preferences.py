"""Published preferences whose rows have another shape than `prompt, chosen, rejected`, as generators for `data`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TURN = re.compile(r"\n\nHuman:|\n\nAssistant:")
_ROLES = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


def tldr_comparisons(path: str) -> Iterator[dict[str, str]]:
    """Yield rows of two summaries of a post that people compared: `openai/summarize_from_feedback`, `comparisons`.

    Stiennon et al. 2020 (arXiv:2009.01325). `choice` is the number of the better summary.

    Args:
        path: JSON Lines file with the data set's rows.

    Raises:
        ValueError: a row has another shape; the message has its line.
    """
    for place, row in _rows(path):
        if row.get("choice") not in (0, 1):
            raise ValueError(f"{place}: choice must be 0 or 1, got {row.get('choice')!r}")
        try:
            info, texts, choice = row["info"], [each["text"].strip() for each in row["summaries"]], row["choice"]
            better, worse = texts[choice], texts[1 - choice]
            post = info.get("post") or info["article"]
        except (KeyError, TypeError, IndexError, AttributeError) as failure:
            raise ValueError(f"{place}: expected info.post, and summaries with two texts; got {failure!r}") from failure
        prompt = f"TITLE: {info['title']}\n\n{post}\n\nTL;DR:" if info.get("title") else f"{post}\n\nTL;DR:"
        yield {"prompt": prompt, "chosen": better, "rejected": worse, "subset": str(row.get("split", ""))}


def hh_rlhf(path: str) -> Iterator[dict[str, Any]]:
    """Yield rows of two whole conversations as chat messages: `Anthropic/hh-rlhf` (Bai et al. 2022, arXiv:2204.05862).

    Pairs that differ before the last answer, or whose last answers are equal or empty, are left out: about one in a
    hundred.

    Args:
        path: JSON Lines file with the data set's rows, `chosen` and `rejected` as text.

    Raises:
        ValueError: a row has another shape; the message has its line.
    """
    for place, row in _rows(path):
        chosen, rejected = (_messages(row.get(name), f"{place}: {name}") for name in ("chosen", "rejected"))
        last = [each[-1]["content"] for each in (chosen, rejected)]
        if chosen[:-1] == rejected[:-1] and all(last) and last[0] != last[1]:
            yield {"chosen": chosen, "rejected": rejected}


def _messages(text: Any, place: str) -> list[dict[str, str]]:
    if not isinstance(text, str) or not text.startswith("\n\nHuman:"):
        raise ValueError(f"{place}: expected a conversation that begins with a line `Human:`, got {text!r:.60}")
    roles = [_ROLES[mark] for mark in _TURN.findall(text)]
    said = [part.strip() for part in _TURN.split(text)[1:]]
    if roles[-1] != "assistant" or len(roles) < 2:
        raise ValueError(f"{place}: the conversation does not end with an answer of the assistant: {text[-60:]!r}")
    return [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}, line {number}", json.loads(line)
