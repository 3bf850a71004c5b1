"""On a GPU, a step gives torch's attention few distinct shapes, or cuDNN, which builds a plan for each, is off."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from typing import Any, get_args

import deepspeed.ops
import pytest
import torch
from setups_for_tests import learner_setups
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, Qwen3Config

from grpo.algorithm.minibatches import TrainBatch, batch
from grpo.algorithm.packing import TrainingSequence
from grpo.config import Dtype, LearnerConfig
from grpo.learner import kernels
from grpo.learner.device import prepare_device
from grpo.learner.setup import LearnerSetup
from grpo.policy.attention import PACKED
from grpo.policy.logprobs import DTYPES, PolicyLogprobs

META = torch.device("meta")
SHAPE = Qwen3Config(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=2048,
)
# So many plans of a second at most are bearable in a run; more of them in each step are not.
FEW = 8


class AttentionShapes(TorchFunctionMode):
    """Counts the calls of torch's attention and their distinct shapes, whoever calls it."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.calls = 0
        self.distinct: set[tuple[torch.Size, ...]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.calls += 1
            self.distinct.add(tuple(tensor.shape for tensor in args[:3]))
        return func(*args, **(kwargs or {}))


def a_step() -> TrainBatch:
    """Prompts and completions with lengths like those of GSM8K: log-normal, with a mean of about 220 tokens."""
    drawn = random.Random(0)
    sequences = []
    for _ in range(32):
        prompt = tuple(drawn.randrange(64) for _ in range(100))
        for _ in range(8):
            length = min(1000, max(2, int(drawn.lognormvariate(5.2, 0.6))))
            completion = tuple(drawn.randrange(64) for _ in range(length))
            sequences.append(TrainingSequence((*prompt, *completion), 100, (-1.0,) * length, 1.0))
    return batch(sequences, denominator=1.0, ranks=1, microbatch_tokens=16_384)


def shapes_of(setup: LearnerSetup) -> AttentionShapes:
    """Run the policy's forward passes of a step on the meta device, in the layout of `setup`."""
    model = AutoModelForCausalLM.from_config(SHAPE, dtype=DTYPES[setup.dtype], attn_implementation=PACKED)
    policy = PolicyLogprobs(model, None, kernels.choose_kernels(setup).layout).to(META)
    (part,) = a_step().ranks
    assert len(part.microbatches) > 3
    with AttentionShapes() as shapes, torch.no_grad():
        for microbatch in part.microbatches:
            policy(microbatch.to(META), 1.0)
    return shapes


def on_a_gpu(attention: str, dtype: Dtype) -> LearnerSetup:
    (setup,) = learner_setups("somewhere", dtype=dtype)
    learner = setup.learner.model_copy(update={"attention": attention, "kernels": "eager"})
    return dataclasses.replace(setup, learner=learner, device="cuda")


@pytest.fixture(autouse=True)
def an_older_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention 3 and 4 do not run on it."""
    monkeypatch.setattr(kernels, "gpu_capability", lambda: 8)


@pytest.fixture
def torch_s_own_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Preparing a device changes this too, for the whole process.
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", deepspeed.ops.__compatible_ops__)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


WAYS = [
    (attention, dtype)
    for attention, dtype in itertools.product(
        get_args(LearnerConfig.model_fields["attention"].annotation), get_args(Dtype)
    )
    if not LearnerConfig.model_validate({"attention": attention}).problems(dtype)
]


@pytest.mark.parametrize(("attention", "dtype"), WAYS)
def test_a_step_on_a_gpu_builds_few_plans(torch_s_own_choice: None, attention: str, dtype: Dtype) -> None:
    setup = on_a_gpu(attention, dtype)
    # As `LearnerRank` does, before it loads the policy.
    prepare_device(setup.device, setup.learner.threads)
    assert not torch.backends.cuda.cudnn_sdp_enabled() or len(shapes_of(setup).distinct) <= FEW


@pytest.mark.parametrize("attention", ["auto", "varlen"])
def test_the_default_in_bfloat16_does_not_call_torch_s_attention_at_all(attention: str) -> None:
    assert shapes_of(on_a_gpu(attention, "bfloat16")).calls == 0


def test_without_these_choices_a_step_would_build_many_plans() -> None:
    """So the test above can fail, and the counter counts."""
    shapes = shapes_of(on_a_gpu("sdpa", "bfloat16"))
    assert shapes.calls >= len(shapes.distinct) > 5 * FEW
    assert shapes_of(on_a_gpu("auto", "float32")).distinct == shapes.distinct


def test_a_learner_prepares_its_device_before_it_loads_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is of the process, so a rank must set it, not its caller."""
    import grpo.learner.rank

    class Prepared(Exception):
        """Ends the start of the rank where the device is prepared."""

    def prepared(device: str, threads: int) -> None:
        raise Prepared(f"{device} {threads}")

    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "1")  # a rank sets these; after the test they are as before
    monkeypatch.setattr(grpo.learner.rank, "prepare_device", prepared)
    monkeypatch.setattr(grpo.learner.rank, "load_policy", lambda *_: pytest.fail("the policy came first"))
    with pytest.raises(Prepared, match="cuda 1"):
        grpo.learner.rank.LearnerRank(on_a_gpu("sdpa", "bfloat16"), "127.0.0.1", 1)


def test_the_ways_are_all_that_the_config_allows() -> None:
    assert set(WAYS) == {
        ("auto", "float32"),
        ("auto", "bfloat16"),
        ("sdpa", "float32"),
        ("sdpa", "bfloat16"),
        ("varlen", "bfloat16"),
        ("fa3", "bfloat16"),
        ("fa4", "bfloat16"),
    }
