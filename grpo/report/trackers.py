"""Further places for the metrics of a run besides its folder: TensorBoard, Weights & Biases, MLflow, Prometheus.

A tracker is any object with the methods of `Tracker`. `open_trackers` makes the trackers that a config can name.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from grpo.report import run_files

TRACKER_NAMES = ("tensorboard", "wandb", "mlflow", "prometheus")
# Trackers that need a package of the same name, which this project does not depend on.
_PACKAGES = ("wandb", "mlflow")


class Tracker(Protocol):
    """A place that stores metrics."""

    def log(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        """Store the metrics of a step; `time` is in seconds since the epoch."""
        ...

    def truncate_after(self, step: int) -> None:
        """Remove the steps after `step`, because a resumed run logs them again. Called before the first `log`."""
        ...

    def close(self) -> None:
        """Send buffered metrics and close. Safe to call twice."""
        ...


def require_trackers(names: Iterable[str]) -> None:
    """Refuse trackers whose package is not installed, before a run reads its data. No package is imported.

    Raises:
        ValueError: a package is missing.
    """
    for name in names:
        if name in _PACKAGES and not _is_installed(name):
            raise _not_installed(name)


def open_trackers(
    names: Iterable[str],
    run_dir: Path,
    *,
    config: Mapping[str, Any] | None = None,
    project: str = "verigrpo",
) -> tuple[Tracker, ...]:
    """Open the named trackers for a run.

    Args:
        names: names from `TRACKER_NAMES`.
        run_dir: run folder. If a tracker names runs, it uses the name of this folder.
        config: resolved config, for trackers that show a config.
        project: W&B project, or MLflow experiment.

    Raises:
        ValueError: a name is unknown, or the tracker's package is not installed.
    """
    chosen = tuple(names)
    unknown = [name for name in chosen if name not in TRACKER_NAMES]
    if unknown:
        raise ValueError(f"trackers: {unknown[0]!r} is not one of {', '.join(TRACKER_NAMES)}")
    opened: list[Tracker] = []
    for name in dict.fromkeys(chosen):
        if name == "tensorboard":
            opened.append(TensorBoardTracker(run_dir))
        elif name == "wandb":
            opened.append(WandbTracker(run_dir, config=config, project=project))
        elif name == "mlflow":
            opened.append(MlflowTracker(run_dir, config=config, project=project))
        else:
            from grpo.report.ray_metrics import RayMetricsTracker

            opened.append(RayMetricsTracker(run_dir))
    return tuple(opened)


class TensorBoardTracker:
    """Event files under `tensorboard/` in the run folder."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / run_files.TENSORBOARD
        self._writer = self._open(purge_step=None)

    def log(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step, walltime=time)
        self._writer.flush()

    def truncate_after(self, step: int) -> None:
        # In TensorBoard, a new event file can declare that later steps in the older files are invalid.
        self._writer.close()
        self._writer = self._open(purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()

    def _open(self, purge_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=purge_step)


class WandbTracker:
    """A Weights & Biases run. If the run folder is used again, the W&B run with the same id is resumed."""

    def __init__(self, run_dir: Path, *, config: Mapping[str, Any] | None, project: str) -> None:
        try:
            import wandb
        except ImportError as missing:
            raise _not_installed("wandb") from missing
        run_dir.mkdir(parents=True, exist_ok=True)
        id_file = run_dir / run_files.WANDB_ID
        run_id = id_file.read_text().strip() if id_file.exists() else uuid.uuid4().hex[:12]
        id_file.write_text(run_id + "\n")
        self._run: Any = wandb.init(
            project=project,
            name=run_dir.resolve().name,
            dir=str(run_dir),
            id=run_id,
            resume="allow",
            config=dict(config or {}),
        )
        # W&B's step counter must never decrease, but a resumed run repeats steps. So the curves use our step as x axis.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._run.log({"step": step, "time": time, **finite})

    def truncate_after(self, step: int) -> None:
        # W&B keeps everything that it has received. W&B draws repeated steps over the old steps.
        return None

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """An MLflow run. If the run folder is used again, the same MLflow run continues.

    The variable MLFLOW_TRACKING_URI names the server or folder.
    """

    def __init__(self, run_dir: Path, *, config: Mapping[str, Any] | None, project: str) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as missing:
            raise _not_installed("mlflow") from missing
        self._client = MlflowClient()
        run_dir.mkdir(parents=True, exist_ok=True)
        id_file = run_dir / run_files.MLFLOW_ID
        if id_file.exists():
            self._run_id = id_file.read_text().strip()
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            known = self._client.get_experiment_by_name(project)
            experiment = known.experiment_id if known else self._client.create_experiment(project)
            self._run_id = self._client.create_run(experiment, run_name=run_dir.resolve().name).info.run_id
            id_file.write_text(self._run_id + "\n")
            for name, value in _flat(config or {}):
                self._client.log_param(self._run_id, name, value)
        self._open = True

    def log(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(
            self._run_id,
            metrics=[
                Metric(name, value, int(time * 1000), step) for name, value in metrics.items() if math.isfinite(value)
            ],
        )

    def truncate_after(self, step: int) -> None:
        # MLflow keeps everything that it has received. A repeated step gets a second point with a later time.
        return None

    def close(self) -> None:
        if self._open:
            self._client.set_terminated(self._run_id)
            self._open = False


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield each dotted key with its value as text. The text is cut to the length that MLflow accepts."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", str(value)[:500]


def _is_installed(package: str) -> bool:
    if sys.modules.get(package) is not None:
        return True
    spec = importlib.util.find_spec(package)
    # A plain folder of this name, for example the folder `wandb/` of earlier runs, is no package: it has no origin.
    return spec is not None and spec.origin is not None


def _not_installed(tracker: str) -> ValueError:
    return ValueError(
        f"trackers: {tracker!r} is configured but not installed; "
        f"install it with `pip install 'verigrpo[{tracker}]'`, or remove {tracker!r} from the trackers"
    )
