"""A push between threads of this process. Our link and senders, vLLM's receiving engines and its reload are real."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from grpo.weights.buckets import Bucket
from grpo.weights.engines import GlooWeightTransferEngine
from grpo.weights.gpu_engines import IpcWeightTransferEngine, NcclWeightTransferEngine
from grpo.weights.link import WeightLink
from grpo.weights.outlet import WeightOutlet
from grpo.weights.source import Gather, PolicyWeights

Transport = Literal["gloo", "nccl", "ipc"]
ENGINES: dict[str, Any] = {
    "gloo": GlooWeightTransferEngine,
    "nccl": NcclWeightTransferEngine,
    "ipc": IpcWeightTransferEngine,
}
DEADLINE_S = 10.0


class Member:
    """A learner rank or a generator in a thread of its own, called as a Ray actor is."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._thread, self._second = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.subject: Any = self._thread.submit(make).result()

    def start(self, verb: Callable[..., Any], doing: Any, *arguments: Any) -> Future[Any]:
        return self._thread.submit(lambda: on_one_stream(lambda: verb(self.subject, *arguments)))

    def start_aside(self, verb: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return self._second.submit(verb, self.subject, *arguments)

    def close(self) -> None:
        self._second.shutdown(wait=False)
        self._thread.shutdown(wait=False, cancel_futures=True)


def on_one_stream(call: Callable[[], Any]) -> Any:
    """Call, and check that the thread's current stream is afterwards what it was before.

    DeepSpeed's tensors belong to the stream that was current when the learner started.
    """
    before = torch.cuda.current_stream()
    result = call()
    after = torch.cuda.current_stream()
    if after is not before:
        raise AssertionError(f"the current stream was {before.name}, and is {after.name} after a call of a push")
    return result


def wait_for(
    references: Sequence[Future[Any]], deadline_s: float, what: str, meanwhile: Callable[[], None] = lambda: None
) -> list[Any]:
    """As `grpo.cluster.waiting.wait_for`, for calls of members."""
    until = time.monotonic() + deadline_s
    while wait(references, 0.02).not_done:
        meanwhile()
        if time.monotonic() > until:
            raise TimeoutError(f"too late: {what}")
    return [one.result() for one in references]


class Policy(nn.Module):
    """Layers of two blocks, with tied embeddings. vLLM's copy has the same names."""

    def __init__(self, seed: int, *, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(31, 8)
        self.model.layers = nn.ModuleList([self._layer() for _ in range(3)])
        self.lm_head = nn.Linear(8, 31, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.to(torch.bfloat16).requires_grad_(False)

    @staticmethod
    def _layer() -> nn.Module:
        attention, mlp = nn.Module(), nn.Module()
        attention.q_proj, attention.o_proj = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        mlp.up_proj, mlp.down_proj = nn.Linear(8, 20, bias=False), nn.Linear(20, 8, bias=False)
        return nn.ModuleDict({"self_attn": attention, "mlp": mlp, "norm": nn.LayerNorm(8, bias=False)})

    def load_weights(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        """As vLLM's models do: each parameter has its loader, which a reload exchanges."""
        own = dict(self.named_parameters(remove_duplicate=False))
        for name, tensor in tensors:
            getattr(own[name], "weight_loader", default_weight_loader)(own[name], tensor)


class Worker:
    """A generator with one process of vLLM. What reaches the process went through vLLM's own encoder."""

    def __init__(self, transport: Transport, policy: Policy) -> None:
        self.policy = policy
        record_metadata_for_reloading(policy)
        config = SimpleNamespace(parallel_config=SimpleNamespace(rank=0), model_config=SimpleNamespace(dtype=None))
        device = torch.device("cpu") if transport == "gloo" else torch.device("cuda", 0)
        self.engine = ENGINES[transport](None, config, device, policy)
        self.before: Callable[[Bucket], None] = lambda bucket: None
        self.after: Callable[[Bucket], None] = lambda bucket: None

    def join_sender(self, invitation: dict[str, Any]) -> None:
        self.engine.init_transfer_engine(self.engine.parse_init_info(_through_the_wire(invitation)))

    def update(self, bucket: Bucket) -> list[str]:
        self.before(bucket)
        self.engine.update_weights(_through_the_wire(bucket.update_info()))
        self.after(bucket)
        return bucket.names


def _through_the_wire(value: dict[str, Any]) -> dict[str, Any]:
    """The argument of a `collective_rpc`, in the process of vLLM's worker."""
    parts = MsgpackEncoder().encode((0, 1, "collective_rpc", ("verb", None, (value,), None)))
    decoded: dict[str, Any] = MsgpackDecoder().decode([bytes(part) for part in parts])[3][2][0]
    return decoded


class Push:
    """A learner rank, generators, and the driver's link between them."""

    def __init__(
        self,
        transport: Transport,
        generators: int,
        *,
        tied: bool = True,
        deadline_s: float = DEADLINE_S,
        gather: Gather | None = None,
    ) -> None:
        self.transport = transport
        self.policy = Policy(1, tied=tied)
        weights = PolicyWeights(self.policy, torch.bfloat16, gather)
        self.learner = Member(lambda: SimpleNamespace(outlet=WeightOutlet(weights, 0, "127.0.0.1")))
        policies = [Policy(2 + place, tied=tied) for place in range(generators)]
        self.workers = [Worker(transport, one) for one in policies]
        self.generators = [Member(lambda worker=worker: worker) for worker in self.workers]
        self.lost: str | None = None
        self.link = WeightLink(transport, lambda: self.generators, 1, deadline_s, wait_for, lost=lambda: self.lost)

    def __call__(self, bucket_bytes: int) -> list[str]:
        """Push, as the driver does; return the names that arrived."""
        self._all(lambda worker: worker.engine.start_weight_update())
        names: list[str] = []
        loading: list[list[Any]] = []
        for bucket in self.link.buckets([self.learner], self.learner.subject.outlet.tensors(), bucket_bytes):
            loading.append(
                [one.start(lambda worker, part: worker.update(part), None, bucket) for one in self.generators]
            )
            if len(loading) > 1:
                names += wait_for(loading.pop(0), DEADLINE_S, "loading")[0]
        for calls in loading:
            names += wait_for(calls, DEADLINE_S, "loading")[0]
        self._all(lambda worker: worker.engine.finish_weight_update())
        return names

    def replace(self, place: int) -> None:
        """Start another generator in this place."""
        self.generators[place].close()
        self.workers[place] = worker = Worker(self.transport, Policy(9))
        self.generators[place] = Member(lambda: worker)

    def _all(self, verb: Callable[[Worker], Any]) -> None:
        wait_for([one.start(verb, None) for one in self.generators], DEADLINE_S, "a call")

    def differing(self) -> list[str]:
        """Names of tensors that are not the learner's, to the bit, at any generator."""
        expected = dict(self.policy.named_parameters(remove_duplicate=False))
        return [
            name
            for worker in self.workers
            for name, tensor in worker.policy.named_parameters(remove_duplicate=False)
            if not torch.equal(tensor.view(torch.int16), expected[name].view(torch.int16))
        ]

    def step(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


@contextlib.contextmanager
def pushing(transport: Transport, generators: int = 1, **more: Any) -> Iterator[Push]:
    push = Push(transport, generators, **more)
    try:
        yield push
    finally:
        for member in (push.learner, *push.generators):
            member.close()
