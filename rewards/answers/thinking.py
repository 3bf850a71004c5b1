"""Finds the end of a model's reasoning and the end of its turn. An answer is read only between these two places."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Pairs of an opening and a closing tag.
Tags = tuple[tuple[str, str], ...]

# Built-in verifiers that read an answer, and so have the option `thinking`.
READ_AFTER_THINKING = frozenset(
    ("choice", "code", "exact", "instructions", "math", "numeric", "ordered_list", "reasoning_gym")
)
DEFAULT_TAGS: Tags = (
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning", "seed:think")),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
# This pattern occurs in every default tag except `[THINK]` and the tags of Kimi, and in every token that ends a turn.
# Few texts contain it.
_MAYBE = re.compile("<[/a-z|\uff5c]")
_BAR = "[|\uff5c]"
_TURN_END = re.compile(
    rf"<{_BAR}(?:im_end|turn_end|eot_id|eom_id|eot|eos|end|return|endoftext|end[_\u2581]of[_\u2581]\w{{1,12}}"
    rf"|END_OF_TURN_TOKEN|END_RESPONSE|user|observation|assistant_end){_BAR}>|<(?:end_of_turn|eos|turn\|)>"
)
# `</s>` also ends struck-through text, so it ends a turn only at the end of the text.
_FINAL = re.compile(r"(?:</s>|<pad>|<\|pad\|>)\s*$")


def thinking_tags(wanted: Sequence[str | Sequence[str]] | None) -> Tags:
    """Return the tags for a verifier's option `thinking`.

    The option lists names (`think` means `<think>` and `</think>`) or pairs of tags. None means all known tags; an
    empty list means no tags, so that the whole text is read.

    Raises:
        ValueError: the option has another form.
    """
    if wanted is None:
        return DEFAULT_TAGS
    if isinstance(wanted, str):
        raise ValueError(f"thinking must be a list of names or of pairs of tags; write [{wanted}]")
    tags = []
    for each in wanted:
        pair = (f"<{each}>", f"</{each}>") if isinstance(each, str) else tuple(each)
        named = not isinstance(each, str) or (each and not set(each) & set("<>[]/"))
        if not named or len(pair) != 2 or not all(isinstance(tag, str) and tag for tag in pair):
            raise ValueError(
                f"thinking must be a list of names, such as think, or of pairs of an opening and a closing tag, such "
                f"as ['[THINK]', '[/THINK]']; got {each!r}"
            )
        tags.append((pair[0], pair[1]))
    return tuple(tags)


def without_thinking(text: str, tags: Tags = DEFAULT_TAGS) -> str | None:
    """Return the text after the last closing tag; the whole text if it has no tags; None if the thinking never ends."""
    if tags is DEFAULT_TAGS and _is_plain(text):
        return text
    end = 0
    for _, closing in tags:
        at = text.rfind(closing)
        if at >= 0:
            end = max(end, at + len(closing))
    rest = text[end:] if end else text
    return None if any(opening in rest for opening, _ in tags) else rest


def final_text(text: str, tags: Tags = DEFAULT_TAGS) -> str | None:
    """The text after the thinking, up to the first token that ends a turn.

    Some tokenizers leave such tokens in the text.
    """
    if tags is DEFAULT_TAGS and _is_plain(text):
        return text
    rest = without_thinking(text, tags)
    if rest is None or "<" not in rest:
        return rest
    end = _TURN_END.search(rest)
    rest = rest[: end.start()] if end is not None else rest
    while (final := _FINAL.search(rest[-40:])) is not None:
        rest = rest[: len(rest) - len(rest[-40:]) + final.start()].rstrip()
    return rest


def _is_plain(text: str) -> bool:
    """True when the text has neither a default tag nor the end of a turn."""
    return not (("<" in text and _MAYBE.search(text)) or "THINK]" in text or "\u25c1" in text)
