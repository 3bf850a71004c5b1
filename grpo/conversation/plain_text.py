"""Tokens of text in which nobody can spell a special token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text that every chat template writes; a tokenizer that loses it would hide the layout of what the world says.
_LAYOUT = "a b\nc"


class PlainTokenizer:
    """A tokenizer that reads special tokens only where the caller says that they stand.

    `split_special_tokens` of `transformers` is not enough. It leaves added tokens that are not marked as special, such
    as Qwen3's `<tool_response>` and DeepSeek's token for the user, which mean as much to the policy. So this class
    makes a copy of the tokenizer without any added token, except those of spaces only.

    Attributes:
        added: text of each added token -> id, without those of spaces only. "Special token" means one of these.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Copy the tokenizer.

        Raises:
            ValueError: the tokenizer has no description that can be copied, or it loses spaces or new lines.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"the policy's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json; conversations need a "
                "tokenizer of the library `tokenizers`, so save the policy with one"
            )
        description = json.loads(backend.to_str())
        tokens = description["added_tokens"]
        spaces = [token for token in tokens if not token["content"].strip()]
        described = [token for token in tokens if token["content"].strip()]
        self.added: dict[str, int] = {token["content"]: token["id"] for token in described}
        self._plain = _copy_without_added_tokens(description, spaces)
        unknown = tokenizer.unk_token_id
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
        # A character that the vocabulary lacks may be the unknown token, unless that token also ends a turn.
        self._forbidden = set(self.added.values()) - ({unknown} - ends)
        self._special = _pattern(described)
        ids = self.encode(_LAYOUT)
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if unknown not in ids and decoded != _LAYOUT:
            raise ValueError(
                f"the policy's tokenizer ({type(tokenizer).__name__}) loses spaces or new lines: {_LAYOUT!r} comes "
                f"back as {decoded!r}; set tokenizer_class in its tokenizer_config.json to PreTrainedTokenizerFast, so "
                "that tokenizer.json is used as it is"
            )

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text. None of them is special, whatever the text spells.

        Raises:
            ValueError: the vocabulary has no other token for a part of the text.
        """
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._forbidden.isdisjoint(ids):
            return ids
        # Vocabularies of words, and some of unigrams, have special tokens among their words too. So cut the words.
        pieces = (piece for run in self._special.split(text) for piece in _cut(run, self.added))
        ids = [token for piece in pieces for token in self._plain.encode(piece, add_special_tokens=False).ids]
        if not self._forbidden.isdisjoint(ids):
            names = sorted(name for name, token in self.added.items() if token in self._forbidden.intersection(ids))
            raise ValueError(
                f"the policy's tokenizer has no other token for text such as {', '.join(names)!r}, so text of the "
                "world could become a special token; take a policy with a byte-level tokenizer"
            )
        return ids

    def pieces(self, text: str) -> list[str | int]:
        """Return the text of a chat template as ordinary text and ids of special tokens, in order."""
        pieces: list[str | int] = []
        for at, piece in enumerate(self._special.split(text)):
            if at % 2:
                # The match may include the spaces around a token that takes them in.
                pieces.append(self.added[piece] if piece in self.added else self.added[piece.strip()])
            elif piece:
                pieces.append(piece)
        return pieces


def _copy_without_added_tokens(description: dict[str, Any], kept: Sequence[dict[str, Any]]) -> Tokenizer:
    copied = {
        **description,
        "added_tokens": list(kept),
        "post_processor": None,
        "truncation": None,
        "padding": None,
        # A run of text between special tokens is not the beginning of the input, where some tokenizers add a space.
        "pre_tokenizer": _without_first_space(description["pre_tokenizer"]),
    }
    plain = Tokenizer.from_str(json.dumps(copied))
    if any(plain.token_to_id(token["content"]) != token["id"] for token in kept):
        plain = Tokenizer.from_str(json.dumps({**copied, "added_tokens": []}))
    return plain


def _without_first_space(part: Any) -> Any:
    if isinstance(part, dict):
        changed = {key: _without_first_space(value) for key, value in part.items()}
        return {**changed, "prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else changed
    return [_without_first_space(item) for item in part] if isinstance(part, list) else part


def _pattern(tokens: Sequence[dict[str, Any]]) -> re.Pattern[str]:
    """Return the pattern of all special tokens, the longest first, with the spaces that they take in."""
    longest_first = sorted(tokens, key=lambda token: -len(token["content"]))
    choices = [
        (r"\s*" if token["lstrip"] else "") + re.escape(token["content"]) + (r"\s*" if token["rstrip"] else "")
        for token in longest_first
    ]
    return re.compile(f"({'|'.join(choices)})" if choices else "(?!)")


def _cut(run: str, added: dict[str, int]) -> list[str]:
    return [run[:1], run[1:]] if run in added or run.strip() in added else [run]


def strings(value: Any) -> Iterator[str]:
    """Yield all texts in plain data, such as the schema of a tool."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (str(key), *strings(item))
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings(item)
