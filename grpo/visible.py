"""Replace invisible characters and control characters by their names.

So no text can hide or reorder other output, or control the terminal.
"""

from __future__ import annotations

import re
import unicodedata

# All control characters except newline and tab. `visible` keeps newlines and tabs.
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufff9-\ufffb\U00013430-\U0001343f"
# The Unicode property Default_Ignorable_Code_Point (Unicode 17), which `unicodedata` does not have. These characters
# are invisible: bidirectional controls, zero-width characters, fillers, variation selectors and tags.
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# An empty braille cell, a musical note without a head, and code points that are not characters.
_BLANK = "\u2800\U0001d159\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff"
_INVISIBLE = re.compile(f"[{_CONTROL}{_IGNORABLE}{_BLANK}]")
_JOINER, _AS_EMOJI = "\u200d", "\ufe0f"


def visible(text: str) -> str:
    """Return the text with names such as `⟨U+202E⟩` in place of invisible, reordering and control characters.

    A joiner between two emoji stays. The selector of an emoji's coloured form also stays.
    """
    return _INVISIBLE.sub(_named, text)


def one_line(text: str, longest: int = 300) -> str:
    """Return the text as a single line for a message.

    Each run of whitespace becomes a space. If the text has more than `longest` characters, its middle is cut out.
    """
    # Cut before the split, so that a text of megabytes takes little time.
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
    return visible(" ".join(text.split()))


def _named(match: re.Match[str]) -> str:
    character, text, at = match.group(), match.string, match.start()
    if character in (_JOINER, _AS_EMOJI):
        before = text[at - 1] if at else ""
        if character == _AS_EMOJI and _is_emoji(before):
            return character
        after = text[at + 1] if at + 1 < len(text) else ""
        if character == _JOINER and (_is_emoji(before) or before == _AS_EMOJI) and _is_emoji(after):
            return character
    return f"⟨U+{ord(character):04X}⟩"


def _is_emoji(character: str) -> bool:
    # Emoji have the Unicode category So, except skin tones, which have the category Sk.
    return character != "" and (unicodedata.category(character) == "So" or "\U0001f3fb" <= character <= "\U0001f3ff")
