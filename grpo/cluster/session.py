"""The Ray that a job uses, its own or a cluster's, and what its processes find in their environment.

It is also the one file that touches what Ray keeps private.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from grpo import config
from grpo.cluster.private_folder import private_folder, remove_old_sessions, token_file
from grpo.config.cluster import Device
from grpo.generator.setup import GeneratorSetup
from grpo.package_finder import ROOT, hides_this_package


def connect(settings: config.ClusterConfig, cpus: int) -> bool:
    """Use the cluster that is configured, or one of this machine's own; whether it was this that started Ray.

    Raises:
        TimeoutError: Ray did not start.
    """
    if ray.is_initialized():
        return False
    if settings.address:
        ray.init(address=settings.address, **_common())
    else:
        start_local_ray(cpus)
    return True


def start_local_ray(cpus: int) -> None:
    """Start Ray for this process: every port on the loopback interface, no dashboard, and nothing for other users.

    Left to itself Ray makes its folders writable for all, and writes its token as the umask has it. Whoever has the
    token and the port runs code as this user.

    Args:
        cpus: logical CPUs that actors may ask for together.

    Raises:
        TimeoutError: it did not start within the limit that it gives itself, twice.
    """
    # Ray takes the loopback address for this machine's own only where it cannot form a cluster. It reads the variable
    # when it is imported, and its child processes read it when they start.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    # Ray runs its workers at niceness 15, where anything else on the machine would starve the engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    folder = private_folder()
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file(folder))
        # Another token may have been looked for before.
        AuthenticationTokenLoader.instance().reset_cache()
    # Ray opens its own folder to everybody, but not the one around it.
    sessions = folder / "ray"
    remove_old_sessions(sessions)
    known = set(psutil.Process().children(recursive=True))
    for last in (False, True):
        try:
            # Not one that RAY_ADDRESS names or that happens to run here: cluster.address is how to join one.
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=str(sessions), **_common())
            return
        except Exception as failure:
            # Ray has no class of its own for this.
            if type(failure) is not Exception or "timed out during startup" not in str(failure):
                raise
            for process in set(psutil.Process().children(recursive=True)) - known:
                process.kill()
            if last:
                raise TimeoutError(
                    "Ray did not start within the 30 s that it gives itself, nor at a second try; is something else "
                    "using up this machine? Try again when it is done"
                ) from failure


def actor_table() -> list[Any]:
    """What Ray knows of every actor of the cluster, the dead ones too.

    Its public `list_actors` asks the dashboard, which a run does not start.
    """
    accessor = ray._private.state.state._connect_and_get_accessor()
    return [ActorTableData.FromString(row) for row in accessor.get_actor_table(None, None)]


def _common() -> dict[str, Any]:
    # Worker processes print warnings of their own libraries by the hundred; what matters comes back as an error.
    arguments: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": bool(os.environ.get("GRPO_ACTOR_LOGS"))}
    if hides_this_package(os.getcwd()):
        arguments["job_config"] = PackagesFirst()
    return arguments


class PackagesFirst(JobConfig):
    """A job whose workers find this `grpo`, though the driver's working folder holds another.

    Ray puts that folder first on the search path of every worker, by inserting each entry of a list in turn at the
    front. So the last entry is searched first.
    """

    def _serialize(self) -> str:
        """The job as Ray's workers read it."""
        self._py_driver_sys_path.append(ROOT)
        self._cached_pb = None
        return super()._serialize()


def session_logs() -> Path:
    """Ray's folder of logs on this node, for an actor of a job whose folder the node does not see."""
    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path())


_chosen: ContextVar[dict[str, Device]] = ContextVar("chosen device")


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """The block is a job with its restarts: if it has lost its GPUs, it must wait for them, not go on without."""
    token = _chosen.set({})
    try:
        yield
    finally:
        _chosen.reset(token)


def choose_device(wanted: Literal["auto", "cpu", "gpu"]) -> Device:
    """What actors compute on; the same for all restarts of a job (`on_one_device`).

    Raises:
        ValueError: GPUs are asked for and the cluster has none.
    """
    chosen = _chosen.get({})
    if wanted not in chosen:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        if wanted == "gpu" and not has_gpus:
            raise ValueError("cluster.device=gpu, but the cluster has no GPU; use cluster.device=auto or cpu")
        chosen[wanted] = "cuda" if has_gpus and wanted != "cpu" else "cpu"
    return chosen[wanted]


# On a Ray of this machine's own, ranks listen for each other on loopback as well.
ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def _common_environment(threads: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait must sleep: spinning ones starve the very thread they wait for as soon as anything else
        # wants a core (on two busy cores a learner step of 0.6 s took 38 s).
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def learner_environment(device: Device, threads: int) -> dict[str, str]:
    """Variables of a learner rank's process."""
    environment = _common_environment(threads)
    if device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def generator_environment(setup: GeneratorSetup) -> dict[str, str]:
    """Variables of a generator's process."""
    environment = {
        **_common_environment(setup.generator.threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(setup.generator.in_own_process(setup.device))),
        "VLLM_LOGGING_LEVEL": "WARNING",
        # A trainer tells nobody what it runs.
        "VLLM_NO_USAGE_STATS": "1",
    }
    if setup.device == "cpu":
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(setup.generator.cpu_cache_gib),
            # Several processes share few cores: binding each to the same first core would starve them.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The model runs eagerly; compiling its helper functions would add 20 s to the first generation.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return environment
