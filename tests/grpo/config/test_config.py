"""Configurations: every problem is told, with its remedy, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from grpo.config import DpoConfig, RewardConfig, SftConfig, TrainConfig, WeightSyncConfig
from grpo.config.evaluation import TaskConfig
from grpo.config.file import dump, load
from grpo.config.verifiers import VerificationConfig
from grpo.jobs import load_config
from rewards.verifiers.code import CodeVerifier

CONFIGS = Path(__file__).parents[3] / "configs"
TRAIN: dict[str, Any] = {
    "run": {"folder": "runs/test"},
    "policy": {"path": "policy"},
    "data": {"path": "rows.jsonl"},
    "verifiers": [{"name": "answer", "use": "numeric"}, {"name": "form", "use": "format", "weight": 0.1}],
    "train": {"steps": 10},
}
SFT: dict[str, Any] = {
    "run": {"folder": "runs/test"},
    "policy": {"new": {"hidden_size": 64}},
    "data": {"generator": "grpo.data.arithmetic:demonstrations"},
    "sft": {"steps": 10},
}


def write(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def problems(folder: Path, schema: Any, data: dict[str, Any], *overrides: str) -> list[str]:
    """What is told of a configuration, one line for each problem; it must have some."""
    with pytest.raises(ValueError) as caught:
        load(schema, write(folder, data), overrides)
    first, *lines = str(caught.value).split("\n  - ")
    beside = " and its overrides (KEY=VALUE)" if overrides else ""
    assert first == f"{len(lines)} problem{'s' if len(lines) > 1 else ''} in {folder / 'config.yaml'}{beside}:"
    return lines


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    settings = load(TrainConfig, write(tmp_path, TRAIN))
    assert settings.rollout.group_size == 8
    assert settings.verifiers[1].weight == 0.1
    assert settings.evaluation is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rollout.group_sise=4", "rollout.group_sise is not a known key; did you mean rollout.group_size?"),
        ("rolout.group_size=4", "rolout is not a known key; did you mean rollout?"),
        ("verifiers.1.wieght=0.5", "verifiers.1.wieght is not a known key; did you mean verifiers.1.weight?"),
        ("evaluation={data: {path: a.jsonl, sytem: x}}", "evaluation.data.sytem is not a known key; did you mean"),
        ("policy.new={layer: 2}", "policy.new.layer is not a known key; did you mean policy.new.layers?"),
        ("run.zzz=1", "run.zzz is not a known key; known here: folder, seed, resume"),
        ("run={zzz: 1, yyy: 2, folder: runs/x}", "run.zzz, run.yyy are not known keys; known here: folder, seed"),
        ("adam_gamma=1", "adam_gamma is not a known key; known here: run, "),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(tmp_path: Path, override: str, told: str) -> None:
    assert problems(tmp_path, TrainConfig, TRAIN, override)[0].startswith(told)


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    data = TRAIN | {
        "rollout": {"group_size": 1, "prompts_per_step": "many", "temprature": 1.0},
        "learner": {"zero_stage": 4, "learning_rate": -1.0},
        "data": {"path": "rows.jsonl", "generator": "a:b"},
        "verifiers": [{"name": "a", "use": "numeric"}, {"name": "a", "use": "numeric"}],
        "train": {"steps": 0},
    }
    told = problems(tmp_path, TrainConfig, data, "algorithm.minibatches=5", "nonsense", "algorithm.clip_low=2")
    for part in [
        "nonsense",
        "rollout.temprature is not a known key; did you mean rollout.temperature?",
        "rollout.prompts_per_step: ",
        "learner.zero_stage: ",
        "learner.learning_rate: ",
        "algorithm.clip_low: ",
        "train.steps: ",
    ]:
        assert len([line for line in told if part in line]) == 1, (part, told)
    assert len(told) == 7


def test_rules_between_sections_are_told_beside_wrong_values(tmp_path: Path) -> None:
    told = problems(tmp_path, TrainConfig, TRAIN, "rollout.group_size=1", "learner.zero_stage=4", "rollout.typo=1")
    assert len(told) == 3
    assert "rollout.group_size=1" in told[2]


def test_a_default_in_place_of_a_wrong_value_is_not_blamed(tmp_path: Path) -> None:
    # The default of 4,096 would not hold these sequences; what was meant may.
    (told,) = problems(
        tmp_path, TrainConfig, TRAIN, "learner.microbatch_tokens=16k", "rollout.max_completion_tokens=8192"
    )
    assert told.endswith("got '16k'")


SLURM = "launch={storage: /shared, nodes: 1, gpus_per_node: 0, cpus_per_node: 2, slurm: {}}"


def test_a_time_needs_no_quotes(tmp_path: Path) -> None:
    settings = load(TrainConfig, write(tmp_path, TRAIN), [SLURM, "launch.slurm.time_limit=24:00:00"])
    assert settings.launch and settings.launch.slurm and settings.launch.slurm.time_limit == "24:00:00"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("launch.slurm.time_limit=forever", "expected a time as Slurm writes it, such as 12:00:00 or 2-00:00:00; got"),
        ("launch.storage=shared", "launch.storage: expected an absolute path, such as /shared/runs; got 'shared'"),
        ("data.template={promt}", "text with braces needs quotes: '\"{prompt}\"'"),
    ],
)
def test_a_wrong_form_is_told_with_the_right_form(tmp_path: Path, override: str, told: str) -> None:
    (line,) = problems(tmp_path, TrainConfig, TRAIN, SLURM, override)
    assert told in line


def test_a_verdict_waits_as_long_as_a_program_may_take_unless_a_user_chooses(tmp_path: Path) -> None:
    code = "verifiers=[{name: tests, use: code}]"
    settings = load(TrainConfig, write(tmp_path, TRAIN), [code])
    needed = CodeVerifier().deadline_s
    assert settings.verification.deadline_s == needed > VerificationConfig().deadline_s
    (line,) = problems(tmp_path, TrainConfig, TRAIN, code, "verification.deadline_s=10")
    assert f"raise deadline_s to {needed:g} or more" in line
    task = {"name": "t", "source": "s", "data": {"path": "rows.jsonl"}, "verifier": {"use": "code"}}
    assert load(TaskConfig, write(tmp_path, task)).verifier.deadline_s == needed


def test_a_wrong_required_value_is_not_also_called_missing(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, TrainConfig, TRAIN, "train.steps=soon")
    assert told.startswith("train.steps: ") and told.endswith("got 'soon'")


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    data = {key: value for key, value in TRAIN.items() if key not in ("train", "verifiers")}
    assert problems(tmp_path, TrainConfig, data) == ["verifiers is missing", "train is missing"]
    assert problems(tmp_path, TrainConfig, TRAIN | {"verifiers": [{"name": "a"}]}) == ["verifiers.0.use is missing"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rollout.group_size=1"], ["rollout.group_size=1", "use 2 or more"]),
        (["algorithm.minibatches=3"], ["rollout.prompts_per_step=32", "algorithm.minibatches=3", "whole groups"]),
        (["generator.replicas=40"], ["generator.replicas=40", "fewer replicas"]),
        (["rollout.deadline_s=60"], ["generator.hang_deadline_s=300", "rollout.deadline_s=60", "or raise rollout"]),
        (["rollout.partial=drop"], ["rollout.partial", "'continue' or 'restart'", "'drop'"]),
        (["generator.max_restarts=-1"], ["generator.max_restarts", "greater than or equal to 0"]),
        (["learner.microbatch_tokens=300"], ["learner.microbatch_tokens=300", "= 512", "raise microbatch_tokens"]),
        (["learner.ranks=300"], ["256 completions", "learner.ranks=300"]),
        (["learner.offload=parameters"], ["learner.offload=parameters needs", "offload=optimizer"]),
        (
            ["policy.dtype=bfloat16", "learner.reduce_gradients=step"],
            ["learner.reduce_gradients=step", "zero_stage=1", "reduce_gradients=microbatch"],
        ),
        (["learner.zero_stage=1", "learner.reduce_gradients=microbatch"], ["nothing to save", "zero_stage 2 or 3"]),
        (["cluster.sleep=true"], ["cluster.sleep makes room", "cluster.share_gpus"]),
        (
            ["cluster.share_gpus=true", "cluster.sleep=true", "learner.zero_stage=3"],
            ["learner.zero_stage=3", "learner.offload=optimizer", "zero_stage=2"],
        ),
        (
            ["cluster.share_gpus=true", "cluster.sleep=true", "learner.zero_stage=1", "policy.dtype=bfloat16"],
            [
                "cluster.sleep",
                "learner.zero_stage=1",
                "policy.dtype=bfloat16",
                "zero_stage=2",
                "learner.offload=optimizer",
            ],
        ),
        (
            ["cluster.share_gpus=true", "cluster.sleep=true", "rollout.max_policy_lag=1"],
            ["rollout.max_policy_lag=1 samples during training", "cluster.sleep", "remove one of the two"],
        ),
        (["rollout.max_policy_lag=-1"], ["rollout.max_policy_lag", "greater than or equal to 0"]),
        (["cluster.share_gpus=true", "generator.replicas=2"], ["cluster.share_gpus", "generator.replicas"]),
        (["cluster.share_gpus=true", "generator.tensor_parallel_size=2"], ["cluster.share_gpus"]),
        (["cluster.share_gpus=true", "generator.pipeline_parallel_size=2"], ["cluster.share_gpus", "one device"]),
        (
            ["generator={engine: in_actor, tensor_parallel_size: 2, pipeline_parallel_size: 3}"],
            ["generator.engine=in_actor is one process", "needs 6; use engine=auto"],
        ),
        (["policy.path=null"], ["policy needs policy.path"]),
        (["policy.path=null", "policy.new={}"], ["policy.new", "grpo sft"]),
        (["data.path=null"], ["data needs one of hub, path or generator"]),
        (["data.generator=a:b"], ["data: give a generator, or a hub name and/or a path"]),
        (["data.template=hello"], ["data.template must contain {prompt}"]),
        (["evaluation={data: {}}"], ["evaluation.data needs one of"]),
        (["evaluation={}"], ["evaluation needs questions", "evaluation.data", "data.validation"]),
        (["data.validation=5"], ["data.validation holds out questions, but no evaluation", "add a section evaluation"]),
        (
            ["data.validation=5", "evaluation={data: {path: a.jsonl}}"],
            ["evaluation.data and data.validation both give held-out questions", "remove one"],
        ),
        *(
            (
                [f"data.validation={part}", "evaluation={}"],
                ["data.validation", "a share between 0 and 1", f"got {part}"],
            )
            for part in ("0", "-3", "1.5", "1.0", "True", "'5 %'")
        ),
        (["data.sources=[{name: a, path: a.jsonl}]"], ["data.path and data.sources both say where rows come from"]),
        (["data={sources: [{name: a}]}"], ["data.sources.a needs one of hub, path or generator"]),
        (["data={sources: [{path: a.jsonl}]}"], ["data.sources.0.name is missing"]),
        (["data={sources: [{name: a.b, path: a.jsonl}]}"], ["data.sources.0.name", "pattern", "'a.b'"]),
        (["data={sources: [{name: a, path: a.jsonl, ratio: 0}]}"], ["data.sources.0.ratio", "greater than 0"]),
        (
            ["data={sources: [{name: a, path: x, ratoi: 2}]}"],
            ["data.sources.0.ratoi", "did you mean data.sources.0.ratio"],
        ),
        (
            ["data={sources: [{name: a, path: x}, {name: a, path: y}]}"],
            ["data.sources: 2 sources have the name 'a'", "another name"],
        ),
        (
            ["data={sources: [{name: a, path: x, template: hello}, {name: b, path: y}]}"],
            ["data.sources.a.template must contain {prompt}"],
        ),
        (
            [
                "data={validation: 5, sources: [{name: a, path: x, system: Think}, {name: b, path: y}]}",
                "evaluation={mode: background}",
            ],
            ["evaluation.mode=background", "differ between data.sources", "use mode=inline"],
        ),
        (["verifiers.1.name=answer"], ["2 verifiers have the name 'answer'"]),
        (["verifiers.0.weight=0", "verifiers.1.weight=0"], ["every weight is 0"]),
        (["verifiers.0.when={kind: []}"], ["'answer' has no value in when.kind"]),
        (
            ["weight_sync.transport=nccl", "cluster.device=cpu"],
            ["weight_sync.transport=nccl", "cluster.device", "gloo, object_store or auto"],
        ),
        (["weight_sync.transport=ipc"], ["weight_sync.transport=ipc", "cluster.share_gpus", "use nccl or auto"]),
        (
            ["weight_sync.transport=nccl", "cluster.share_gpus=true"],
            ["weight_sync.transport=nccl", "cluster.share_gpus", "use ipc or auto"],
        ),
        (["weight_sync={sparse: true, transport: nccl}"], ["sparse", "transport=nccl", "sends whole", "use gloo"]),
        (
            ["weight_sync={sparse: true, transport: ipc}"],
            ["=ipc copies no weights", "remove weight_sync.sparse"],
        ),
        (["weight_sync.sparse=true", "cluster.share_gpus=true"], ["sparse: cluster.share_gpus copies no weights"]),
        (["learner.betas=[0.9,1.5]"], ["learner.betas.1", "less than 1"]),
        (["learner.betas=[-0.1,0.9]"], ["learner.betas.0", "greater than or equal to 0"]),
        (["verifiers.0.weight=.nan"], ["verifiers.0.weight", "finite"]),
        (["rollout.temperature=.inf"], ["rollout.temperature", "finite"]),
        (["algorithm.importance_cap=.inf"], ["algorithm.importance_cap", "finite"]),
        (
            ["algorithm.advantage=maxrl", "verifiers.1={name: long, use: length, options: {limit: 80, buffer: 20}}"],
            ["algorithm.advantage=maxrl", "(long) can lower them by 1", "gate=true"],
        ),
        (
            ["algorithm.advantage=maxrl", "verifiers.1={name: again, use: repetition, options: {worst: 0.5}}"],
            ["(again) can lower them by 0.5"],
        ),
        (
            ["algorithm.advantage=maxrl", "verifiers.1.weight=-0.1"],
            ["algorithm.advantage=maxrl", "weight of 0 or more"],
        ),
        (["weight_sync.probe_tokens=1"], ["weight_sync.probe_tokens", "greater than or equal to 2"]),
        (["verifiers=[]"], ["verifiers", "at least 1 item"]),
        (["learner.lora.rank=0"], ["learner.lora.rank", "greater than or equal to 1"]),
        (["learner.lora.targets=[]"], ["learner.lora.targets", "all-linear", "[]"]),
        (["learner.lora.targets=q_proj"], ["learner.lora.targets", "all-linear", "'q_proj'"]),
        (["learner.lora.ranks=4"], ["learner.lora.ranks is not a known key", "did you mean learner.lora.rank?"]),
        (
            ["learner.lora={}", "algorithm={kl: k3, kl_coefficient: 0.1, reference_refresh: 2}"],
            ["algorithm.reference_refresh=2", "learner.lora", "remove one"],
        ),
    ],
)
def test_rules_of_training(tmp_path: Path, overrides: list[str], told: list[str]) -> None:
    (line,) = problems(tmp_path, TrainConfig, TRAIN, *overrides)
    assert all(part in line for part in told), line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sft.max_tokens=5000", "policy.new.max_position=9000"], ["learner.microbatch_tokens=4096", "=5000"]),
        (["policy.new.max_position=100"], ["policy.new.max_position=100", "sft.max_tokens=1024"]),
        (["sft.batch_size=2", "learner.ranks=3"], ["sft.batch_size=2", "learner.ranks=3"]),
        (["policy.path=x"], ["exactly one of", "policy.new"]),
        (["policy.new.heads=5"], ["heads=5", "hidden_size=64"]),
        (["policy.new.key_value_heads=3"], ["key_value_heads=3"]),
        (["learner.lora.rank=8"], ["learner.lora", "random weights of policy.new", "policy.path"]),
        (["policy.new={tokenizer: bpe, vocabulary: 261}"], ["policy.new.vocabulary=261", "use 262 or more"]),
    ],
)
def test_rules_of_supervised_fine_tuning(tmp_path: Path, overrides: list[str], told: list[str]) -> None:
    (line,) = problems(tmp_path, SftConfig, SFT, *overrides)
    assert all(part in line for part in told), line


DPO = {
    "run": {"folder": "r"},
    "policy": {"path": "p"},
    "data": {"path": "pairs.jsonl"},
    "dpo": {"steps": 10},
}


REWARD = {**DPO, "reward": {"steps": 10}}
del REWARD["dpo"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["dpo.max_tokens=3000"], ["learner.microbatch_tokens=4096", "2 x dpo.max_tokens=3000", "lower max_tokens"]),
        (["dpo.loss=ipo", "dpo.label_smoothing=0.1"], ["dpo.label_smoothing=0.1 belongs to dpo.loss=sigmoid"]),
        (["dpo.loss=ipo", "data.margin=by"], ["data.margin=by belongs to dpo.loss=sigmoid"]),
        (["dpo.label_smoothing=0.1", "data.margin=by"], ["dpo.label_smoothing=0.1", "data.margin='by'", "remove one"]),
        (["data.ranking=order", "data.margin=by"], ["a ranking (data.ranking) has no margins"]),
        (["data.messages=talk"], ["data.messages='talk' belongs to grpo sft", "data.chosen"]),
        (["policy.path=null", "policy.new={}"], ["policy.new makes random weights, which only grpo sft can teach"]),
        (["dpo.batch_size=2", "learner.ranks=3"], ["dpo.batch_size=2 leaves some of learner.ranks=3 idle"]),
        (["dpo.label_smoothing=0.5"], ["dpo.label_smoothing", "less than 0.5"]),
        (["dpo.los=ipo"], ["did you mean dpo.loss?"]),
    ],
)
def test_rules_of_preferences(tmp_path: Path, overrides: list[str], told: list[str]) -> None:
    (line,) = problems(tmp_path, DpoConfig, DPO, *overrides)
    assert all(part in line for part in told), line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["reward.max_tokens=3000"], ["learner.microbatch_tokens=4096", "2 x reward.max_tokens=3000"]),
        (["reward.loss=plackett_luce", "data.margin=by"], ["data.margin belongs to reward.loss=bradley_terry"]),
        (["learner.sequence_parallel=2", "learner.ranks=2"], ["learner.sequence_parallel=2 does not work with grpo"]),
    ],
)
def test_rules_of_reward_models(tmp_path: Path, overrides: list[str], told: list[str]) -> None:
    (line,) = problems(tmp_path, RewardConfig, REWARD, *overrides)
    assert all(part in line for part in told), line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["tools=[python]"], ["'m' is a reward model, which scores single answers and no conversations"]),
        (
            ["evaluation.mode=background"],
            ["'m' is a reward model, which works inside of the run only; use mode=inline"],
        ),
    ],
)
def test_rules_of_reward_models_as_verifiers(tmp_path: Path, overrides: list[str], told: list[str]) -> None:
    models = "verifiers=[{name: m, use: reward_model, options: {path: x}}]"
    (line,) = problems(tmp_path, TrainConfig, TRAIN, models, "evaluation={data: {path: y.jsonl}}", *overrides)
    assert all(part in line for part in told), line


@pytest.mark.parametrize(
    ("device", "nodes", "shared", "chosen"),
    [
        ("cpu", 1, False, "object_store"),
        ("cpu", 2, False, "gloo"),
        ("cuda", 1, False, "nccl"),
        ("cuda", 4, False, "nccl"),
        ("cuda", 1, True, "ipc"),
        ("cpu", 1, True, "object_store"),
    ],
)
def test_auto_chooses_a_transport(device: Literal["cpu", "cuda"], nodes: int, shared: bool, chosen: str) -> None:
    assert WeightSyncConfig().choose(device, nodes, share_gpus=shared) == chosen
    assert WeightSyncConfig(transport="gloo").choose(device, nodes, share_gpus=shared) == "gloo"
    by_nodes = "object_store" if nodes == 1 else "gloo"
    assert WeightSyncConfig(sparse=True).choose(device, nodes, share_gpus=False) == by_nodes


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_a_transport_between_gpus_is_refused_without_one(transport: Literal["nccl", "ipc"]) -> None:
    with pytest.raises(ValueError, match=f"transport={transport} carries weights between GPUs.*use gloo"):
        WeightSyncConfig(transport=transport).choose("cpu", 1, share_gpus=True)


def test_maxrl_takes_a_punishment_that_a_right_answer_outweighs(tmp_path: Path) -> None:
    punished = ["algorithm.advantage=maxrl", "verifiers.1={name: long, use: repetition, weight: 0.5}"]
    load(TrainConfig, write(tmp_path, TRAIN), [*punished, "verifiers.0.gate=true"])
    (line,) = problems(tmp_path, TrainConfig, TRAIN, *punished, "verifiers.0.gate=true", "verifiers.0.weight=0.4")
    assert "lower them by 0.5" in line and "weight of 0.5 or more" in line


def test_the_edges_of_the_rules_pass(tmp_path: Path) -> None:
    overrides = ["learner.microbatch_tokens=512", "algorithm.minibatches=32", "learner.ranks=8", "rollout.group_size=8"]
    settings = load(TrainConfig, write(tmp_path, TRAIN), overrides)
    assert settings.max_sequence_tokens == 512
    with_evaluation = load(
        TrainConfig, write(tmp_path, TRAIN), ["evaluation={data: {path: a.jsonl}, max_completion_tokens: 300}"]
    )
    assert with_evaluation.max_sequence_tokens == 256 + 300


def test_overrides_reach_sections_lists_and_what_the_file_leaves_out(tmp_path: Path) -> None:
    settings = load(
        TrainConfig,
        write(tmp_path, TRAIN | {"evaluation": None}),
        [
            "rollout.group_size=16",
            "verifiers.1.weight=0.5",
            "verifiers.0={name: first, use: numeric, options: {find: [boxed]}}",
            "evaluation.data.path=held_out.jsonl",
            "learner.learning_rate=3e-5",
            "data.template='{prompt} = ?'",
            "resume=auto",
        ],
    )
    assert settings.rollout.group_size == 16
    assert [verifier.name for verifier in settings.verifiers] == ["first", "form"]
    assert settings.verifiers[1].weight == 0.5
    assert settings.verifiers[0].options == {"find": ["boxed"]}
    assert settings.evaluation is not None and settings.evaluation.data is not None
    assert settings.evaluation.data.path == "held_out.jsonl"
    assert settings.learner.learning_rate == 3e-5
    assert settings.data.template == "{prompt} = ?"
    assert settings.run.resume == "auto"


def test_a_source_has_the_keys_of_data_that_it_does_not_give(tmp_path: Path) -> None:
    data = {
        "template": "Q: {prompt}",
        "validation": 0.1,
        "choices": {"column": "options"},
        "sources": [
            {"name": "a", "path": "a.jsonl", "choices": None, "validation": None},
            {"name": "b", "path": "b.jsonl", "template": "{prompt}\n{choices}", "reference_after": "####", "ratio": 3},
        ],
    }
    path = write(tmp_path, TRAIN | {"data": data, "evaluation": {}})
    settings = load(TrainConfig, path, ["data.sources.a.prompt=question", "data.sources.b.choices.column=answers"])
    first, second = settings.data.sources
    assert (first.template, first.prompt, first.choices, first.validation) == ("Q: {prompt}", "question", None, None)
    assert (second.template, second.prompt, second.validation) == ("{prompt}\n{choices}", "prompt", 0.1)
    assert second.choices is not None and second.choices.column == "answers"
    assert (first.reference_after, second.reference_after) == (None, "####")
    assert settings.data.shares == {"a": 0.25, "b": 0.75}
    again = tmp_path / "again.yaml"
    again.write_text(dump(settings), encoding="utf-8")
    assert load(TrainConfig, again) == settings


def test_items_of_lists_have_names_in_overrides(tmp_path: Path) -> None:
    settings = load(TrainConfig, write(tmp_path, TRAIN), ["verifiers.form.weight=0.25", "verifiers.answer.weight=3"])
    assert {each.name: each.weight for each in settings.verifiers} == {"answer": 3, "form": 0.25}


def test_the_last_override_of_a_key_counts(tmp_path: Path) -> None:
    settings = load(TrainConfig, write(tmp_path, TRAIN), ["train.steps=3", "train.steps=4"])
    assert settings.train.steps == 4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("train.steps={", "not valid YAML"),
        ("verifiers.7.weight=1", "leads nowhere"),
        ("verifiers.nobody.weight=1", "leads nowhere"),
        ("verifiers.name=1", "leads nowhere"),
        ("run.folder.deep=1", "leads nowhere"),
        ("run.folder.very.deep=1", "leads nowhere"),
    ],
)
def test_a_bad_override_is_told(tmp_path: Path, override: str, told: str) -> None:
    (line,) = problems(tmp_path, TrainConfig, TRAIN, override)
    assert told in line and repr(override) in line


def test_what_is_dumped_loads_as_the_same(tmp_path: Path) -> None:
    overrides = [
        "evaluation={data: {hub: a/b, options: {x: [1, null]}}}",
        "data.system='Grüße: \"x\"\n'",
        "rollout.stop=[a]",
    ]
    settings = load(TrainConfig, write(tmp_path, TRAIN), overrides)
    again = tmp_path / "again.yaml"
    again.write_text(dump(settings), encoding="utf-8")
    assert load(TrainConfig, again) == settings
    supervised = load(SftConfig, write(tmp_path, SFT))
    again.write_text(dump(supervised), encoding="utf-8")
    assert load(SftConfig, again) == supervised


def test_a_configuration_does_not_change_after_it_is_read(tmp_path: Path) -> None:
    settings = load(TrainConfig, write(tmp_path, TRAIN))
    with pytest.raises(ValueError, match="frozen"):
        settings.train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("absent.yaml", None, "there is no configuration file"),
        ("trian.yaml", None, "did you mean"),
        ("broken.yaml", "run: [", "not valid YAML"),
        ("list.yaml", "- 1", "must hold keys with values"),
        ("empty.yaml", "", "must hold keys with values"),
        ("binary.yaml", b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, name: str, text: str | bytes | None, told: str) -> None:
    (tmp_path / "train.yaml").write_text("run: {}")
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=name) as caught:
        load(TrainConfig, tmp_path / name)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "remedy"),
    [
        ("run:\n\tfolder: x\n", 2, "replace the tab by blanks"),
        ("run:\n  folder: x\n   seed: 3\n", 3, "keys of the same section begin in the same column"),
        ("data: {path: x}\n  run: {folder: y}\n", 2, "keys of the same section begin in the same column"),
        ("verifiers:\n  - name: a\n    use: math\n - name: b\n", 4, "so do items of the same list"),
        ("run:\n  folder: x: y\n", 2, "a value that contains ': ' needs quotes"),
        ('run:\n  folder: "x\n', 3, "close the quotes or the bracket"),
        ("run: {folder: x\ntrain: {steps: 3}\n", 2, "close the bracket"),
        ("run: {folder: x\n", 2, "close the bracket"),
        ("run:\n  folder: @x\n", 2, "put the value into quotes"),
        ("run:\n  folder: %x\n", 2, "put the value into quotes"),
        ("run:\n  folder: }\n", 2, "put the value into quotes"),
        ("run:\n  folder: x\n seed: 3\n", 3, "keys of the same section begin in the same column"),
        ("run:\n  folder: x\n  seed\ntrain:\n", 4, "a blank after the colon"),
    ],
)
def test_an_error_of_yaml_names_the_line_and_the_remedy(tmp_path: Path, text: str, line: int, remedy: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="the file is not valid YAML") as caught:
        load(TrainConfig, path)
    told = str(caught.value)
    assert told.startswith(f"{path}:{line}: ") and remedy in told and "\n" not in told, told


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_recipe_loads_and_is_short(path: Path) -> None:
    settings = load_config(path)
    # A YAML file of the folder that configures the other job would be loaded by the wrong schema.
    assert isinstance(settings, SftConfig) == path.stem.endswith("_sft")
    told = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(told) <= 40


def test_there_are_recipes() -> None:
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert {"quickstart", "quickstart_sft", "gsm8k", "gsm8k_cpu", "math_8gpu"} <= names
    rows = re.findall(r"^\| `(\w+)\.yaml` \|", (CONFIGS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(names), "configs/README.md says what each recipe teaches"


def test_a_metric_that_is_not_evaluated_chooses_no_best_policy(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, TrainConfig, TRAIN, "train.keep_best=eval/accuracy")
    assert "train.keep_best=eval/accuracy needs a section evaluation" in line
    load(TrainConfig, write(tmp_path, TRAIN), ["train.keep_best=eval/accuracy", "evaluation={data: {path: a.jsonl}}"])


def test_a_config_of_the_other_job_is_refused_in_one_sentence() -> None:
    for schema, name, job in (
        (SftConfig, "quickstart", "train"),
        (TrainConfig, "quickstart_sft", "sft"),
        (TrainConfig, "dpo_quickstart", "dpo"),
        (SftConfig, "dpo_quickstart", "dpo"),
        (DpoConfig, "quickstart_sft", "sft"),
    ):
        with pytest.raises(
            ValueError, match=rf"is a config for `grpo {job}`, because it has .*run `grpo {job} "
        ) as refused:
            load(schema, CONFIGS / f"{name}.yaml")  # type: ignore[type-var]
        assert "known key" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("prime.toml", "[train]\nsteps = 5\n"), ("prime.toml", "max_steps = 5\n"), ("prime.yaml", 'name = "x"\n')],
)
def test_a_config_in_toml_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} is TOML, and a config is YAML"):
        load(TrainConfig, tmp_path / name)
