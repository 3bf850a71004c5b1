"""Packing: what each position of a microbatch holds, and how sequences are shared out."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from grpo.algorithm.packing import Place, TrainingSequence, filler, pack
from grpo.algorithm.sharing import sharing_units, split_evenly

LONG = TrainingSequence((11, 12, 13, 14, 15), 2, (-0.5, -0.25, -0.125), 2.0)
SHORT = TrainingSequence((21, 22, 23), 1, (-1.0, -2.0), -1.0)


SIBLING = TrainingSequence((11, 12, 16), 2, (-3.0,), -2.0)


def test_the_model_reads_what_predicts_something_and_each_prompt_once() -> None:
    packed = pack([LONG, SHORT, SIBLING])
    # 15, 23 and 16 end their sequences; SIBLING's prompt is LONG's, so it brings nothing of its own.
    assert packed.input_ids_N.tolist() == [11, 12, 13, 14, 21, 22]
    assert packed.position_ids_N.tolist() == [0, 1, 2, 3, 0, 1]
    assert packed.places == (Place(0, 2, 2, 2), Place(4, 1, 5, 1), Place(0, 2, 6, 0))
    # The last prompt token predicts the first sampled one of every completion.
    assert packed.source_T.tolist() == [1, 2, 3, 4, 5, 1]
    assert packed.targets_T.tolist() == [13, 14, 15, 22, 23, 16]
    assert packed.lengths_S.tolist() == [3, 2, 1]
    assert packed.weights_T.tolist() == [1] * 6
    assert packed.old_logprobs_T.tolist() == [-0.5, -0.25, -0.125, -1.0, -2.0, -3.0]
    assert packed.advantages_T.tolist() == [2, 2, 2, -1, -1, -2]
    assert {packed.input_ids_N.dtype, packed.position_ids_N.dtype, packed.source_T.dtype} == {torch.int64}
    assert {packed.weights_T.dtype, packed.old_logprobs_T.dtype, packed.advantages_T.dtype} == {torch.float32}


@st.composite
def sequences(draw: st.DrawFn) -> TrainingSequence:
    prompt, sampled = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    # So few different tokens that prompts are often the same.
    token_ids = tuple(draw(st.lists(st.integers(1, 2), min_size=prompt + sampled, max_size=prompt + sampled)))
    logprobs = tuple(-float(draw(st.integers(1, 9))) for _ in range(sampled))
    return TrainingSequence(token_ids, prompt, logprobs, float(draw(st.integers(-3, 3))))


@given(st.lists(sequences(), min_size=1, max_size=6))
def test_nothing_is_lost_and_nothing_is_mixed_up(chosen: list[TrainingSequence]) -> None:
    packed = pack(chosen)
    found, start = [], 0
    for place, trained in zip(packed.places, packed.lengths_S.tolist(), strict=True):
        prompt = slice(place.prompt, place.prompt + place.prompt_length)
        rest = slice(place.rest, place.rest + place.rest_length)
        here = slice(start, start + trained)
        positions = [*packed.position_ids_N[prompt].tolist(), *packed.position_ids_N[rest].tolist()]
        assert positions == list(range(place.length))
        read = [*packed.input_ids_N[prompt].tolist(), *packed.input_ids_N[rest].tolist()]
        last = int(packed.targets_T[here][-1])
        # Each target follows the token that is its source.
        sources = [*range(*prompt.indices(10**6)), *range(*rest.indices(10**6))][place.prompt_length - 1 :]
        assert packed.source_T[here].tolist() == sources
        assert packed.targets_T[here].tolist() == [*read[place.prompt_length :], last]
        (advantage,) = set(packed.advantages_T[here].tolist())
        logprobs = tuple(packed.old_logprobs_T[here].tolist())
        found.append(TrainingSequence((*read, last), place.prompt_length, logprobs, advantage))
        start += trained
    assert start == len(packed.targets_T)
    assert found == chosen
    prompts = {one.token_ids[: one.prompt_length] for one in chosen}
    own = sum(len(one.token_ids) - one.prompt_length - 1 for one in chosen)
    assert len(packed.input_ids_N) == sum(len(prompt) for prompt in prompts) + own


# Two turns of the policy, 13 and 16 to 17; the world gave 14 and 15.
TURNS = TrainingSequence((11, 12, 13, 14, 15, 16, 17), 2, (-1.0, -2.0, -3.0), (2.0, 1.0, 0.0), given=((3, 5),))
# The world speaks first: the history was rewritten after the prompt.
REWRITTEN = TrainingSequence((11, 12, 18, 19), 2, (-4.0,), 5.0, (0.5,), (-4.5,), ((2, 3),))


def test_given_tokens_are_read_and_carry_no_loss() -> None:
    packed = pack([TURNS, LONG, REWRITTEN])
    assert packed.input_ids_N.tolist() == [11, 12, 13, 14, 15, 16, 13, 14, 18]
    assert packed.position_ids_N.tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 2]
    assert packed.places == (Place(0, 2, 2, 4), Place(0, 2, 6, 2), Place(0, 2, 8, 1))
    # 13 follows 12, 16 follows the given 15; 19 follows the given 18.
    assert packed.targets_T.tolist() == [13, 16, 17, 13, 14, 15, 19]
    assert packed.source_T.tolist() == [1, 4, 5, 1, 6, 7, 8]
    assert packed.lengths_S.tolist() == [3, 3, 1]
    assert packed.old_logprobs_T.tolist() == [-1, -2, -3, -0.5, -0.25, -0.125, -4]
    assert packed.advantages_T.tolist() == [2, 1, 0, 2, 2, 2, 5]
    assert packed.weights_T.tolist() == [1, 1, 1, 1, 1, 1, 0.5]
    assert packed.proximal_logprobs_T is not None and packed.proximal_logprobs_T.tolist()[-1] == -4.5


@given(st.lists(sequences(), min_size=1, max_size=4), st.data())
def test_a_mask_selects_among_the_predicted_tokens(chosen: list[TrainingSequence], data: st.DataObject) -> None:
    masked = []
    for item in chosen:
        after = range(item.prompt_length, len(item.token_ids))
        hidden = data.draw(st.lists(st.booleans(), min_size=len(after) - 1, max_size=len(after) - 1))
        kept = [not hide for hide in (*hidden, False)]
        ranges = tuple((at, at + 1) for at, keep in zip(after, kept, strict=True) if not keep)
        logprobs = tuple(value for value, keep in zip(item.old_logprobs, kept, strict=True) if keep)
        masked.append((replace(item, given=ranges, old_logprobs=logprobs), kept))
    whole, part = pack(chosen), pack([item for item, _ in masked])
    kept_T = torch.tensor([keep for _, kept in masked for keep in kept])
    for name in ("source_T", "targets_T", "old_logprobs_T", "advantages_T", "weights_T"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[kept_T]), name
    assert torch.equal(part.input_ids_N, whole.input_ids_N) and part.places == whole.places


def test_per_token_values_count_each_token() -> None:
    assert replace(TURNS, weight=(1.0, 0.0, 0.5)).trained_tokens == 2
    assert replace(TURNS, weight=0.0).trained_tokens == 0 and TURNS.trained_tokens == 3
    assert not TURNS.without_advantage and replace(TURNS, advantage=(0.0, 0.0, 0.0)).without_advantage


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"given": ((1, 3),)}, "after the 2 tokens of the prompt"),
        ({"given": ((3, 7),)}, "end before the last of 7 tokens"),
        ({"given": ((4, 5), (3, 4))}, "must ascend"),
        ({"given": ((3, 3),)}, "must ascend"),
        ({"given": ((3, 4),)}, "4 sampled tokens came with 3 log-probabilities"),
        ({"advantage": (1.0,)}, "3 sampled tokens came with 1 advantages"),
        ({"weight": (1.0,) * 4}, "3 sampled tokens came with 4 weights"),
        ({"proximal_logprobs": (0.0,)}, "3 sampled tokens came with 1 proximal log-probabilities"),
    ],
)
def test_a_sequence_checks_its_ranges_and_values(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(TURNS, **change)  # type: ignore[arg-type]


@given(st.lists(sequences(), min_size=1, max_size=12), st.integers(0, 30))
def test_units_hold_one_prompt_and_no_more_than_asked(chosen: list[TrainingSequence], max_tokens: int) -> None:
    units = sharing_units(chosen, max_tokens)
    assert sorted(index for indices, _ in units for index in indices) == list(range(len(chosen)))
    for indices, tokens in units:
        together = [chosen[index] for index in indices]
        assert len({one.token_ids[: one.prompt_length] for one in together}) == 1
        assert tokens == len(pack(together).input_ids_N)
        assert tokens <= max_tokens or len(indices) == 1


def test_completions_of_one_prompt_are_one_unit() -> None:
    assert sharing_units([LONG, SHORT, SIBLING], 100) == [([0, 2], 4), ([1], 2)]
    assert sharing_units([LONG, SHORT, LONG], 5) == [([0], 4), ([1], 2), ([2], 4)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("proximal", [None, (-0.5, -0.75, -1.0)])
def test_a_microbatch_travels_beside_its_pickle(proximal: tuple[float, ...] | None) -> None:
    sent = pack([replace(LONG, proximal_logprobs=proximal), SHORT, SIBLING])
    beside: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(sent, protocol=5, buffer_callback=beside.append)
    # As from Ray's store, which must not be written to.
    came = pickle.loads(pickled, buffers=[bytes(one.raw()) for one in beside])
    assert came.places == sent.places
    for name in (one.name for one in fields(sent) if one.name != "places"):
        expected, found = getattr(sent, name), getattr(came, name)
        if expected is None:
            assert found is None and (name.startswith(("host_source", "pair", "reference")) or proximal is None)
        else:
            assert found.dtype == expected.dtype and torch.equal(found, expected), name
    arrays = [value for one in fields(sent) if isinstance(value := getattr(sent, one.name), torch.Tensor)]
    assert sum(one.raw().nbytes for one in beside) >= sum(one.nbytes for one in arrays)
    came.weights_T.zero_()


def test_lengths_stay_on_the_cpu() -> None:
    moved = pack([LONG, SHORT]).to(torch.device("meta"))
    assert moved.input_ids_N.device.type == moved.source_T.device.type == moved.weights_T.device.type == "meta"
    assert moved.lengths_S.tolist() == [3, 2]
    assert moved.host_source_T is not None and moved.host_source_T.tolist() == pack([LONG, SHORT]).source_T.tolist()


def test_nothing_cannot_be_packed_or_shared_out() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        pack([])
    with pytest.raises(ValueError, match="nothing to share out"):
        split_evenly([], 2, 10)


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(64, 200),
)
@example([10, 9, 9, 8, 6, 8], 2, 22)
def test_sequences_are_shared_out_evenly(lengths: list[int], ranks: int, budget: int) -> None:
    shares = split_evenly(lengths, ranks, budget)
    assert sorted(index for rank in shares for chosen in rank for index in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in chosen) <= budget for rank in shares for chosen in rank)
    assert len(shares) == ranks
    assert len({len(rank) for rank in shares}) == 1
    loads = [sum(lengths[index] for chosen in rank for index in chosen) for rank in shares]
    assert max(loads) - min(loads) <= max(lengths)
    # Not more microbatches than one more for every half-empty one would explain.
    assert len(shares[0]) <= -(-2 * sum(lengths) // (budget * ranks)) + 1


def test_the_fewest_microbatches_that_hold_everything() -> None:
    assert [len(rank) for rank in split_evenly([10] * 8, 2, 40)] == [1, 1]
    assert [len(rank) for rank in split_evenly([10] * 9, 2, 40)] == [2, 2]
    # 30 tokens would fit two microbatches of 15 by their sum alone, but 10s only go in singly.
    assert [len(rank) for rank in split_evenly([10, 10, 10], 1, 15)] == [3]


def test_a_sequence_beyond_the_budget_is_refused_with_the_key_to_change() -> None:
    with pytest.raises(ValueError, match=r"65 tokens .* learner\.microbatch_tokens=64"):
        split_evenly([3, 65], 1, 64)


def test_a_filler_carries_no_loss() -> None:
    empty = filler(LONG)
    assert empty.trained_tokens == 0
    assert len(empty.token_ids) <= len(LONG.token_ids)
    packed = pack([empty])
    assert not packed.weights_T.any() and not packed.advantages_T.any()


@pytest.mark.parametrize(
    ("token_ids", "prompt_length", "logprobs", "message"),
    [
        ((1, 2), 0, (0.0, 0.0), "prompt and a completion"),
        ((1, 2), 2, (), "prompt and a completion"),
        ((1, 2, 3), 1, (0.0,), "2 sampled tokens came with 1 log-probabilities"),
    ],
)
def test_a_sequence_is_checked_when_it_is_made(
    token_ids: tuple[int, ...], prompt_length: int, logprobs: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSequence(token_ids, prompt_length, logprobs, 0.0)


def test_trained_tokens_are_the_completion_s() -> None:
    assert (LONG.trained_tokens, SHORT.trained_tokens) == (3, 2)
