"""The learner's section of a configuration: DeepSpeed, the optimizer, adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from grpo.config.section import Positive, Section

Decay = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16"]
Kernels = Literal["auto", "eager", "liger"]
Attention = Literal["auto", "sdpa", "varlen", "fa3", "fa4"]


def _targets(value: object) -> object:
    # For a union, pydantic would report an error for each of its types.
    names = list(value) if isinstance(value, list | tuple) else []
    if value == "all-linear" or (names and all(isinstance(name, str) for name in names)):
        return value
    raise ValueError("expected all-linear, or a list of names of linear layers such as [q_proj, v_proj]")


class LoraConfig(Section):
    """Adapters of low rank, which are trained instead of the policy's weights (arXiv:2106.09685)."""

    rank: Positive = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the adapters: their product is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of an adapter's input, in training steps. Above 0 a step is not quite on-policy, because sampling has no
    dropout."""
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_targets)] = "all-linear"
    """Linear layers by name, such as `[q_proj, v_proj]`. `all-linear` takes all except the output head."""


class LearnerConfig(Section):
    """How DeepSpeed updates the policy."""

    ranks: Positive = 1
    """Number of learner processes, one device each."""
    sequence_parallel: Positive = 1
    """Number of neighbouring ranks that share each microbatch's tokens, for sequences that one device does not hold. 1
    gives each rank separate microbatches. It must divide the ranks and the policy's attention heads."""
    zero_stage: Literal[1, 2, 3] = 2
    """ZeRO stage: 1 shards optimizer states over the ranks, 2 gradients too, 3 parameters too."""
    reduce_gradients: Literal["auto", "step", "microbatch"] = "auto"
    """How often ranks add up their gradients. `step`: once; each rank holds whole gradients in float32 until then.
    `microbatch`: after each microbatch, so a rank keeps only its share. `auto`: once if sums stay in float32, which is
    not so in bfloat16 at stages 2 and 3."""
    overlap_comm: bool | None = None
    """Communicate while the backward pass runs. None leaves the choice to DeepSpeed, which does so at stage 3."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Data in the host's memory. `optimizer`: optimizer states and float32 weights. `parameters`: all parameters too
    (stage 3 only)."""
    attention: Attention = "auto"
    """Attention for packed sequences. `sdpa`: torch's attention on any device, with sequences of similar length side by
    side. The others need a GPU and bfloat16: `varlen` is torch's FlashAttention-2 for variable lengths, `fa3` and `fa4`
    are FlashAttention 3 and 4. `auto`: on a GPU in bfloat16 the first of `fa3`, `fa4` and `varlen` that is installed
    and passes a trial at the start, else `sdpa`."""
    kernels: Kernels = "auto"
    """Kernels of norms, rotary embeddings, MLPs and the output head. `eager`: PyTorch's operators. `liger`: on a GPU,
    Liger's fused kernels, for policies of the families llama, qwen2 and qwen3, and an output head that torch.compile
    fuses. `auto`: what runs here; the output head is tried first."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """Learning rate after the warm-up."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Schedule of the learning rate after the warm-up. `cosine` and `linear` reach 0 at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Number of optimizer steps in which the learning rate rises from 0."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Adam's decay rates of the mean gradient and of the mean squared gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of AdamW."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the whole gradient; a larger gradient is scaled down."""
    microbatch_tokens: Positive = 4096
    """Tokens that one forward and backward pass of a rank, or of sequence_parallel ranks together, may hold."""
    gradient_checkpointing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the layers, spread evenly, that keep only their inputs and compute the rest again in the backward pass.
    `true` is 1, `false` is 0."""
    threads: Positive = 1
    """Number of CPU threads of each rank."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Peak TFLOP/s of one device, for learner/mfu. None takes the maker's figure of a known GPU."""
    max_skipped_steps: Positive = 5
    """Number of optimizer steps in a row with a loss or gradient that is not finite, after which the run stops."""
    lora: LoraConfig | None = None
    """Without this section all weights are trained."""

    @property
    def data_parallel(self) -> int:
        """The number of microbatches that are computed at the same time."""
        return self.ranks // self.sequence_parallel

    def reduces_once(self, dtype: Dtype) -> bool:
        """Whether ranks add up their gradients once per optimizer step. Until then each rank holds a whole gradient."""
        if self.reduce_gradients == "auto":
            return self.zero_stage == 1 or dtype == "float32"
        return self.reduce_gradients == "step"

    def problems(self, dtype: Dtype) -> list[str]:
        """Find settings that exclude each other, each with its remedy."""
        problems = []
        if self.ranks % self.sequence_parallel:
            problems.append(
                f"learner.ranks={self.ranks} is not divisible by learner.sequence_parallel={self.sequence_parallel}, "
                "the ranks that share a microbatch; raise ranks to a multiple of it, or lower it"
            )
        if self.attention not in ("auto", "sdpa") and dtype == "float32":
            problems.append(
                f"learner.attention={self.attention} computes in bfloat16 only, got policy.dtype=float32; set it to "
                "bfloat16, or use learner.attention=auto"
            )
        if self.offload == "parameters" and self.zero_stage != 3:
            problems.append(
                f"learner.offload=parameters needs learner.zero_stage=3, got {self.zero_stage}: only stage 3 "
                "fetches parameters one by one; use stage 3, or offload=optimizer"
            )
        if self.reduce_gradients == "step" and self.zero_stage > 1 and dtype == "bfloat16":
            problems.append(
                f"learner.reduce_gradients=step with policy.dtype=bfloat16 and learner.zero_stage={self.zero_stage} "
                "would sum the microbatches' gradients in bfloat16; use zero_stage=1, which sums them in float32, or "
                "reduce_gradients=microbatch"
            )
        if self.reduce_gradients == "microbatch" and self.zero_stage == 1:
            problems.append(
                "learner.reduce_gradients=microbatch has nothing to save with learner.zero_stage=1, which keeps whole "
                "gradients on every rank; use zero_stage 2 or 3, or reduce_gradients=auto"
            )
        return problems
