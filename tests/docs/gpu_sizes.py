"""The table of docs/first_gpu_run.md: which settings fit which GPU, by the memory plan that `grpo check` prints.

`python tests/docs/gpu_sizes.py` prints the table; tests/docs/test_gpu_sizes.py compares it with the page.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_policy import qwen3_shape

from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.planning.memory import GIB, add_memory
from grpo.planning.memory_fit import Memory, Shortage, shortage
from grpo.planning.plan_tables import new_table
from grpo.planning.policy_shape import planned_shape

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/gsm8k.yaml"
# Memory that a process sees on a card of this size, in GiB, rounded down: an L4, an L40S, an H100 and an H200.
USABLE_GIB = {24: 22, 48: 44, 80: 79, 141: 139}
# Free memory that a row of the table leaves, as a share: for fragments, which the plan does not count.
FREE_SHARE = 0.07

# Qwen3's published shapes: hidden size, layers, heads, intermediate size, and whether the embeddings are tied. The
# shapes of the base policies and of the chat policies are the same.
_SHAPES = {
    "0.6B": (1024, 28, 16, 3072, True),
    "1.7B": (2048, 28, 16, 6144, True),
    "4B": (2560, 36, 32, 9728, True),
    "8B": (4096, 36, 32, 12288, False),
}
# Adapters need about ten times the learning rate.
_LORA = "learner.lora.rank=16 learner.learning_rate=1e-5"
_APART = "cluster.share_gpus=false"
# (policy, number of GPUs, size of a GPU in GB, settings after the command).
_ROWS = (
    ("0.6B", 1, 24, "generator.gpu_memory_share=0.25 learner.microbatch_tokens=8192"),
    ("0.6B", 1, 48, "generator.gpu_memory_share=0.5"),
    ("0.6B", 1, 80, "generator.gpu_memory_share=0.6"),
    ("0.6B", 1, 141, "generator.gpu_memory_share=0.6"),
    ("1.7B", 1, 24, f"generator.gpu_memory_share=0.45 {_LORA} learner.microbatch_tokens=8192"),
    ("1.7B", 1, 48, "generator.gpu_memory_share=0.5 learner.offload=optimizer"),
    ("1.7B", 1, 80, "generator.gpu_memory_share=0.4"),
    ("1.7B", 1, 141, "generator.gpu_memory_share=0.5"),
    ("4B", 2, 24, f"generator.gpu_memory_share=0.85 {_APART} {_LORA}"),
    ("4B", 1, 48, f"generator.gpu_memory_share=0.5 {_LORA}"),
    ("4B", 1, 80, "generator.gpu_memory_share=0.5 learner.offload=optimizer"),
    ("4B", 1, 141, "generator.gpu_memory_share=0.3"),
    ("8B", 2, 24, f"generator.gpu_memory_share=0.85 {_APART} {_LORA} learner.microbatch_tokens=4096"),
    ("8B", 1, 48, f"generator.gpu_memory_share=0.44 {_LORA} learner.microbatch_tokens=4096"),
    ("8B", 1, 80, f"generator.gpu_memory_share=0.5 {_LORA}"),
    ("8B", 1, 141, "generator.gpu_memory_share=0.4 learner.offload=optimizer"),
)
# Longest sequences for which a generator must have room: with fewer, sampling takes turns.
SEQUENCES = 16
_HEADINGS = ("policy", "GPU", "settings", "learner rank", "host memory", "generator", "sequences", "free")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: a policy, GPUs, settings, and the memory that the plan computes, in GiB.

    Attributes:
        policy: size of the policy.
        gpus: number and size of the GPUs, as the page has it.
        settings: overrides of `CONFIG`, separated by blanks.
        learner: memory of the learner's rank.
        host: host memory of the learner's rank.
        generator: the generator's share of its GPU.
        sequences: longest sequences whose key-value cache fits into the share, beside the weights.
        free: memory that the fuller GPU has left.
        share: the same, as a share of the GPU.
        short: what does not fit such a GPU; None if everything fits.
    """

    policy: str
    gpus: str
    settings: str
    learner: float
    host: float
    generator: float
    sequences: int
    free: float
    share: float
    short: Shortage | None


def write_shape(policy: str, folder: Path) -> Path:
    """Write the `config.json` of a Qwen3 policy into `folder`; return the folder."""
    qwen3_shape(*_SHAPES[policy]).save_pretrained(folder)
    return folder


def rows() -> list[Row]:
    """Compute the rows from the memory plan."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = {policy: write_shape(policy, Path(folder) / policy) for policy in _SHAPES}
        return [_row(*row, shapes[row[0]]) for row in _ROWS]


def _row(policy: str, number: int, size: int, settings: str, shape_folder: Path) -> Row:
    config = load(TrainConfig, ROOT / CONFIG, [f"policy.path={shape_folder}", *settings.split()])
    shape = planned_shape(config)
    assert shape is not None
    usable = USABLE_GIB[size]
    table = add_memory(new_table("memory"), config, shape)
    names, texts = (list(map(str, column.cells)) for column in table.columns)
    printed = dict(zip(names, texts, strict=True))
    learner = _gib(printed["a learner rank"])
    host = _gib(printed["in the host's memory"]) if "in the host's memory" in printed else 0.0
    generator = config.generator.gpu_memory_share * usable
    weights = float(re.findall(r"weights ([\d.]+) GiB", printed["a generator"])[0])
    sequence = config.max_sequence_tokens * shape.cache_bytes / GIB
    used = learner + generator if config.cluster.share_gpus else max(learner, generator)
    free = usable - used
    return Row(
        policy,
        f"{size} GB" if number == 1 else f"{number} x {size} GB",
        settings,
        learner,
        host,
        generator,
        int((generator - weights) / sequence),
        free,
        free / usable,
        shortage(config, shape, Memory(usable * GIB, 1024 * GIB, 1024 * GIB)),
    )


def _gib(text: str) -> float:
    """The figure at the begin of a text such as `34.56 GiB: weights 3.20, ...`."""
    return float(text.split(" GiB")[0])


def table(lines: Sequence[Row]) -> str:
    """Return the table in Markdown, as the page has it."""
    cells = [
        (
            row.policy,
            row.gpus,
            f"`{row.settings}`",
            f"{row.learner:.1f}",
            f"{row.host:.1f}" if row.host else "",
            f"{row.generator:.1f}",
            str(row.sequences),
            f"{row.free:.1f}",
        )
        for row in lines
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in (_HEADINGS, ("---",) * len(_HEADINGS), *cells))


if __name__ == "__main__":
    print(table(rows()), end="")
