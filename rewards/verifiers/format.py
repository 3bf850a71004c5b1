"""Checks the format of a completion: tags that occur exactly once and in order, or a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.verdict import Verdict, correct, scored, wrong
from rewards.verifier import ReadsNoReference


class Format(ReadsNoReference):
    """Checks that tags such as think and answer occur exactly once each, in order, and are not empty.

    Text outside the tags is allowed unless `only_tags` is set. Tags without text in them (`<think></think>`) are
    refused.

    Args:
        tags: names of the tags, in the wanted order; `()` if only `pattern` is checked.
        opened: tags that the chat template opens at the end of the prompt, for example `("think",)` if the
            template ends in `<think>`. The completion may lack the opening tags of these.
        only_tags: whether only white space may stand outside the tags.
        pattern: regular expression that the whole completion must match (dot matches newlines), in addition to the
            tags. A hostile completion may make the matching take very long (by backtracking); only the pool's deadline
            stops it.
        partial: if true, the score is the fraction of the checks that hold, with status `scored` if not all hold. If
            false, the score is 1 if all checks hold, else 0.

    The verdict's parts are the configured checks among `once`, `order`, `filled`, `outside` and `pattern`, each 0 or 1.

    Raises:
        ValueError: there is nothing to check, `tags` is not a list of names, a tag of `opened` is not in `tags`, or the
            pattern is invalid.
    """

    def __init__(
        self,
        tags: Sequence[str] = ("think", "answer"),
        opened: Sequence[str] = (),
        only_tags: bool = False,
        pattern: str | None = None,
        partial: bool = False,
    ) -> None:
        for name, given in (("tags", tags), ("opened", opened)):
            if isinstance(given, str):
                raise ValueError(f"{name} must be a list of tag names, got {given!r}; write [{given}]")
            odd = [tag for tag in given if not isinstance(tag, str) or not tag or set(tag) & set("<>/")]
            if odd:
                raise ValueError(f"{name} must be names without brackets, such as think; got {odd}")
        if not tags and pattern is None:
            raise ValueError("format has nothing to check: give tags, a pattern, or both")
        stray = [tag for tag in opened if tag not in tags]
        if stray:
            raise ValueError(f"opened names tags that are not in tags: {stray}; tags are {list(tags)}")
        try:
            self._pattern = re.compile(pattern, re.DOTALL) if pattern is not None else None
        except re.error as problem:
            raise ValueError(f"pattern {pattern!r} is not a regular expression: {problem}") from problem
        self.tags, self.opened = tuple(tags), frozenset(opened)
        self.only_tags, self.partial = only_tags, partial

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The verdict on the format alone; the reference is ignored."""
        parts = self._tag_checks(completion) if self.tags else {}
        if self._pattern is not None:
            parts["pattern"] = float(self._pattern.fullmatch(completion) is not None)
        broken = [name for name, value in parts.items() if value == 0.0]
        if not broken:
            return correct("", **parts)
        reason = f"failed checks: {', '.join(broken)}"
        if self.partial and len(broken) < len(parts):
            return scored(sum(parts.values()) / len(parts), reason, **parts)
        return wrong(reason, **parts)

    def _tag_checks(self, completion: str) -> dict[str, float]:
        text = completion
        for tag in self.opened:
            if f"<{tag}>" not in text:
                text = f"<{tag}>" + text
        once = all(text.count(f"<{tag}>") == 1 and text.count(f"</{tag}>") == 1 for tag in self.tags)
        spots = [text.find(half) for tag in self.tags for half in (f"<{tag}>", f"</{tag}>")]
        in_order = -1 not in spots and spots == sorted(spots)
        parts = {"once": float(once), "order": float(in_order)}
        # Begin and end of each tag's content, and of the whole tag.
        inner = [(text.find(f"<{tag}>") + len(tag) + 2, text.find(f"</{tag}>")) for tag in self.tags]
        parts["filled"] = float(in_order and all(text[a:b].strip() for a, b in inner))
        if self.only_tags:
            ends = [0, *(end + len(tag) + 3 for tag, (_, end) in zip(self.tags, inner, strict=True))]
            starts = [*(start - len(tag) - 2 for tag, (start, _) in zip(self.tags, inner, strict=True)), len(text)]
            gaps = [text[a:b] for a, b in zip(ends, starts, strict=True)]
            parts["outside"] = float(in_order and not any(gap.strip() for gap in gaps))
        return parts
