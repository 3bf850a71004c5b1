"""What a Slurm job asks for and brings along: options, GPUs, containers, modules, templates, its configuration."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_job import GRPO, RAY, log_of, remove_ray_folders, submitted, wait_for
from launch_configs import fake_slurm, job

from launch import slurm, slurm_options

pytestmark = pytest.mark.usefixtures(remove_ray_folders.__name__)


def lines(folder: Path, launch: dict[str, Any]) -> list[str]:
    text = slurm.render(job(folder, launch))
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_options_of_a_site_are_passed_through(tmp_path: Path) -> None:
    options = {"reservation": "maintenance", "exclusive": True, "exclude": "n[1-3]", "nice": 5, "comment": "two words"}
    told = lines(tmp_path, {"slurm": {"options": options}})
    for line in ("--reservation=maintenance", "--exclusive", "--exclude=n[1-3]", "--nice=5", '--comment="two words"'):
        assert line in told


def test_only_a_job_that_has_its_nodes_for_itself_asks_for_all_memory(tmp_path: Path) -> None:
    def asked(launch: dict[str, Any]) -> list[str]:
        return [line for line in lines(tmp_path, launch) if line.startswith("--mem")]

    assert asked({}) == []
    assert asked({"slurm": {"options": {"exclusive": True}}}) == ["--mem=0"]
    # Other jobs of the same user may run there.
    assert asked({"slurm": {"options": {"exclusive": "user"}}}) == []
    assert asked({"memory_gib_per_node": 5, "slurm": {"options": {"exclusive": True}}}) == ["--mem=5G"]


@pytest.mark.parametrize(
    ("launch", "request_"),
    [
        ({"gpus_per_node": 8}, "--gpus-per-node=8"),
        ({"gpus_per_node": 8, "gpu_type": "h100"}, "--gpus-per-node=h100:8"),
        ({"gpus_per_node": 8, "slurm": {"options": {"gres": "gpu:h100:8"}}}, "--gres=gpu:h100:8"),
    ],
)
def test_gpus_of_a_type(tmp_path: Path, launch: dict[str, Any], request_: str) -> None:
    text = slurm.render(job(tmp_path, {**launch, "cpus_per_node": 8}))
    assert f"#SBATCH {request_}\n" in text and f"options+=(--cpus-per-task=8 {request_})" in text
    assert text.count("--gpus-per-node=") + text.count("--gres=") == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"partition": "x"}, "use launch.partition instead"),
        ({"time": "1:00"}, "use launch.slurm.time_limit instead"),
        ({"signal": "B:USR1"}, "the script sets --signal itself"),
        ({"C": "x"}, "not a long option"),
        ({"exclusive": False}, "leave the option out"),
        ({"comment": 'a"b'}, "has a quote"),
        ({"comment": "a\n#SBATCH --wrap=id"}, "control character"),
    ],
)
def test_an_option_that_would_break_the_script_is_refused(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        job(tmp_path, {"slurm": {"options": options}})
    assert told in str(caught.value)


def test_a_job_inherits_no_options_of_another(tmp_path: Path) -> None:
    environment = {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_CPU_BIND": "cores",
        "SLURM_JOB_ID": "1",
        "SBATCH_EXPORT": "NONE",
        "SBATCH_MEM_PER_CPU": "1G",
        "SRUN_CPUS_PER_TASK": "1",
        "SBATCH_ACCOUNT": "mine",
        "SBATCH_TIMELIMIT": "5",
    }
    described = job(tmp_path, {"slurm": {"time_limit": "1:00:00"}})
    assert slurm_options.clean_environment(described, environment) == {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "mine",
    }


def test_apptainer_runs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"apptainer pull verigrpo\.sif docker://nvcr\.io/nvidia/pytorch:26"):
        slurm.render(job(tmp_path, {"image": "nvcr.io/nvidia/pytorch:26.03-py3"}))
    with pytest.raises(ValueError, match=r"launch\.slurm\.image=/no/x\.sif does not exist"):
        slurm.render(job(tmp_path, {"image": "nvcr.io/x:1", "slurm": {"image": "/no/x.sif"}}))
    (tmp_path / "x.sif").touch()
    text = slurm.render(job(tmp_path, {"image": "nvcr.io/x:1", "slurm": {"image": f"{tmp_path}/x.sif"}}))
    assert f"apptainer exec --bind {tmp_path} {tmp_path}/x.sif)" in text and "nvcr.io" not in text.split("END_OF")[-1]
    # Apptainer's image has a PATH of its own, before which the environment must stand.
    assert 'inside+=(bash -c \'export PATH="$0:$PATH"; exec "$@"\' "$VIRTUAL_ENV/bin")' in text


def test_pyxis_runs_steps_in_a_container(tmp_path: Path) -> None:
    shared = {"slurm": {"container": "pyxis"}, "image": "nvcr.io/lab/verigrpo:1", "environment": {"NCCL_DEBUG": "WARN"}}
    text = slurm.render(job(tmp_path, shared))
    for part in (
        "--container-image='nvcr.io#lab/verigrpo:1'",
        f"--container-mounts='/tmp:/tmp,{tmp_path}:{tmp_path}'\n",
        "RAY_AUTH_TOKEN_PATH,RAY_worker_niceness,RAY_USAGE_STATS_ENABLED,NCCL_DEBUG')",
        'at_head() { on "$head_node" bash -c ',
        "driver_signal=USR1",
    ):
        assert part in text, part


@pytest.mark.parametrize("container", ["apptainer", "pyxis"])
def test_a_container_sees_the_folder_for_spilled_objects(tmp_path: Path, container: str) -> None:
    (tmp_path / "x.sif").touch()
    section = {"image": f"{tmp_path}/x.sif", "container": container, "local_folder": "$LOCAL"}
    text = slurm.render(job(tmp_path, {"slurm": section}))
    start = text.index('local_folder="${LOCAL:-}"')
    end = text.index("# --- how it ends ---")
    shown = f"set -eu; {text[start:end]}" + 'printf \'%s\\n\' "${inside[@]}" "${container[@]}"'
    environment = {**os.environ, "LOCAL": "/disk/of node", "VIRTUAL_ENV": "/v"}
    words = subprocess.check_output(["bash", "-c", shown], text=True, env=environment).splitlines()
    if container == "apptainer":
        assert words[words.index("/disk/of node") - 1] == "--bind"
    else:
        assert f"--container-mounts=/tmp:/tmp,{tmp_path}:{tmp_path},/disk/of node:/disk/of node" in words


def test_a_template_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.j2").write_text(
        '{% extends "slurm.sh.j2" %}\n{% block options %}#SBATCH --bell\n{% endblock %}\n'
        "{% block setup %}source /etc/{{ job.command }}.sh\n{% endblock %}\n"
    )
    section = {"slurm": {"template": "mine.j2"}}
    text = slurm.render(job(tmp_path, section))
    assert "#SBATCH --bell\n" in text.split("set -euo")[0] and "\nsource /etc/train.sh\n" in text
    (tmp_path / "mine.j2").write_text("#!/bin/bash\n{{ nothing }}\n")
    with pytest.raises(ValueError, match=r"mine\.j2: 'nothing' is undefined"):
        slurm.render(job(tmp_path, section))
    with pytest.raises(ValueError, match=r"there is no file .*other\.j2"):
        slurm.render(job(tmp_path, {"slurm": {"template": "other.j2"}}))


def test_the_printed_script_can_be_submitted_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {"ray": RAY, "grpo": GRPO, "python": "#!/bin/bash\nexit 0\n"}
    fake = fake_slurm(tmp_path / "slurm", "node-a node-b", programs=programs)
    described = job(tmp_path, {"venv": str(fake.folder)}, run={"folder": str(tmp_path / "runs" / "new")})
    (tmp_path / "job.sh").write_text(slurm.render(described))
    assert not (tmp_path / "runs").exists()
    subprocess.run(["sbatch", str(tmp_path / "job.sh")], env=fake.environment, check=True, stdout=subprocess.DEVNULL)
    wait_for(fake.folder / "running")
    (fake.folder / "end").write_text("0")
    assert fake.wait(60) == [0], (tmp_path / f"grpo-new-{fake.job}.out").read_text()
    assert (tmp_path / "runs" / "new" / "launch" / "config.yaml").read_text() == described.snapshot(None)


LMOD = """module() { echo "loaded $2 $NOT_SET" >> "$FAKE_SLURM/modules"; [[ $2 == cuda/13 ]]; }
false
"""


@pytest.mark.parametrize(("module", "statuses"), [("cuda/13", [0]), ("cuda/99", [2])])
def test_modules_are_loaded_as_today_s_lmod_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, statuses: list[int]
) -> None:
    (tmp_path / "lmod" / "init").mkdir(parents=True)
    (tmp_path / "lmod" / "init" / "bash").write_text(LMOD.replace("\nfalse\n", "\n"))
    monkeypatch.setenv("LMOD_PKG", str(tmp_path / "lmod"))
    fake = submitted(tmp_path, monkeypatch, {"slurm": {"modules": [module]}})
    if statuses == [0]:
        wait_for(fake.folder / "running")
        (fake.folder / "end").write_text("0")
    assert fake.wait(60) == statuses, log_of(tmp_path)
    assert (fake.folder / "modules").read_text() == f"loaded {module} \n"
    assert ("module load cuda/99 failed" in log_of(tmp_path)) is (statuses == [2])


def test_restarts_that_bring_no_checkpoint_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = submitted(tmp_path, monkeypatch, {})
    for _ in range(4):
        wait_for(fake.folder / "running")
        (fake.folder / "running").unlink()
        (fake.folder / "lose.node-b").touch()
    assert fake.wait(120) == [0, 0, 0, 1], log_of(tmp_path)
    assert "3 restarts after a lost node brought no newer checkpoint" in log_of(tmp_path)


def test_a_step_of_the_head_turns_slurm_s_signal_into_a_request_to_end(tmp_path: Path) -> None:
    program = "trap 'exit 7' TERM; touch \"$0\"; while :; do sleep 0.05; done"
    passes_on = Path(slurm.TEMPLATES / "passes_on.sh").read_text()
    step = subprocess.Popen(["bash", "-c", passes_on, "bash", "-c", program, str(tmp_path / "up")], process_group=0)
    wait_for(tmp_path / "up")
    # Slurm may signal the whole group.
    os.killpg(step.pid, signal.SIGUSR1)
    assert step.wait(20) == 7
