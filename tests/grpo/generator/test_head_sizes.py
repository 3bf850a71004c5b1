"""The head sizes that are read in vLLM's source, against vLLM itself."""

from __future__ import annotations

import pytest

from grpo.generator.head_sizes import cpu_head_sizes, head_sizes_in


@pytest.mark.slow
def test_the_sizes_are_those_of_the_engine() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(cpu_head_sizes()) == CPUAttentionBackend.get_supported_head_sizes()


def test_an_engine_with_another_source_refuses_nothing() -> None:
    assert head_sizes_in("class Backend:\n    def get_supported_head_sizes(cls):\n        return [16, 24]") == (16, 24)
    assert head_sizes_in("class Backend:\n    def get_supported_head_sizes(cls):\n        return SIZES") == ()
    assert head_sizes_in("SIZES = [16]") == ()
