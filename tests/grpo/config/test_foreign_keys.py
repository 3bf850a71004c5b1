"""Keys of other trainers: what a user who brings them is told, and docs/migrating.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.config.foreign_keys import FOREIGN_KEYS, ForeignKey
from grpo.config.migrating import DEFAULTS, ForeignDefault, foreign_hints, markdown
from grpo.config.reference import defaults, matching, reference

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
OURS = {name for part in reference() for name in (part.name, *(key.name for key in part.keys))}


def problems(*overrides: str) -> str:
    with pytest.raises(ValueError) as refused:
        load(TrainConfig, QUICKSTART, overrides)
    return str(refused.value)


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    assert page == markdown(defaults()), "run `grpo config --migrating > docs/migrating.md`"


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda default: default.ours)
def test_the_page_has_a_default_of_ours_that_differs(default: ForeignDefault) -> None:
    ours = defaults()[default.ours]
    assert f"| `{default.ours}` | `{ours}` | {default.verl} | {default.trl} |" in markdown(defaults())
    plain = ours.strip("[]")
    assert any(there.strip("`").split(":")[0] != plain for there in (default.verl, default.trl))


def test_the_table_has_the_keys_of_four_trainers() -> None:
    assert len(FOREIGN_KEYS) >= 40
    counts = {
        name: sum(key.trainer == name for key in FOREIGN_KEYS) for name in ("verl", "TRL", "OpenRLHF", "prime-rl")
    }
    assert sum(counts.values()) == len(FOREIGN_KEYS) and min(counts.values()) >= 20
    assert len({(key.trainer, key.name) for key in FOREIGN_KEYS}) == len(FOREIGN_KEYS)


@pytest.mark.parametrize("key", FOREIGN_KEYS, ids=lambda key: f"{key.trainer} {key.name}")
def test_each_key_leads_to_a_key_that_exists(key: ForeignKey) -> None:
    assert key.ours in OURS if key.ours else key.note
    # A key that exists here too would never be explained.
    assert key.name not in OURS
    (hint,) = foreign_hints(key.name, 1)
    assert hint.startswith(f"{key.name} is not a known key; it is a key of ") and key.trainer in hint
    assert key.ours in hint and key.note in hint


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "beta=0.04",
            "beta is not a known key; it is a key of TRL: write algorithm.kl_coefficient (also set algorithm",
        ),
        ("num_generations=8", "it is a key of TRL: write rollout.group_size"),
        ("learner.max_grad_norm=1", "learner.max_grad_norm is not a known key; it is a key of TRL: write learner.grad"),
        ("data.train_batch_size=64", "it is a key of verl: write rollout.prompts_per_step"),
        ("algorithm.adv_estimator=grpo", "it is a key of verl: write algorithm.advantage"),
        (
            "actor_rollout_ref.rollout.n=8",
            "actor_rollout_ref.rollout.n is not a known key; it is a key of verl: write ",
        ),
        ("orchestrator.rollouts_per_example=8", "it is a key of prime-rl: write rollout.group_size"),
        ("n_samples_per_prompt=8", "it is a key of OpenRLHF: write rollout.group_size"),
        ("algorithm.adv_estimator=grpo", "it is a key of verl: write algorithm.advantage=group_std (grpo is"),
        ("algorithm.advantage=grpo", "; write algorithm.advantage=group_std, which is 'grpo' of verl"),
        ("algorithm.advantage=group_norm", "; write algorithm.advantage=group_std, which is 'group_norm' of OpenRLHF"),
        ("algorithm.advantage=rloo", "=leave_one_out, which is 'rloo' of verl and OpenRLHF"),
        ("algorithm.aggregation=seq-mean-token-mean", "write algorithm.aggregation=sequence_mean, which is"),
        ("algorithm.kl=low_var_kl", "write algorithm.kl=k3, which is 'low_var_kl' of verl"),
        ("packing_samples=true", "it is a key of OpenRLHF: leave it out: sequences are always packed"),
        ("temperature=0.7", "temperature is not a known key; did you mean rollout.temperature?"),
    ],
)
def test_an_unknown_key_of_another_trainer_is_explained(override: str, told: str) -> None:
    assert told in problems(override)


def test_a_translated_value_is_a_value_here() -> None:
    for key in FOREIGN_KEYS:
        kind = next((each.kind for part in reference() for each in part.keys if each.name == key.ours), "")
        for value in key.values.values():
            assert value in ("auto", "parameters") or f"`{value}`" in kind or kind == "true or false", (key, kind)


def test_a_whole_foreign_section_is_explained_key_by_key() -> None:
    section = "{rollout: {n: 8, temperature: 0.7, nnn: 1}, actor: {optim: {lr: 1e-6}, a: 1, b: 2, c: 3, d: 4}}"
    text = problems(f"actor_rollout_ref={section}")
    assert "5 problems" not in text and "4 problems" in text
    for name in ("rollout.group_size", "rollout.temperature", "learner.learning_rate"):
        assert f"write {name}" in text
    assert "actor_rollout_ref.rollout.nnn, actor_rollout_ref.actor.a, actor_rollout_ref.actor.b and 2 more: not" in text


def test_a_name_that_trainers_share_is_explained_for_each() -> None:
    (hint,) = foreign_hints("max_steps", 5)
    assert hint == "max_steps is not a known key; it is a key of TRL and prime-rl: write train.steps"


def test_words_are_searched() -> None:
    assert [key.name for part in matching("warm") for key in part.keys] == ["learner.warmup_steps"]
    # No name has this word, so descriptions are searched.
    assert "rollout.max_policy_lag" in [key.name for part in matching("policy versions") for key in part.keys]
    with pytest.raises(ValueError, match=r"it is a key of TRL: write algorithm\.kl_coefficient"):
        matching("beta")


def test_a_key_whose_sections_are_left_out_is_known_by_its_last_word() -> None:
    for path in ("kl_coef", "algorithm.kl_coef", "actor.kl_loss_coef"):
        (hint,) = foreign_hints(path, 0.1)
        assert hint == f"{path} is not a known key; it is a key of verl: write algorithm.kl_coefficient"
    # The same word here: the section is misspelt.
    assert foreign_hints("rolout.group_size", 4) == []
