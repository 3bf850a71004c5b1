"""Multiple choice: which letter an answer names."""

from __future__ import annotations

import re

_MACRO = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad|[~$*]|\\left|\\right")
_LETTER = re.compile(
    r"(?i:(?:the )?(?:correct )?(?:option|choice|answer)(?: is)?:? *)?"
    r"(?:\( *(?P<wrapped>[A-Ja-j]) *\)|\[(?P<square>[A-Ja-j])\]|(?P<marked>[A-J])(?= *[).:])|(?P<alone>[A-Ja-j])$)"
    r" *[).:]* *(?P<rest>.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(r"^(?:,|;|/|&|or\b|and\b)|\( *[A-J] *\)|\b[A-J]\)|\b(?:or|and) +[A-J]\b")


def letter_of(text: str) -> tuple[str, str] | None:
    r"""The letter, A to J, that an answer names, with the content after it.

    `(C)`, `C`, `C.`, `\text{(C)} 5`, `Option C` and `C) 5` name C; None where the text names no letter, or several.
    """
    plain = _SPACING.sub(" ", _MACRO.sub(r" \1 ", text[:400])).strip(" .\n\t")
    while plain.startswith("{") and plain.endswith("}"):
        plain = plain[1:-1].strip()
    match = _LETTER.fullmatch(plain)
    if match is None:
        return None
    rest = match["rest"].strip()
    if _ANOTHER.search(rest):
        return None
    found = match["wrapped"] or match["square"] or match["marked"] or match["alone"]
    return found.upper(), rest
