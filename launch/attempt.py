"""One attempt of a RayJob on Kubernetes: `python -P -m launch.attempt train|sft CONFIG`.

KubeRay makes a new attempt, in a new cluster, after every Ray job that FAILED. A new attempt helps if a machine failed.
It does not help if the configuration is wrong, or if attempt after attempt brings no newer checkpoint. After such a
failure the Ray job stops itself, because KubeRay makes no new attempt after a Ray job that is STOPPED.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from grpo import files
from grpo.config import FINE_TUNING, JobConfig, TrainConfig
from grpo.config.file import load
from grpo.package_finder import python_command
from grpo.report import run_files
from grpo.visible import visible
from launch import ray_job

MISTAKE = 2
FRUITLESS = "launch/fruitless_attempts"


def newest_checkpoint(folder: Path) -> str:
    """The name of the newest checkpoint of a run; empty without a checkpoint."""
    return max((path.name for path in (folder / run_files.CHECKPOINTS).glob("step_*")), default="")


def fruitless_attempts(folder: Path, before: str) -> int:
    """Count the failed attempts in a row that brought no newer checkpoint, this one included.

    Args:
        folder: the run's folder. It keeps the count.
        before: newest checkpoint at the start of this attempt.
    """
    record = folder / FRUITLESS
    earlier = int(record.read_text(encoding="utf-8")) if record.is_file() else 0
    count = 0 if newest_checkpoint(folder) != before else earlier + 1
    files.write_text(record, f"{count}\n")
    return count


def run(command: str, config: str) -> int:
    """Run `grpo` to its end; return its exit status. A request to stop is passed on."""
    with subprocess.Popen([*python_command("from grpo.cli.app import app; app()"), command, config]) as process:

        def stop(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        status = process.wait()
    return status if status >= 0 else 128 - status


def say(text: str) -> None:
    """Print a line into the log of the Ray job, at once, because the process may end at any time."""
    print(visible(f"grpo: {text}"), file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Return the exit status. After a failure that another attempt cannot mend, Ray ends this process."""
    command, config = arguments
    settings: JobConfig | None = None
    before, folder = "", Path()
    try:
        settings = load(FINE_TUNING[command], config) if command in FINE_TUNING else load(TrainConfig, config)
        folder = Path(settings.run.folder)
        before = newest_checkpoint(folder)
    except ValueError:
        pass  # `grpo` reports the mistake.
    status = run(command, config)
    if status == 0:
        return 0
    if status == MISTAKE:
        reason = "the configuration or the data must be corrected"
    else:
        assert settings is not None, "a configuration that cannot be loaded is a mistake"
        most = settings.cluster.max_fruitless_restarts
        if (count := fruitless_attempts(folder, before)) <= most:
            return status
        (folder / FRUITLESS).unlink()
        reason = f"{count} attempts brought no newer checkpoint (cluster.max_fruitless_restarts={most})"
    say(
        f"the run FAILED with exit status {status}, and another attempt would not help: {reason}. This Ray job stops "
        "itself now, so that KubeRay makes no new attempt; the RayJob then says STOPPED"
    )
    try:
        ray_job.stop_this_job()
    except (OSError, RuntimeError) as failure:
        say(f"the Ray job could not stop itself, so KubeRay may make a new attempt: {failure}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
