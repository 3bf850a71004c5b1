"""Find the program in a completion: a fenced block, and before it the code from the row's prompt.

Completions are hostile text, so every search here takes linear time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.answers.thinking import DEFAULT_TAGS, Tags
from rewards.programs.assert_tests import readable_prompt
from sandbox import Language

_ALIASES = {
    Language.PYTHON: {"python", "py", "python3"},
    Language.CPP: {"cpp", "c++", "cc", "cxx"},
    Language.JAVASCRIPT: {"javascript", "js", "node"},
    Language.BASH: {"bash", "sh", "shell"},
}
# A fence may be the first text of a list item, on the same line as the marker of the list item.
_LIST_MARKER = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+")
_DEEPER = 3  # blanks by which a closing fence may be indented more than the opening one


@dataclass(frozen=True, slots=True)
class _Fence:
    indent: int
    mark: str
    tag: str
    bare: bool  # whether no text follows the fence on its line; a closing fence must be bare

    def closes(self, opening: _Fence) -> bool:
        same = self.mark[0] == opening.mark[0] and len(self.mark) >= len(opening.mark)
        return same and self.bare and self.indent <= opening.indent + _DEEPER


def _fence(line: str, in_list: bool) -> _Fence | None:
    marker = _LIST_MARKER.match(line) if in_list else None
    begin = marker.end() if marker else 0
    content = line[begin:].lstrip(" \t")
    if content[:3] not in ("```", "~~~"):
        return None
    indent = len(line) - len(content)
    information = content.lstrip(content[0])
    mark = content[: len(content) - len(information)]
    information = information.strip()
    if mark[0] == "`" and "`" in information:
        return None  # this is code inside a line of prose, not a fence
    words = information.partition("{")[0].split(None, 1)
    return _Fence(indent, mark, words[0].lower() if words else "", not information)


@dataclass(frozen=True, slots=True)
class _Block:
    tag: str
    code: str


@functools.lru_cache(maxsize=16)
def _any_tag(tags: Tags) -> re.Pattern[str]:
    """A pattern for any of the tags. A tag in quotation marks does not count, because the text only mentions it."""
    either = "|".join(re.escape(tag) for pair in tags for tag in pair)
    return re.compile(rf"(?<![`'\"])(?:{either})(?![`'\"])" if either else r"(?!)")


def _blocks(lines: Sequence[str], aliases: set[str], tags: Tags, thought: bool) -> list[_Block] | None:
    """The complete blocks after the end of the reasoning; None if the reasoning never ended.

    Tags of reasoning count only outside of blocks, with one exception: reasoning that the prompt has opened may stop
    inside a block. Then a line with only the closing tag ends the reasoning, if a block of the language follows.

    Args:
        lines: lines of the completion.
        aliases: names of the language.
        tags: tags that open and close reasoning.
        thought: whether the reasoning ended before these lines.
    """
    openings, closings = {pair[0] for pair in tags}, {pair[1] for pair in tags}
    blocks: list[_Block] = []
    opening: _Fence | None = None
    content: list[str] = []
    thinking = False
    for number, line in enumerate(lines):
        if opening is not None:
            fence = _fence(line, False)
            if fence is not None and fence.closes(opening):
                blocks.append(_Block(opening.tag, "\n".join([*content, ""]) if content else "\n"))
                opening = None
            elif not thought and line.strip() in closings:
                thought = True
                later = _blocks(lines[number + 1 :], aliases, tags, True)
                if later is not None and any(block.tag in aliases for block in later):
                    return later
                content.append(_dedented(line, opening.indent))
            else:
                content.append(_dedented(line, opening.indent))
            continue
        after = 0
        for tag in _any_tag(tags).finditer(line):
            after = tag.end()
            if tag.group() in openings:
                thinking = True
            elif thinking or not thought:
                thinking, thought = False, True
                blocks.clear()
        if not thinking:
            opening = _fence(line[after:], True)
            content = []
    return None if thinking else blocks


def _dedented(line: str, indent: int) -> str:
    """The line without the indentation of the opening fence."""
    line = line.removesuffix("\r")
    blanks = len(line) - len(line.lstrip(" \t"))
    return line[min(indent, blanks) :]


def extract_code(
    completion: str, language: Language, names: Sequence[str] = (), tags: Tags = DEFAULT_TAGS
) -> str | None:
    """The last complete fenced block of `language`; if there is none, the last block without a language, or None.

    If some blocks define what the tests call, the last of these blocks is taken, because a later block may only
    show how to use the program. Text before the end of the reasoning (`</think>`) is ignored; if the reasoning does
    not end, there is no program. A block that is not closed does not count, because the completion was cut off. The
    indentation of the opening fence is removed from the lines of a block.

    Args:
        completion: text of the completion.
        language: language of the program.
        names: names of the functions and classes that the tests call, if these names are known.
        tags: tags that open and close reasoning (`rewards.answers.thinking`).
    """
    blocks = _blocks(completion.split("\n"), _ALIASES[language], tags, False)
    if not blocks:
        return None
    tagged = [block.code for block in blocks if block.tag in _ALIASES[language]]
    candidates = tagged or [block.code for block in blocks if not block.tag]
    if not candidates:
        return None
    defining = [(len(_defined(code, names)), code) for code in candidates] if names and len(candidates) > 1 else []
    most = max((count for count, _ in defining), default=0)
    return [code for count, code in defining if count == most][-1] if most else candidates[-1]


def _defined(code: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if _definition(name).search(code)]


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"^(?:[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b|class[ \t]+{re.escape(name)}\b"
        rf"|{re.escape(name)}[ \t]*=(?!=))",
        re.MULTILINE,
    )


def complete_program(code: str, row: Mapping[str, Any]) -> str:
    """The program to run: the code before the function under test in a HumanEval row's prompt, then `code`.

    If `code` does not define the function, it is taken as the body of the function, and follows the whole prompt.
    """
    entry, stub = row.get("entry_point"), readable_prompt(row)
    if not isinstance(entry, str) or not stub:
        return code
    definition = re.compile(rf"^[ \t]*(async[ \t]+)?def[ \t]+{re.escape(entry)}\b", re.MULTILINE)
    start = definition.search(stub)
    if start is None:
        return code
    return stub[: start.start()] + "\n" + code if _definition(entry).search(code) else stub + code
