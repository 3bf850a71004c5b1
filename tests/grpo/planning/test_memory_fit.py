"""A job that needs more memory than there is: what is said, what would fit, and that nothing starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_layer_bytes import architecture
from typer.testing import CliRunner

from grpo.cli.app import app
from grpo.config import SftConfig, TrainConfig
from grpo.config.file import load
from grpo.planning import memory_fit
from grpo.planning.layer_sizes import LayerBytes
from grpo.planning.memory import GIB
from grpo.planning.memory_fit import Memory, refusal, refuse_what_does_not_fit, shortage
from grpo.planning.policy_shape import PolicyShape, _repeats, architecture_of, planned_shape, shape_for
from grpo.planning.remedies import _kinds, remedies

ROOT = Path(__file__).parents[3]
HOST = 400 * GIB
TRAIN: dict[str, Any] = {
    "run": {"folder": "run"},
    "policy": {"path": "policy"},
    "data": {"path": "rows.jsonl"},
    "verifiers": [{"name": "answer", "use": "numeric"}],
    "train": {"steps": 1},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in ("1.7B", "8B")}
    for name, folder in found.items():
        architecture(name).save_pretrained(folder)
    return found


def job(folder: Path, *keys: str) -> TrainConfig:
    return load(TrainConfig, ROOT / "configs" / "gsm8k.yaml", [f"policy.path={folder}", *keys])


ON_GPU, SHARED = {"device": "gpu"}, {"device": "gpu", "share_gpus": True}
SLEEPING = {**SHARED, "sleep": True}


@pytest.mark.parametrize(
    ("keys", "share", "memory", "told", "certain"),
    [
        ({"device": "cpu"}, 0.5, Memory(None, 100 * GIB, 200 * GIB), "", True),
        ({"device": "cpu"}, 0.5, Memory(None, 30 * GIB, 200 * GIB), "57.0 GiB, and 30.0 GiB are free", False),
        ({"device": "cpu"}, 0.5, Memory(None, 30 * GIB, 40 * GIB), "57.0 GiB, and the machine has 40.0 GiB", True),
        # Somewhere else nothing is known.
        ({"device": "cpu", "address": "ray://there"}, 0.5, Memory(None, 1, 1), "", True),
        (ON_GPU, 0.5, Memory(None, 1, 1), "", True),
        (ON_GPU, 0.5, Memory(50 * GIB, HOST, HOST), "", True),
        (ON_GPU, 0.5, Memory(48 * GIB, HOST, HOST), "a learner rank needs about 49.0 GiB", True),
        (ON_GPU, 0.5, Memory(15 * GIB, HOST, HOST), "generator.gpu_memory_share=0.5 need about 8.0 GiB", True),
        # Beside a generator there is less.
        (SHARED, 0.5, Memory(97 * GIB, HOST, HOST), "the generator on its GPU need about 97.5 GiB", True),
        (SHARED, 0.5, Memory(99 * GIB, HOST, HOST), "", True),
        (SLEEPING, 0.5, Memory(51 * GIB, HOST, HOST), "", True),
        (SLEEPING, 0.5, Memory(49 * GIB, HOST, HOST), "a learner rank beside a sleeping generator", True),
        # Adam's 24 GiB and the generator's weights sleep in the host's memory.
        (SLEEPING, 0.5, Memory(60 * GIB, 31 * GIB, HOST), "needs about 32.0", False),
        # While it is pushed to, the generator is awake. Of the learner there are weights, CUDA and three buckets, and
        # the generator copies a bucket and a layer: 9 + 1.5 + 0.5 + 1 GiB.
        (SLEEPING, 0.81, Memory(60 * GIB, HOST, HOST), "that pushes its weights need about 60.6", True),
        (SLEEPING, 0.79, Memory(60 * GIB, HOST, HOST), "", True),
    ],
)
def test_what_does_not_fit_is_told(
    keys: dict[str, Any], share: float, memory: Memory, told: str, certain: bool
) -> None:
    settings = TrainConfig.model_validate({**TRAIN, "cluster": keys, "generator": {"gpu_memory_share": share}})
    # 8 GiB of weights, as much of gradients and of the step's copy of them, 24 GiB of Adam's in float32.
    nothing = LayerBytes(0, 0, 0, 0, 0)
    shape = PolicyShape(2 * GIB, 2 * GIB, 1, vocabulary=1, hidden=1, layers=8, tied=True, layer=nothing)
    short = shortage(settings, shape, memory)
    assert (short is None) == (not told), short
    if short:
        assert told in short.text and short.certain == certain, short


@pytest.mark.parametrize(
    ("policy", "gib", "keys"),
    [
        ("1.7B", 44, ()),
        ("1.7B", 22, ()),
        ("1.7B", 44, ("cluster.share_gpus=false", "learner.gradient_checkpointing=0")),
        ("1.7B", 44, ("policy.dtype=float32",)),
        ("8B", 79, ()),
        ("8B", 139, ("cluster.share_gpus=false", "learner.gradient_checkpointing=0")),
        ("8B", 44, ("cluster.share_gpus=false", "learner.ranks=4", "learner.zero_stage=2")),
        # Here not even the generator fits.
        ("8B", 22, ()),
    ],
)
def test_three_changes_make_it_fit_when_they_are_planned_again(
    folders: dict[str, Path], policy: str, gib: int, keys: tuple[str, ...]
) -> None:
    settings, memory = job(folders[policy], *keys), Memory(gib * GIB, HOST, HOST)
    found = architecture_of(settings.policy)
    assert found is not None
    shape = shape_for(settings, found)
    short = shortage(settings, shape, memory)
    assert short is not None
    text = refusal(settings, found, memory, short)
    lines = re.findall(r"^  - (.+?)   \((.+)\)$", text, re.MULTILINE)
    assert len(lines) == 3 and short.text in text and "cluster.check_memory=warn" in text, text
    assert len({choice for choice, _ in lines}) == 3
    for choice, cost in lines:
        # As a user would write them behind the command.
        changed = job(folders[policy], *keys, *choice.split())
        again = planned_shape(changed)
        assert again is not None and shortage(changed, again, memory) is None, choice
        assert re.search(r"\d", cost), cost


def test_a_smaller_change_of_the_same_kind_does_not_fit(folders: dict[str, Path]) -> None:
    keys = ("cluster.share_gpus=false", "learner.gradient_checkpointing=0")
    settings = job(folders["1.7B"], *keys)
    memory, found = Memory(44 * GIB, HOST, HOST), planned_shape(settings)
    assert found is not None

    def fits(changed: TrainConfig | SftConfig) -> bool:
        shape = planned_shape(changed)
        return shape is not None and shortage(changed, shape, memory) is None

    first, second, _ = remedies(settings, found, memory.gpu, fits)
    assert first.keys == ("learner.gradient_checkpointing=0.75",) and first.cost == "+25 % of the learner's time"
    assert not fits(job(folders["1.7B"], *keys[:1], "learner.gradient_checkpointing=0.5"))
    assert second.keys == ("learner.microbatch_tokens=4096",) and second.cost.startswith("4 times as many passes: +6 %")
    assert not fits(job(folders["1.7B"], *keys, "learner.microbatch_tokens=8192"))


def test_costs_are_arithmetic(folders: dict[str, Path]) -> None:
    def cost(key: str, *keys: str) -> str:
        settings = job(folders["1.7B"], *keys)
        shape = planned_shape(settings)
        assert shape is not None
        return next(each.cost for kind in _kinds(settings, shape, 79 * GIB) for each in kind if key in each.keys)

    # 1.72e9 parameters. 12 bytes each of the learner's and 2 of the generator's, out and back at 25 GB/s.
    assert cost("cluster.sleep=true") == "+1.9 s a step, to move states out and back"
    # 2 minibatches, at 1.2 ns a parameter and 6 bytes at 25 GB/s; with 8 threads an eighth of the first.
    assert cost("learner.offload=optimizer").startswith("+5 s a step")
    assert cost("learner.offload=optimizer", "learner.threads=8") == "+1.3 s a step, because Adam runs on the CPU"
    # The weights twice, 2 bytes each, at 300 GB/s, beside 6 FLOPs for each of 16,384 tokens at 400 TFLOP/s.
    apart = ("cluster.share_gpus=false", "learner.ranks=4")
    assert cost("learner.zero_stage=3", *apart).endswith("up to +5 % of the learner's time")
    assert cost("learner.zero_stage=2", *apart, "learner.zero_stage=1") == "same traffic between the ranks"
    # 32 GiB beside 3.2 GiB of weights, in sequences of 0.16 GiB.
    assert cost("generator.gpu_memory_share=0.2") == (
        "76 longest sequences at a time in place of 173: up to +128 % of the time for sampling"
    )
    assert cost("learner.ranks=2").startswith("2 GPUs for the learner in place of 1")
    # Weights fetched twice for each microbatch, over the bus to the host's memory.
    assert cost("learner.offload=parameters").endswith("and +0.28 s a microbatch to fetch the weights")
    assert cost("policy.dtype=bfloat16", "policy.dtype=float32").endswith("several times faster")
    with pytest.raises(StopIteration):
        cost("policy.dtype=bfloat16")


def test_ranks_of_a_cpu_hold_what_they_offload_too() -> None:
    nothing = LayerBytes(0, 0, 0, 0, 0)
    shape = PolicyShape(2 * GIB, 2 * GIB, 1, vocabulary=1, hidden=1, layers=8, tied=True, layer=nothing)
    learner = {"ranks": 2, "offload": "optimizer"}
    settings = TrainConfig.model_validate({**TRAIN, "cluster": {"device": "cpu"}, "learner": learner})
    short = shortage(settings, shape, Memory(None, GIB, HOST))
    # Each rank: 8 GiB of weights, 8 of gradients, half of the 8 of the step's copy, and half of 12 + 8 bytes a
    # parameter. The generator: 8 GiB, and its cache.
    assert short is not None and "about 89.0 GiB" in short.text, short


def test_attention_repeats_the_prompt_for_completions_of_a_microbatch(folders: dict[str, Path]) -> None:
    # Prompts of 512 tokens, 8 completions of 1,024.
    assert _repeats(job(folders["1.7B"])) == 8 * 1536 / (512 + 8 * 1024)
    assert _repeats(job(folders["1.7B"], "learner.microbatch_tokens=4096")) == 3 * 1536 / (512 + 3 * 1024)
    assert _repeats(job(folders["1.7B"], "learner.microbatch_tokens=1536")) == 1.0
    assert _repeats(load(SftConfig, ROOT / "configs" / "quickstart_sft.yaml", [])) == 1.0


def test_changes_that_exclude_each_other_are_not_proposed(folders: dict[str, Path]) -> None:
    # Sleeping generators cannot sample ahead.
    settings = job(folders["1.7B"], "rollout.max_policy_lag=1")
    shape = planned_shape(settings)
    assert shape is not None
    asked: list[TrainConfig | SftConfig] = []

    def fits(changed: TrainConfig | SftConfig) -> bool:
        asked.append(changed)
        return False

    assert remedies(settings, shape, 79 * GIB, fits) == []
    assert len(asked) > 50 and not any(changed.cluster.sleep for changed in asked)


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_fit, "memory_here", lambda: Memory(44 * GIB, HOST, HOST))
    monkeypatch.setattr("grpo.planning.check.memory_here", lambda: Memory(44 * GIB, HOST, HOST))


@pytest.mark.usefixtures("small_gpu")
def test_a_job_is_refused_unless_the_user_knows_better(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"need about 5\d\.\d GiB, and there are 44\.0 GiB") as refused:
        refuse_what_does_not_fit(job(folders["1.7B"]))
    assert "cluster.sleep=true" in str(refused.value)
    refuse_what_does_not_fit(job(folders["1.7B"], "cluster.check_memory=warn"))
    refuse_what_does_not_fit(job(folders["1.7B"], "cluster.address=auto"))
    refuse_what_does_not_fit(job(folders["1.7B"], "cluster.sleep=true"))


@pytest.mark.usefixtures("small_gpu")
def test_training_starts_nothing_that_does_not_fit(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr("grpo.run.recovery.with_recovery", never)
    config, folder = str(ROOT / "configs" / "gsm8k.yaml"), f"run.folder={tmp_path / 'run'}"
    ended = CliRunner().invoke(app, ["train", config, f"policy.path={folders['1.7B']}", folder])
    assert ended.exit_code == 2 and "does not fit the memory of this machine" in ended.output
    assert "learner.offload=optimizer" in ended.output and not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small_gpu")
def test_profiling_starts_nothing_that_does_not_fit(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr("grpo.planning.profile.train", never)
    config, folder = str(ROOT / "configs" / "gsm8k.yaml"), f"run.folder={tmp_path / 'run'}"
    ended = CliRunner().invoke(app, ["profile", config, f"policy.path={folders['1.7B']}", folder])
    assert ended.exit_code == 2 and "does not fit the memory of this machine" in ended.output
    assert not list(tmp_path.iterdir())


def test_fine_tuning_starts_nothing_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the job began")

    monkeypatch.setattr("grpo.run.recovery.with_recovery", never)
    monkeypatch.setattr(memory_fit, "memory_here", lambda: Memory(None, GIB // 100, GIB // 100))
    config, folder = str(ROOT / "configs" / "quickstart_sft.yaml"), f"run.folder={tmp_path / 'run'}"
    ended = CliRunner().invoke(app, ["sft", config, folder])
    assert ended.exit_code == 2 and "the learner needs about" in ended.output
    assert not (tmp_path / "run").exists()
