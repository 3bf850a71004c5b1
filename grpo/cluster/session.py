"""Connect to a cluster's Ray or start a local Ray, and set the environment of a job's processes.

No other file uses Ray's private interfaces.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from grpo import config
from grpo.cluster.device import device_of, usable_gpus
from grpo.cluster.private_folder import private_folder, remove_old_sessions, token_file
from grpo.config.cluster import Device
from grpo.generator.setup import GeneratorSetup
from grpo.package_finder import ROOT, hides_this_package


def connect(settings: config.ClusterConfig, cpus: int) -> bool:
    """Connect to the configured cluster or start a local Ray; return False if this process already uses Ray.

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
    """Start Ray for this process, with all ports on the loopback interface, without a dashboard or access for others.

    By default, Ray's folders are writable for all users, and the umask decides who can read Ray's token. Another
    user who has the token and can reach the port can run code as this user.

    Args:
        cpus: number of logical CPUs that all actors together may request.

    Raises:
        TimeoutError: Ray did not start within its time limit, twice.
        ValueError: this environment mixes a CPU build and a GPU build.
    """
    gpus = usable_gpus()
    # Ray uses the loopback address as this machine's address only if Ray may not form a cluster. Ray reads the variable
    # when it is imported, and its child processes read it when they start.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    # By default Ray runs its workers at niceness 15. Then any other program on the machine would slow the engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # By default Ray starts a worker for each core at once. The actors have environments of their own, so they cannot
    # use these workers, which slow the start of the engines.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    folder = private_folder()
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file(folder))
        # Ray may already have cached another token.
        AuthenticationTokenLoader.instance().reset_cache()
    # Ray makes this folder accessible to all users, but no other user can enter the private folder around it.
    sessions = folder / "ray"
    remove_old_sessions(sessions)
    known = set(psutil.Process().children(recursive=True))
    for last in (False, True):
        try:
            # "local" ignores RAY_ADDRESS and any running Ray: only `cluster.address` joins a cluster.
            # By default, Ray counts the GPUs of the driver, also if torch is a CPU build.
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                _temp_dir=str(sessions),
                **_common(),
            )
            return
        except Exception as failure:
            # Ray has no exception class for this failure.
            if type(failure) is not Exception or "timed out during startup" not in str(failure):
                raise
            for process in set(psutil.Process().children(recursive=True)) - known:
                process.kill()
            if last:
                raise TimeoutError(
                    "Ray did not start within its limit of 30 s, nor at a second attempt; another program may use all "
                    "of this machine. Try again when that program has ended"
                ) from failure


def actor_table() -> list[Any]:
    """Return Ray's records of all actors of the cluster, dead actors included.

    Ray's public `list_actors` needs the dashboard, which a run does not start.
    """
    accessor = ray._private.state.state._connect_and_get_accessor()
    return [ActorTableData.FromString(row) for row in accessor.get_actor_table(None, None)]


def _common() -> dict[str, Any]:
    # Libraries in worker processes print hundreds of warnings. Real failures reach the driver as errors.
    arguments: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": bool(os.environ.get("GRPO_ACTOR_LOGS"))}
    if hides_this_package(os.getcwd()):
        arguments["job_config"] = PackagesFirst()
    return arguments


class PackagesFirst(JobConfig):
    """A job whose workers import this `grpo`, even if the driver's working folder holds another package `grpo`.

    Ray inserts each entry of a list at the front of every worker's search path. So the last entry is searched first.
    """

    def _serialize(self) -> str:
        """Return the job in the format of Ray's workers."""
        self._py_driver_sys_path.append(ROOT)
        self._cached_pb = None
        return super()._serialize()


def session_logs() -> Path:
    """Return Ray's log folder on this node. An actor writes its log there if it cannot access the job's folder."""
    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path())


_chosen: ContextVar[dict[str, Device]] = ContextVar("chosen device")


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """Keep a job's device type for all restarts in the block: a job that lost its GPUs must not continue on CPUs."""
    token = _chosen.set({})
    try:
        yield
    finally:
        _chosen.reset(token)


def choose_device(settings: config.ClusterConfig, *, samples: bool = True) -> Device:
    """Return the device type of the actors, the same for all restarts of a job (`on_one_device`).

    Args:
        settings: section `cluster` of the settings.
        samples: whether the job starts generators.

    Raises:
        ValueError: as `grpo.cluster.device.device_of`.
    """
    chosen = _chosen.get({})
    if settings.device not in chosen:
        gpus = ray.cluster_resources().get("GPU", 0.0)
        chosen[settings.device] = device_of(settings, gpus, samples=samples)
    return chosen[settings.device]


# With a local Ray, the ranks communicate only through the loopback interface.
ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def _common_environment(threads: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads must sleep. On busy cores, spinning threads take the core of the thread that they wait for,
        # and a learner step takes 60 times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def learner_environment(device: Device, threads: int) -> dict[str, str]:
    """Variables of a learner rank's process."""
    environment = _common_environment(threads)
    if device == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
        # A rank compiles nothing. But DeepSpeed decorates functions with torch.compile, which would import the compiler
        # and add 1.4 s to each start.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    return environment


def generator_environment(setup: GeneratorSetup) -> dict[str, str]:
    """Variables of a generator's process."""
    environment = {
        **_common_environment(setup.generator.threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(setup.generator.in_own_process(setup.device))),
        "VLLM_LOGGING_LEVEL": "WARNING",
        # A trainer must not send usage statistics.
        "VLLM_NO_USAGE_STATS": "1",
    }
    if setup.device == "cpu":
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(setup.generator.cpu_cache_gib),
            # Several processes share few cores. By default, vLLM binds each process to the same first core, which would
            # slow all of them.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # The model runs eagerly; compiling its helper functions would add 20 s to the first generation.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return environment
