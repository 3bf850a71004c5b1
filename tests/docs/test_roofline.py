"""The speeds on paper: what the script counts, and the page that has its table."""

from __future__ import annotations

import sys

import pytest
import torch
from docs_pages import ROOT

sys.path.insert(0, str(ROOT / "tests" / "bench"))

import roofline

from grpo.config.learner import Kernels
from grpo.policy.flops import PolicyFlops

BATCH = roofline.microbatch(long=False)
TOKENS, PREDICTED = len(BATCH.input_ids_N), len(BATCH.targets_T)


@pytest.mark.parametrize("kernels", ["eager", "liger"])
def test_products_of_the_real_operators_are_the_flops_that_a_step_is_said_to_take(kernels: Kernels) -> None:
    sizes = PolicyFlops.of(roofline.shape_of("1.7B"))
    passes = roofline.recorded("1.7B", False, kernels)
    layers = 28 * (passes.layer[0].product_flops + passes.layer[1].product_flops)
    pairs = sum(place.length * (place.length + 1) / 2 for place in BATCH.places)
    head = sum(one.product_flops for one in passes.rest)
    # The head's logits are computed once more in the backward pass: 8 FLOPs a weight, of which 6 count. The rotary
    # angles are a small product too.
    assert layers == 6 * sizes.layer_weights * TOKENS
    assert head == pytest.approx(8 * sizes.head_weights * PREDICTED, rel=1e-4)
    counted = layers + 6 / 8 * head + 12 * sizes.attention_width * pairs
    assert counted == pytest.approx(sizes.training(BATCH), rel=1e-4)


def test_bytes_of_operators_counted_by_hand() -> None:
    recorder = roofline.Recorder()
    one = torch.empty(6, 4, device="meta", dtype=torch.bfloat16)
    with recorder:
        product = one @ one.t()
        product.view(36).mul_(2.0)
        product + one[:, :1].expand(6, 6)
    assert recorder.traffic.product_flops == 2 * 6 * 6 * 4
    # In place: read and written once. The expanded column has only 6 elements of 2 bytes.
    assert recorder.traffic.by_operator == {"mul_": 2 * 72, "add": 72 + 12 + 72}


def test_fused_kernels_move_and_keep_less_and_change_no_product() -> None:
    eager, liger = (roofline.recorded("1.7B", False, kernels) for kernels in ("eager", "liger"))
    for before, after in zip(eager.layer, liger.layer, strict=True):
        assert after.product_flops == before.product_flops
        assert after.bytes < 0.5 * before.bytes
    # The fused head reads the logits twice forward, and reads and writes them backward: 8 bytes a logit. Its chunks are
    # ten in place of 37, and each but the first reads and writes the sum of the weights' gradient.
    logits = 2 * PREDICTED * roofline.VOCABULARY
    head = [roofline._passes(roofline.shape_of("1.7B", 1), BATCH, "liger")[index].by_operator for index in (0, 1)]
    assert head[0]["head"] == pytest.approx(2 * logits, rel=1e-6) and "head" not in head[1]
    rest = [sum(one.bytes for one in passes.rest) for passes in (eager, liger)]
    assert 4 * logits + 19 * 4 * 2048 * roofline.VOCABULARY < rest[1] < 0.2 * rest[0]
    # Norms, rotary embeddings and MLPs of a layer, forward: inputs and outputs, without the norms' weights.
    hidden, kept = 2048, 2 * TOKENS
    fused = {"norm": 2 * (2 * hidden + 3072), "rotary": 2 * 3072, "swiglu": 3 * 6144}
    one, two = (roofline._passes(roofline.shape_of("1.7B", n), BATCH, "liger")[0] for n in (1, 2))
    for name, elements in fused.items():
        assert two.by_operator[name] - one.by_operator[name] == pytest.approx(kept * elements, rel=1e-3)


@pytest.mark.parametrize("gpu", roofline.GPUS, ids=lambda gpu: gpu.name)
def test_a_share_is_the_smallest_that_fits(gpu: roofline.Gpu) -> None:
    passes = roofline.recorded("1.7B", False, "eager")
    fitting = roofline.predict(gpu, "1.7B", BATCH, passes, roofline.Setting("eager", "FA2", None))
    assert fitting.memory <= gpu.memory
    if fitting.share:
        fewer = roofline.Setting("eager", "FA2", fitting.share - 1 / 28)
        assert roofline.predict(gpu, "1.7B", BATCH, passes, fewer).memory > gpu.memory
    every = roofline.predict(gpu, "1.7B", BATCH, passes, roofline.Setting("eager", "FA2", 1.0))
    assert every.mfu < fitting.mfu and every.memory < fitting.memory


@pytest.mark.slow
def test_the_page_has_the_table() -> None:
    found = sorted(roofline.predictions(), key=lambda one: (one[0].name, one[1], one[2]))
    assert roofline.table(found) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), (
        "put the output of `python tests/bench/roofline.py` into docs/benchmarks.md"
    )
