"""The 25 kinds of instructions of IFEval (Zhou et al. 2023, arXiv:2311.07911), each with a check of a completion.

The rules are those of the paper's program, with these differences: sentences and words in capitals are counted without
nltk; keywords are texts, not regular expressions; a text without a recognisable language follows no language. Each
check takes time linear in the completion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.instructions.counting import count_brackets, count_capital_words, count_sentences, count_words
from rewards.instructions.language import language_of

Arguments = Mapping[str, Any]
_RELATIONS = ("less than", "at least")
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_HIGHLIGHT = re.compile(r"\*([^\n*]*)\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*")
_FENCES = ("```json", "```Json", "```JSON", "```")
_POSTSCRIPTS = {"P.S.": re.compile(r"p\.\s?s\."), "P.P.S": re.compile(r"p\.\s?p\.\s?s")}


@dataclass(frozen=True, slots=True)
class InstructionKind:
    """A kind of instruction.

    Attributes:
        follows: whether a completion that is not empty follows the instruction, given its arguments.
        arguments: name of each argument -> its form, a key of `_FORMS`.
        needs_language: whether the check needs langdetect.
    """

    follows: Callable[[str, Arguments], bool]
    arguments: Mapping[str, str]
    needs_language: bool = False

    def problem(self, arguments: Arguments) -> str:
        """Return why the arguments cannot be used; empty if they can."""
        for name, form in self.arguments.items():
            if not _FORMS[form](arguments.get(name)):
                return f"{name} must be {form}, got {arguments.get(name)!r:.60}"
        return ""


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "a whole number": lambda value: isinstance(value, (int, float)) and value >= 0 and float(value).is_integer(),
    "a text": lambda value: isinstance(value, str) and bool(value.strip()),
    "a single character": lambda value: isinstance(value, str) and len(value.strip()) == 1,
    "a list of texts": lambda value: (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(word, str) and word for word in value)
    ),
    "`less than` or `at least`": lambda value: value in _RELATIONS,
}
_NUMBER, _TEXT, _LETTER, _TEXTS, _RELATION = _FORMS


def _compared(count: int, relation: str, bound: float) -> bool:
    return count < bound if relation == _RELATIONS[0] else count >= bound


def _paragraphs(text: str, given: Arguments) -> bool:
    first, *middle, last = [bool(part.strip()) for part in text.split("***")] if "***" in text else [True, False]
    return all(middle) and first + len(middle) + last == given["num_paragraphs"]


def _first_word(text: str, given: Arguments) -> bool:
    paragraphs, number = text.split("\n\n"), int(given["nth_paragraph"])
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if count != given["num_paragraphs"] or not 1 <= number <= count or not paragraphs[number - 1].strip():
        return False
    word = paragraphs[number - 1].split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return bool(re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == given["first_word"].strip().lower())


def _bullets(text: str, given: Arguments) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    count = sum(line.startswith("-") or (line[:1] == "*" and line[1:2] not in ("", "*")) for line in lines)
    return bool(count == given["num_bullets"])


def _highlights(text: str, given: Arguments) -> bool:
    highlights = [*_HIGHLIGHT.findall(text), *_DOUBLE_HIGHLIGHT.findall(text)]
    return bool(sum(bool(inside.strip()) for inside in highlights) >= given["num_highlights"])


def _sections(text: str, given: Arguments) -> bool:
    mark = re.compile(re.escape(given["section_spliter"].strip()) + r"\s?\d+")
    return bool(sum(1 for _ in mark.finditer(text)) >= given["num_sections"])


def _postscript(text: str, given: Arguments) -> bool:
    marker = given["postscript_marker"].strip()
    pattern = _POSTSCRIPTS.get(marker)
    return bool(pattern.search(text.lower())) if pattern else marker.lower() in text.lower()


def _title(text: str, given: Arguments) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].strip("<> \t"):
            return True
    return False


def _json(text: str, given: Arguments) -> bool:
    text = text.strip()
    fence = next((fence for fence in _FENCES if text.startswith(fence)), "")
    try:
        json.loads(text.removeprefix(fence).removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _two_responses(text: str, given: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _without(text: str, given: Arguments) -> bool:
    words = [rf"(?<!\w){re.escape(word)}(?!\w)" for word in given["forbidden_words"]]
    return not any(re.search(word, text, re.IGNORECASE) for word in words)


def _keywords(text: str, given: Arguments) -> bool:
    return all(word.lower() in text.lower() for word in given["keywords"])


def _capital_words(text: str, given: Arguments) -> bool:
    return _compared(count_capital_words(text), given["capital_relation"], given["capital_frequency"])


def _letters(text: str, given: Arguments) -> bool:
    count = text.lower().count(given["letter"].strip().lower())
    return _compared(count, given["let_relation"], given["let_frequency"])


def _frequency(text: str, given: Arguments) -> bool:
    return _compared(text.lower().count(given["keyword"].strip().lower()), given["relation"], given["frequency"])


def _ends(text: str, given: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quoted(text: str, given: Arguments) -> bool:
    return len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"'


# langdetect knows no word in capitals, so it reads both cases in lower case.
def _capitals(text: str, given: Arguments) -> bool:
    return text.isupper() and language_of(text.lower()) == "en"


KINDS: Mapping[str, InstructionKind] = {
    "keywords:existence": InstructionKind(_keywords, {"keywords": _TEXTS}),
    "keywords:frequency": InstructionKind(_frequency, {"keyword": _TEXT, "frequency": _NUMBER, "relation": _RELATION}),
    "keywords:forbidden_words": InstructionKind(_without, {"forbidden_words": _TEXTS}),
    "keywords:letter_frequency": InstructionKind(
        _letters, {"letter": _LETTER, "let_frequency": _NUMBER, "let_relation": _RELATION}
    ),
    "language:response_language": InstructionKind(
        lambda text, given: language_of(text) == given["language"], {"language": _TEXT}, needs_language=True
    ),
    "length_constraints:number_sentences": InstructionKind(
        lambda text, given: _compared(count_sentences(text), given["relation"], given["num_sentences"]),
        {"num_sentences": _NUMBER, "relation": _RELATION},
    ),
    "length_constraints:number_paragraphs": InstructionKind(_paragraphs, {"num_paragraphs": _NUMBER}),
    "length_constraints:number_words": InstructionKind(
        lambda text, given: _compared(count_words(text), given["relation"], given["num_words"]),
        {"num_words": _NUMBER, "relation": _RELATION},
    ),
    "length_constraints:nth_paragraph_first_word": InstructionKind(
        _first_word, {"num_paragraphs": _NUMBER, "nth_paragraph": _NUMBER, "first_word": _TEXT}
    ),
    "detectable_content:number_placeholders": InstructionKind(
        lambda text, given: count_brackets(text) >= given["num_placeholders"], {"num_placeholders": _NUMBER}
    ),
    "detectable_content:postscript": InstructionKind(_postscript, {"postscript_marker": _TEXT}),
    "detectable_format:number_bullet_lists": InstructionKind(_bullets, {"num_bullets": _NUMBER}),
    "detectable_format:constrained_response": InstructionKind(
        lambda text, _: any(option in text for option in _OPTIONS), {}
    ),
    "detectable_format:number_highlighted_sections": InstructionKind(_highlights, {"num_highlights": _NUMBER}),
    "detectable_format:multiple_sections": InstructionKind(
        _sections, {"section_spliter": _TEXT, "num_sections": _NUMBER}
    ),
    "detectable_format:json_format": InstructionKind(_json, {}),
    "detectable_format:title": InstructionKind(_title, {}),
    "combination:two_responses": InstructionKind(_two_responses, {}),
    "combination:repeat_prompt": InstructionKind(
        lambda text, given: text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower()),
        {"prompt_to_repeat": _TEXT},
    ),
    "startend:end_checker": InstructionKind(_ends, {"end_phrase": _TEXT}),
    "startend:quotation": InstructionKind(_quoted, {}),
    "change_case:capital_word_frequency": InstructionKind(
        _capital_words, {"capital_frequency": _NUMBER, "capital_relation": _RELATION}
    ),
    "change_case:english_capital": InstructionKind(_capitals, {}, needs_language=True),
    "change_case:english_lowercase": InstructionKind(
        lambda text, _: text.islower() and language_of(text) == "en", {}, needs_language=True
    ),
    "punctuation:no_comma": InstructionKind(lambda text, _: "," not in text, {}),
}
