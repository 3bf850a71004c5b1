"""Characters that a reader would not see, or that would reorder what a reader sees, are named."""

from __future__ import annotations

import unicodedata

import pytest

from grpo.visible import visible


def test_invisible_characters_are_named_and_ordinary_text_is_not_touched() -> None:
    assert visible("a\u202eb\x1b[0m\u200bc\x00") == "a⟨U+202E⟩b⟨U+001B⟩[0m⟨U+200B⟩c⟨U+0000⟩"
    ordinary = "x² ≤ 5\n\t日本 é 👩\u200d🔬 👍🏽 🏃🏽\u200d♀\ufe0f ❤\ufe0f مرحبا 12\u00a0km"
    assert visible(ordinary) == ordinary


# One of each kind, ends of ranges included: fillers, selectors, tags, joiners, controls of old scripts and of music.
HIDDEN = (
    0x00, 0x0D, 0x1B, 0x7F, 0x85, 0x9B, 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x180B, 0x180E, 0x180F, 0x200B,
    0x200C, 0x200D, 0x200F, 0x2028, 0x202A, 0x202E, 0x2060, 0x2065, 0x206A, 0x206F, 0x2800, 0x3164, 0xD800, 0xDFFF,
    0xFE00, 0xFE0E, 0xFE0F, 0xFEFF, 0xFFA0, 0xFFF0, 0xFFFB, 0x13430, 0x1BCA0, 0x1D159, 0x1D173, 0xE0000, 0xE0041,
    0xE007F, 0xE0100, 0xE01EF, 0xE0FFF,
)  # fmt: skip


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda code: f"U+{code:04X}")
def test_every_hidden_character_is_named(hidden: int) -> None:
    named = f"⟨U+{hidden:04X}⟩"
    assert visible(f"a{chr(hidden)}b") == f"a{named}b"
    # Behind an emoji as well, where it could carry a bit: a selector that picks its form may stand there once.
    assert visible(f"👍{chr(hidden) * 2}b").endswith(f"{named}b")


def test_every_format_character_but_visible_ones_is_named() -> None:
    drawn = {0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD, *range(0x600, 0x606)}
    found = {at for at in range(0x110000) if unicodedata.category(chr(at)) == "Cf"} - drawn
    assert {at for at in found if visible(chr(at)) == chr(at)} == set()
