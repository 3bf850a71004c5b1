"""Packed attention against the same model run on each sequence alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_policy import load_tiny_model, make_tiny_policy, one_by_one
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM, PreTrainedModel

from grpo.algorithm.packing import MAX_PADDING_SHARE, Place, TrainingSequence, length_batches, pack
from grpo.policy.attention import PackedLayout, VarlenLayout, packed_attention
from grpo.policy.logprobs import PolicyLogprobs, load_model

CPU = torch.device("cpu")
MIXES = [
    [1],
    [5],
    [1, 1, 1],
    [4, 4, 4, 4],
    [1, 2, 3, 4, 5],
    [2, 9, 10, 10, 11, 40],
    [30, 31, 32, 33],
    [1, 50],
    [60, 61, 62],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def packed(folder: Path) -> PreTrainedModel:
    return load_tiny_model(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> PreTrainedModel:
    return load_tiny_model(folder, "sdpa")


def tokens(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, 20, (length,), generator=generator) for length in lengths]


def run_packed(model: PreTrainedModel, sequences: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Logits of sequences that share nothing; each one's first half counts as its prompt."""
    lengths = [len(one) for one in sequences]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    prompts = [(length + 1) // 2 for length in lengths]
    places = [
        Place(start, prompt, start + prompt, length - prompt)
        for start, prompt, length in zip(starts, prompts, lengths, strict=True)
    ]
    logits = model(
        input_ids=torch.cat(list(sequences))[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        packed_layout=PackedLayout(places, CPU),
        use_cache=False,
    ).logits[0]
    return logits.split(lengths)


def gradients(model: PreTrainedModel, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of a loss that weighs every logit of every token differently."""
    model.zero_grad()
    loss = sum((output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() for output in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("lengths", MIXES, ids=str)
def test_logits_and_gradients_equal_those_of_each_sequence_alone(
    packed: PreTrainedModel, plain: PreTrainedModel, lengths: list[int]
) -> None:
    sequences = tokens(lengths)
    together = run_packed(packed, sequences)
    alone = [plain(input_ids=one[None], use_cache=False).logits[0] for one in sequences]
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found_gradients, expected_gradients = gradients(packed, together), gradients(plain, alone)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], expected, rtol=1e-7, atol=1e-7)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=8))
def test_any_mix_of_lengths_gives_the_logits_of_each_sequence_alone(
    packed: PreTrainedModel, plain: PreTrainedModel, lengths: list[int]
) -> None:
    sequences = tokens(lengths)
    with torch.no_grad():
        for found, one in zip(run_packed(packed, sequences), sequences, strict=True):
            expected = plain(input_ids=one[None], use_cache=False).logits[0]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rests", [[3], [3, 0], [0, 0], [1, 1, 1], [9, 1, 4, 30]], ids=str)
def test_a_shared_prompt_gives_the_logits_and_gradients_of_each_sequence_alone(
    packed: PreTrainedModel, plain: PreTrainedModel, rests: list[int]
) -> None:
    """Between other sequences, and with completions that differ."""
    prompt, other, *completions = tokens([6, 4, *rests])
    lengths = [4, 6, *rests]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    places = [Place(0, 2, 2, 2), *(Place(4, 6, start, rest) for start, rest in zip(starts[2:], rests, strict=True))]
    positions = [*range(4), *range(6), *(position for rest in rests for position in range(6, 6 + rest))]
    logits = packed(
        input_ids=torch.cat([other, prompt, *completions])[None],
        position_ids=torch.tensor(positions)[None],
        packed_layout=PackedLayout(places, CPU),
        use_cache=False,
    ).logits[0].split(lengths)  # fmt: skip
    alone = [plain(input_ids=torch.cat([prompt, one])[None], use_cache=False).logits[0] for one in completions]
    torch.testing.assert_close(logits[0], plain(input_ids=other[None], use_cache=False).logits[0], rtol=1e-9, atol=1e-9)
    together = [torch.cat([logits[1], one]) for one in logits[2:]]
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found_gradients, expected_gradients = gradients(packed, together), gradients(plain, alone)
    for name, expected in expected_gradients.items():
        # Norms work in float32: what several completions bring to their prompt is rounded once, not once for each.
        torch.testing.assert_close(found_gradients[name], expected, rtol=1e-5, atol=2e-5, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("changed", range(5))
def test_changing_one_sequence_changes_no_other(packed: PreTrainedModel, changed: int) -> None:
    # 21 and 22 are padded to one length; 2, 6 and 40 are runs of their own.
    sequences = tokens([2, 6, 21, 22, 40])
    before = run_packed(packed, sequences)
    sequences[changed] = (sequences[changed] + 1) % 20
    after = run_packed(packed, sequences)
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(one, other) == (index != changed)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_one(packed: PreTrainedModel) -> None:
    sequences = tokens([6, 7, 8])
    before = run_packed(packed, sequences)
    sequences[1] = torch.cat([sequences[1][:4], (sequences[1][4:] + 1) % 20])
    after = run_packed(packed, sequences)
    torch.testing.assert_close(before[1][:4], after[1][:4], rtol=0, atol=0)
    assert not torch.allclose(before[1][4:], after[1][4:])


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40).map(sorted))
def test_length_batches_cover_everything_with_little_padding(lengths: list[int]) -> None:
    batches = length_batches(lengths)
    assert [index for start, stop in batches for index in range(start, stop)] == list(range(len(lengths)))
    for start, stop in batches:
        computed = (stop - start) * lengths[stop - 1]
        assert computed - sum(lengths[start:stop]) <= MAX_PADDING_SHARE * computed


def test_sequences_of_one_length_are_one_batch() -> None:
    assert length_batches([5] * 9) == [(0, 9)]
    assert length_batches([40, 41, 60, 60]) == [(0, 2), (2, 4)]


def test_what_cannot_be_attended_to_is_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        length_batches([3, 2])
    query = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="packed_layout"):
        packed_attention(torch.nn.Identity(), query, query, query, None)
    layout = PackedLayout([Place(0, 2, 2, 0)], CPU)
    with pytest.raises(ValueError, match=r"no dropout.* but the policy has 0\.1; set attention_dropout"):
        packed_attention(torch.nn.Identity(), query, query, query, None, dropout=0.1, packed_layout=layout)
    windowed = torch.nn.Identity()
    windowed.sliding_window = 128  # type: ignore[assignment]
    with pytest.raises(ValueError, match="sliding window"):
        packed_attention(windowed, query, query, query, None, packed_layout=layout)


# A prompt that two share, one alone, a sequence that ends with its prompt, and tokens behind that are nobody's.
PLACES = [Place(0, 5, 5, 7), Place(0, 5, 12, 1), Place(13, 3, 16, 40), Place(56, 4, 60, 0)]
BEHIND = 64


def attended(layout: PackedLayout | VarlenLayout, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Output of what belongs to a sequence, and the gradients of queries, keys and values."""
    leaves = [one.clone().requires_grad_() for one in tensors]
    output, _ = packed_attention(torch.nn.Identity(), *leaves, None, scaling=0.3, packed_layout=layout)
    assert output.shape == (1, BEHIND, *tensors[0].shape[1::2])
    kept = output[:, :60]
    (kept * torch.linspace(-1, 1, kept.numel(), device=kept.device).view_as(kept)).sum().backward()
    return kept.detach(), *(one.grad for one in leaves if one.grad is not None)


def queries_keys_values(size: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, BEHIND, size) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]


def test_the_layout_without_padding_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's own words in its place, as it is a GPU's."""
    monkeypatch.setattr("grpo.policy.attention.varlen_attn", one_by_one)
    tensors = queries_keys_values(8, torch.float64, "cpu")
    expected = attended(PackedLayout(PLACES, CPU, BEHIND), tensors)
    assert len(expected) == 4 and all(one.abs().max() > 0.1 for one in expected)
    for found, one in zip(attended(VarlenLayout(PLACES, CPU, BEHIND), tensors), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-9, atol=1e-9)


def test_a_row_without_shared_prompts_is_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gather's gradient is slow on a GPU. With padding behind the last sequence, the gather is needed."""
    monkeypatch.setattr("grpo.policy.attention.varlen_attn", one_by_one)
    tensors = [one[:, :, :20] for one in queries_keys_values(8, torch.float64, "cpu")]
    alone = [Place(0, 5, 5, 7), Place(12, 4, 16, 4)]

    def gathers_of(layout: PackedLayout | VarlenLayout) -> tuple[int, tuple[Tensor, ...]]:
        leaves = [one.clone().requires_grad_() for one in tensors]
        with torch.profiler.profile() as profile:
            output, _ = packed_attention(torch.nn.Identity(), *leaves, None, scaling=0.3, packed_layout=layout)
        output.cumsum(1).square().sum().backward()
        return sum(event.key == "aten::index_select" for event in profile.events()), (
            output,
            *(one.grad for one in leaves),
        )

    gathers, found = gathers_of(VarlenLayout(alone, CPU))
    assert gathers == 0
    for one, expected in zip(found, gathers_of(PackedLayout(alone, CPU))[1], strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)
    assert gathers_of(VarlenLayout([Place(0, 5, 5, 7), Place(0, 5, 12, 8)], CPU))[0] == 4
    assert gathers_of(VarlenLayout([Place(0, 5, 5, 7), Place(12, 4, 16, 2)], CPU, 20))[0] == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flash_attention_without_padding_gives_the_same_on_a_gpu() -> None:
    device = torch.device("cuda")
    tensors = queries_keys_values(64, torch.bfloat16, "cuda")
    expected = attended(PackedLayout(PLACES, device, BEHIND), tensors)
    for found, one in zip(attended(VarlenLayout(PLACES, device, BEHIND), tensors), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=2e-2, atol=2e-2)


def test_a_policy_s_own_dropout_is_off(tmp_path: Path) -> None:
    config = PhiConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, resid_pdrop=0.5
    )
    PhiForCausalLM(config).save_pretrained(tmp_path)
    policy = PolicyLogprobs(load_model(str(tmp_path), "float32")).train()
    batch = pack([TrainingSequence((1, 2, 3, 4, 5), 2, (0.0, 0.0, 0.0), 1.0)])
    torch.testing.assert_close(policy(batch, 1.0)[0], policy(batch, 1.0)[0], rtol=0, atol=0)
