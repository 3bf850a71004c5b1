"""Methods that the generator adds to vLLM's workers, the processes or threads that compute the model.

vLLM makes `Profiled` a base of the class of its workers (`worker_extension_cls`), in whatever process they run.
`collective_rpc` calls its methods by name. This module does not import vLLM.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.types import ActorId, ActorKind

if TYPE_CHECKING:
    from grpo.report.profiling import ActorProfile, OperatorProfiler

# The name by which vLLM finds the class.
EXTENSION = "grpo.generator.worker.Profiled"


class Profiled:
    """A worker whose operators can be profiled.

    PyTorch's profiler watches the thread that started it. A call by `collective_rpc` runs in the thread that computes
    the model. Arguments and results are texts, numbers and lists, because vLLM's channel carries these without pickle.
    """

    _operator_profiler: OperatorProfiler | None = None

    def start_operator_profile(self, replica: int) -> None:
        """Start the profiler of this worker; `replica` is the number of its generator."""
        from grpo.report.profiling import OperatorProfiler

        assert self._operator_profiler is None, "a worker has one profiler at a time"
        self._operator_profiler = OperatorProfiler(ActorId(ActorKind.GENERATOR, replica))

    def stop_operator_profile(self, folder: str, name: str) -> dict[str, Any]:
        """Stop the profiler, write a trace, and return the profile as plain data for `read_profile`.

        Args:
            folder: folder of the traces, which is made if it is missing.
            name: name of the trace's file. If the generator has several workers, a worker adds its rank.
        """
        assert self._operator_profiler is not None, "the profiler of this worker has not been started"
        profiler, self._operator_profiler = self._operator_profiler, None
        rank = self.parallel_config.rank if self.parallel_config.world_size > 1 else None  # type: ignore[attr-defined]
        trace = Path(folder) / (f"{name}.json.gz" if rank is None else f"{name}_worker_{rank}.json.gz")
        profile = profiler.stop(trace)
        return {
            "operators": [[each.name, each.self_s, each.calls] for each in profile.operators],
            "operators_s": profile.operators_s,
            "on_gpu": profile.on_gpu,
            "trace": str(trace),
        }


def read_profile(replica: int, content: dict[str, Any]) -> ActorProfile:
    """Return the profile that a worker of a generator has sent by `Profiled.stop_operator_profile`."""
    from grpo.report.profiling import ActorProfile, Operator

    operators = tuple(Operator(str(name), float(self_s), int(calls)) for name, self_s, calls in content["operators"])
    return ActorProfile(
        ActorId(ActorKind.GENERATOR, replica),
        operators,
        float(content["operators_s"]),
        bool(content["on_gpu"]),
        Path(content["trace"]),
    )
