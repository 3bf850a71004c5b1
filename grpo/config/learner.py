"""The learner's section of a configuration: DeepSpeed, the optimizer, adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from grpo.config.section import Positive, Section

Decay = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16"]


def _targets(value: object) -> object:
    # Of a union pydantic would tell one error for each of its sides.
    names = list(value) if isinstance(value, list | tuple) else []
    if value == "all-linear" or (names and all(isinstance(name, str) for name in names)):
        return value
    raise ValueError("expected all-linear, or a list of names of linear layers such as [q_proj, v_proj]")


class LoraConfig(Section):
    """Adapters of low rank, which are trained in place of the policy's own weights (arXiv:2106.09685)."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter's product is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of what an adapter reads, in training steps; above 0 a step is not quite on-policy, as sampling has none."""
    targets: Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_targets)] = "all-linear"
    """Linear layers by name, such as `[q_proj, v_proj]`; all-linear are all but the output head."""


class LearnerConfig(Section):
    """DeepSpeed: how the policy is updated."""

    ranks: Positive = 1
    """Processes, one device each."""
    sequence_parallel: Positive = 1
    """Neighbouring ranks that share each microbatch's tokens, for sequences that one device does not hold; 1 gives each
    rank microbatches of its own. It must divide the ranks and the policy's attention heads."""
    zero_stage: Literal[1, 2, 3] = 2
    reduce_gradients: Literal["auto", "step", "microbatch"] = "auto"
    """How often ranks add up their gradients. `step`: once, each rank holding whole gradients in float32 until then.
    `microbatch`: after each, so that a rank keeps its share only. `auto`: once wherever sums stay float32, which they
    do not in bfloat16 at stages 2 and 3."""
    overlap_comm: bool | None = None
    """Communicate while the backward pass runs; None leaves it to DeepSpeed, which does so at stage 3."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lives in the host's memory: optimizer states and float32 weights, or (stage 3) all parameters too."""
    attention: Literal["sdpa", "varlen"] = "sdpa"
    """How attention computes packed sequences: `sdpa`, torch's own on any device, with sequences of similar length side
    by side; `varlen`, FlashAttention for variable lengths, on a GPU in bfloat16."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Of the learning rate after the warm-up, to 0 at the last step for cosine and linear."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """How much Adam's means of the gradient, and of its square, keep of themselves at each step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the whole gradient."""
    microbatch_tokens: Positive = 4096
    """Tokens that one forward and backward pass of a rank may hold, or of sequence_parallel ranks together."""
    gradient_checkpointing: bool = False
    threads: Positive = 1
    """CPU threads of each rank."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """TFLOP/s of one device at most, against which learner/mfu counts; None takes the maker's figure of a known GPU."""
    max_skipped_steps: Positive = 5
    """The run stops after so many optimizer steps in a row whose loss or gradient is not finite."""
    lora: LoraConfig | None = None
    """Train adapters and leave the policy's weights as they are; None trains all weights."""

    @property
    def data_parallel(self) -> int:
        """How many microbatches are computed at the same time."""
        return self.ranks // self.sequence_parallel

    def reduces_once(self, dtype: Dtype) -> bool:
        """Whether gradients are added up over ranks once per optimizer step, and whole on each until then."""
        if self.reduce_gradients == "auto":
            return self.zero_stage == 1 or dtype == "float32"
        return self.reduce_gradients == "step"

    def problems(self, dtype: Dtype) -> list[str]:
        """Choices that cannot go together, each with its remedy."""
        found = []
        if self.ranks % self.sequence_parallel:
            found.append(
                f"learner.ranks={self.ranks} is not divisible by learner.sequence_parallel={self.sequence_parallel}, "
                "the ranks that share a microbatch; raise ranks to a multiple of it, or lower it"
            )
        if self.attention == "varlen" and dtype == "float32":
            found.append(
                "learner.attention=varlen computes in bfloat16 only, got policy.dtype=float32; set that to bfloat16, "
                "or use learner.attention=sdpa"
            )
        if self.offload == "parameters" and self.zero_stage != 3:
            found.append(
                f"learner.offload=parameters needs learner.zero_stage=3, got {self.zero_stage}: only there are "
                "parameters fetched one by one; use stage 3, or offload=optimizer"
            )
        if self.reduce_gradients == "step" and self.zero_stage > 1 and dtype == "bfloat16":
            found.append(
                f"learner.reduce_gradients=step with policy.dtype=bfloat16 and learner.zero_stage={self.zero_stage} "
                "would sum the microbatches' gradients in bfloat16; use zero_stage=1, which sums them in float32, or "
                "reduce_gradients=microbatch"
            )
        if self.reduce_gradients == "microbatch" and self.zero_stage == 1:
            found.append(
                "learner.reduce_gradients=microbatch has nothing to save with learner.zero_stage=1, which keeps whole "
                "gradients on every rank; use zero_stage 2 or 3, or reduce_gradients=auto"
            )
        return found
