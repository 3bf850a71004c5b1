"""`grpo check --cluster`: test every node with a policy of a few kilobytes.

An actor on each node sums a tensor with all other actors, samples from vLLM, gives vLLM new weights, proves that the
weights arrived, and runs a program in the sandbox. A failure is reported for its node; the other nodes continue.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.table import Table
from rich.text import Text

from grpo.config import GeneratorConfig, NewPolicyConfig
from grpo.config.cluster import Device
from grpo.generator.setup import GeneratorSetup
from grpo.terminal import LiteralTable, literal
from grpo.types import Request, SamplingParams

SMALL = NewPolicyConfig(
    hidden_size=64, layers=2, heads=2, key_value_heads=1, intermediate_size=96, max_position=256, tie_embeddings=False
)
PROBE = tuple(range(3, 19))
# Largest mean difference of log-probabilities between vLLM and transformers, in nats. On a GPU, the two libraries add
# numbers in different orders, so their results differ more.
# The old policy differs from the new policy by about 0.1.
TOLERANCES: dict[Device, float] = {"cpu": 2e-4, "cuda": 0.02}
ELEMENTS = 1 << 20

PROBES = ("all-reduce", "generation", "weight push", "sandbox")


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """The result of a probe.

    Attributes:
        passed: whether the probe succeeded.
        detail: a measurement, or the cause of the failure.
    """

    passed: bool
    detail: str


class NodeProbes:
    """The probes of a node, in a separate process on this node. `grpo.cluster.preflight.nodes` starts this process."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._generator: Any = None
        self._architecture: Any = None

    def all_reduce(self, address: str, port: int, rank: int, nodes: int, deadline_s: float) -> ProbeOutcome:
        """Sum a tensor over all nodes, with NCCL on GPUs and Gloo on CPUs."""
        return _tried(lambda: self._all_reduce(address, port, rank, nodes, deadline_s))

    def generation(self) -> ProbeOutcome:
        """Start vLLM with a random policy and sample one completion."""
        return _tried(self._generation)

    def weight_push(self, bucket: np.ndarray) -> ProbeOutcome:
        """Give vLLM new weights (uint8, the bytes of a safetensors file) and check vLLM's log-probabilities."""
        return _tried(lambda: self._weight_push(bucket))

    def sandbox(self) -> ProbeOutcome:
        """Run a program in the sandbox."""
        return _tried(self._sandbox)

    def _all_reduce(self, address: str, port: int, rank: int, nodes: int, deadline_s: float) -> str:
        import torch
        from torch import distributed

        from grpo.learner.rendezvous import meet

        meet("nccl" if self._device == "cuda" else "gloo", rank, nodes, address, port, deadline_s)
        try:
            seconds = []
            # The first all-reduce also makes the connections, so the second one is the measurement.
            for _ in range(2):
                values = torch.full((ELEMENTS,), float(rank + 1), device=self._device)
                started = time.monotonic()
                distributed.all_reduce(values)
                total = float(values.sum()) / ELEMENTS
                seconds.append(time.monotonic() - started)
                if total != nodes * (nodes + 1) / 2:
                    raise RuntimeError(f"the sum over {nodes} nodes is {total} and not {nodes * (nodes + 1) / 2}")
        finally:
            distributed.destroy_process_group()
        return f"{ELEMENTS * 4 / 2**20:.0f} MiB over {nodes} node(s) in {1000 * seconds[-1]:.0f} ms"

    def _generation(self) -> str:
        from transformers import AutoConfig

        from grpo.generator.engine import Generator
        from grpo.policy.new import make_policy

        # vLLM reads the folder only when it starts. This process is killed at its end, and could not remove it then.
        with tempfile.TemporaryDirectory(prefix="grpo-preflight-") as folder:
            path = Path(folder) / "policy"
            make_policy(SMALL, [], path, seed=1)
            self._architecture = AutoConfig.from_pretrained(path)
            self._generator = Generator(generator_setup(str(path), self._device))
        started = time.monotonic()
        self._generator.submit([Request(0, PROBE, 0)], SamplingParams(1, 8, 1.0, ()))
        while not (finished := self._generator.step()):
            pass
        ((_, completions),) = finished
        return f"{len(completions[0].token_ids)} token(s) in {1000 * (time.monotonic() - started):.0f} ms"

    def _weight_push(self, bucket: np.ndarray) -> str:
        import safetensors.torch
        import torch
        from transformers import AutoModelForCausalLM

        if self._generator is None:
            raise RuntimeError("no vLLM can receive the weights, because the generation failed")
        started = time.monotonic()
        self._generator.begin_update()
        self._generator.update(bucket)
        self._generator.finish_update(1)
        seconds = time.monotonic() - started
        (scored,) = self._generator.score([PROBE])
        model = AutoModelForCausalLM.from_config(self._architecture, dtype=torch.float32).eval()
        model.load_state_dict(safetensors.torch.load(bucket.tobytes()))
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([PROBE])).logits[0].log_softmax(-1)
        expected = [float(logprobs_TV[position, token]) for position, token in enumerate(PROBE[1:])]
        difference = sum(abs(actual - wanted) for actual, wanted in zip(scored, expected, strict=True)) / len(expected)
        if not difference <= TOLERANCES[self._device]:
            raise RuntimeError(
                f"log-probabilities differ by {difference:.2g} after the push: the weights did not arrive"
            )
        return f"{bucket.nbytes / 1024:.0f} KiB in {1000 * seconds:.0f} ms, proven to {difference:.1g}"

    def _sandbox(self) -> str:
        from sandbox import Limits, ProgramStatus, Sandbox

        with Sandbox(workers=1) as sandbox:
            result = sandbox.run("print(sum(map(int, input().split())))", "20 22", Limits(wall_s=10))
        if result.status is not ProgramStatus.OK or result.stdout.strip() != b"42":
            raise RuntimeError(f"the program ended as {result.status.value}: {result.reason or result.stderr!r}")
        return f"{1000 * result.wall_s:.0f} ms, isolation {result.isolation.level.name.lower()}"


def generator_setup(path: str, device: Device) -> GeneratorSetup:
    """Return the setup of a small vLLM for the policy at `path`."""
    # A small share of GPU memory is enough. On a CPU, `generator_environment` sets the size of the cache.
    small = GeneratorConfig(max_sequences=4, gpu_memory_share=0.1, compile=False)
    return GeneratorSetup(path, "float32", small, 64, 1.0, device, 0)


def new_weights() -> np.ndarray:
    """Return the weights to push: a second random policy, as the bytes (uint8) of a safetensors file."""
    from grpo.policy.new import make_policy

    with tempfile.TemporaryDirectory(prefix="grpo-preflight-") as folder:
        make_policy(SMALL, [], Path(folder) / "policy", seed=2)
        return np.frombuffer((Path(folder) / "policy" / "model.safetensors").read_bytes(), dtype=np.uint8)


def _tried(probe: Callable[[], str]) -> ProbeOutcome:
    try:
        return ProbeOutcome(True, probe())
    except (RuntimeError, ValueError, OSError, ImportError) as failure:
        return ProbeOutcome(False, f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}")


# A function that waits for a started probe.
Wait = Callable[[], ProbeOutcome]


class ProbedNode(Protocol):
    """A node with its probes. Each method starts a probe; call the returned function to wait for the outcome."""

    name: str

    def all_reduce(self, address: str, port: int, rank: int, nodes: int, deadline_s: float) -> Wait:
        """Start to sum a tensor over all nodes, which connect through an address."""
        ...

    def generation(self) -> Wait:
        """Start vLLM, and start to sample a completion."""
        ...

    def weight_push(self, bucket: Any) -> Wait:
        """Start to give vLLM new weights: `new_weights()`, or a reference to it."""
        ...

    def sandbox(self) -> Wait:
        """Start a program in the sandbox."""
        ...

    def address(self) -> tuple[str, int]:
        """The node's address, and a free port of the node."""
        ...


def probe_all(nodes: Sequence[ProbedNode], bucket: Any, deadline_s: float) -> dict[str, dict[str, ProbeOutcome]]:
    """Run every probe on all nodes at the same time; return the outcomes by node and by probe.

    Args:
        nodes: the nodes.
        bucket: `new_weights()`, or a reference to it.
        deadline_s: longest wait for one probe.
    """
    address, port = nodes[0].address()
    outcomes: dict[str, dict[str, ProbeOutcome]] = {node.name: {} for node in nodes}
    probes: dict[str, Callable[[int, ProbedNode], Wait]] = {
        "all-reduce": lambda rank, node: node.all_reduce(address, port, rank, len(nodes), deadline_s),
        "generation": lambda rank, node: node.generation(),
        "weight push": lambda rank, node: node.weight_push(bucket),
        "sandbox": lambda rank, node: node.sandbox(),
    }
    for probe, start in probes.items():
        started = [(node, start(rank, node)) for rank, node in enumerate(nodes)]
        for node, wait in started:
            try:
                outcomes[node.name][probe] = wait()
            except (TimeoutError, RuntimeError) as failure:
                outcomes[node.name][probe] = ProbeOutcome(False, str(failure))
    return outcomes


def table_of(outcomes_by_node: dict[str, dict[str, ProbeOutcome]]) -> Table:
    """Return a table with one line for each node."""
    table = LiteralTable(title="preflight", title_style="bold")
    for column in ("node", *PROBES):
        table.add_column(column, overflow="fold")
    for name, outcomes in outcomes_by_node.items():
        table.add_row(name, *(_cell(outcomes[probe]) for probe in PROBES))
    return table


def _cell(outcome: ProbeOutcome) -> Text:
    status = Text("ok", "green") if outcome.passed else Text("FAILED", "red")
    return Text.assemble(status, " ", literal(outcome.detail))
