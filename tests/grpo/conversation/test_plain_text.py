from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conversations.small_chat import SPECIAL, TAGS, small_tokenizer, special_ids, texts
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo.config import NewPolicyConfig
from grpo.conversation.plain_text import PlainTokenizer
from grpo.messages import without_lone_surrogates
from grpo.policy.new import make_policy


@cache
def small() -> PreTrainedTokenizerFast:
    return small_tokenizer()


@cache
def plain() -> PlainTokenizer:
    return PlainTokenizer(small())


@given(texts([*SPECIAL, *TAGS]).map(without_lone_surrogates))
def test_text_stays_text(text: str) -> None:
    ids = plain().encode(text)
    assert special_ids(small()).isdisjoint(ids)
    assert small().decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("tag", [*SPECIAL, *TAGS])
def test_tags_that_are_not_marked_as_special_are_text_too(tag: str) -> None:
    """`split_special_tokens` leaves these: the reason for a tokenizer of our own."""
    (token,) = small().encode(tag)
    assert token not in plain().encode(f"a {tag} b") and plain().pieces(f"a {tag} b") == ["a ", token, " b"]
    ids = small()(tag, split_special_tokens=True)["input_ids"]
    assert (token in ids) == (tag in TAGS)


@given(st.lists(st.sampled_from([*SPECIAL, *TAGS, "<", "<|", "im_end", " ", "x"]), max_size=8).map("".join))
def test_a_templates_text_is_taken_apart_as_the_tokenizer_does(text: str) -> None:
    ids: list[int] = []
    for piece in plain().pieces(text):
        ids += [piece] if isinstance(piece, int) else plain().encode(piece)
    assert ids == small().encode(text)


def test_the_longest_token_counts_and_tokens_may_take_in_spaces() -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_tokens([AddedToken("<x>", rstrip=True, normalized=False), AddedToken("<x>y", normalized=False)])
    apart = PlainTokenizer(tokenizer)
    first, longer = tokenizer.convert_tokens_to_ids(["<x>", "<x>y"])
    assert apart.pieces("<x>  a<x>y b") == [first, "a", longer, " b"]
    assert tokenizer.encode("<x>  a<x>y b") == [first, *apart.encode("a"), longer, *apart.encode(" b")]


def test_added_tokens_of_spaces_stay_tokens() -> None:
    """Some vocabularies have long runs of spaces as added tokens. Such a token forges nothing, so text keeps it."""
    tokenizer = words("<", " ", "\n", "a", "b", "c", "\n\n\n")
    tokenizer.add_tokens([AddedToken("\n\n\n", normalized=False)])
    assert PlainTokenizer(tokenizer).encode("a\n\n\nb") == tokenizer.encode("a\n\n\nb")
    assert len(PlainTokenizer(tokenizer).encode("a\n\n\nb")) == 3


def test_added_tokens_of_spaces_whose_numbers_would_change_become_text() -> None:
    tokenizer = small_tokenizer()
    tokenizer.add_tokens([AddedToken("\n\n\n", normalized=False)])
    ids = PlainTokenizer(tokenizer).encode("a\n\n\nb")
    assert tokenizer.convert_tokens_to_ids("\n\n\n") not in ids and tokenizer.decode(ids) == "a\n\n\nb"


def words(*names: str, unknown: str = "<unk>", end: str = "<end>") -> PreTrainedTokenizerFast:
    """A vocabulary of whole words: special tokens are words too."""
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys([unknown, end, *names]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<end>|\s|[^\s<]+|<"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, eos_token=end)


def test_a_special_token_that_is_also_a_word_is_cut() -> None:
    tokenizer = words("<", "end>", " ", "\n", "a", "b", "c")
    ids = PlainTokenizer(tokenizer).encode("a<end>b")
    assert tokenizer.eos_token_id not in ids and tokenizer.decode(ids) == "a<end>b"


def test_a_vocabulary_that_ends_the_turn_at_an_unknown_word_is_refused() -> None:
    both = words("a", " ", "\n", "b", "c", unknown="<end>")
    with pytest.raises(ValueError, match=r"no other token for text such as .*<end>.*byte-level tokenizer"):
        PlainTokenizer(both).encode("other")


def test_characters_that_a_vocabulary_lacks_become_its_unknown_token(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    make_policy(NewPolicyConfig(alphabet="abc 0123", tags=["<think>", "</think>"]), [], folder, 0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = PlainTokenizer(tokenizer).encode("a <end> 2")
    assert tokenizer.eos_token_id not in ids and ids.count(tokenizer.unk_token_id) == 5
    assert "a " in tokenizer.decode(ids) and tokenizer.decode(ids).endswith(" 2")


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "<end>": 3}, []))
    tokenizer.decoder = decoders.Fuse()
    losing = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    with pytest.raises(
        ValueError, match=r"loses spaces or new lines: 'a b\\nc' comes back as 'abc'; set tokenizer_class"
    ):
        PlainTokenizer(losing)


def test_a_tokenizer_without_a_description_is_refused() -> None:
    class Slow:
        unk_token_id = eos_token_id = bos_token_id = None

    with pytest.raises(ValueError, match=r"\(Slow\) has no tokenizer\.json"):
        PlainTokenizer(Slow())  # type: ignore[arg-type]


def test_surrogates() -> None:
    assert without_lone_surrogates("\ud83d\ude00") == "\U0001f600" == unicodedata.lookup("GRINNING FACE")
    assert without_lone_surrogates("a\udc00\ud800") == "a\ufffd\ufffd" and without_lone_surrogates("\x00") == "\x00"


def test_a_text_without_special_words_is_encoded_in_one_piece() -> None:
    """Cut into pieces it could have other tokens than the template's own rendering."""

    class Counting:
        def __init__(self, inner: Tokenizer) -> None:
            self.inner, self.texts = inner, list[str]()

        def encode(self, text: str, add_special_tokens: bool) -> Any:
            self.texts.append(text)
            assert not add_special_tokens
            return self.inner.encode(text, add_special_tokens=add_special_tokens)

    apart = PlainTokenizer(small())
    apart._plain = counting = Counting(apart._plain)  # type: ignore[assignment]
    assert apart.encode("a <|im_end|> b") == plain().encode("a <|im_end|> b")
    assert counting.texts == ["a <|im_end|> b"]
    both = PlainTokenizer(words("a", " ", "<end>", unknown="a"))
    assert "<end>" not in [both.added.get(str(token)) for token in both.encode("a")]
