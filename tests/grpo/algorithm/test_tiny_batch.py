"""The user's functions of the objective: the trial passes what keeps the contract, and names what breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from docs_pages import block

from grpo.algorithm.choices import BUILT_IN, advantages_of, aggregation_of, choice
from grpo.algorithm.objective import policy_terms
from grpo.algorithm.packing import TrainingSequence, pack
from grpo.algorithm.tiny_batch import try_functions
from grpo.config.algorithm import KL, Advantage, Aggregation, AlgorithmConfig, Ratio

ADVANTAGE = "import torch\n\n\ndef f(rewards_PG, valid_PG):\n    "
RATIO = "import torch\n\n\ndef f(logprobs_T, old_logprobs_T, advantages_T, sequences):\n    "
AGGREGATION = "def f(lengths):\n    "
KL_ESTIMATE = "import torch\n\n\ndef f(logprobs_T, reference_logprobs_T):\n    "
IN_LOSS = {"kl_coefficient": 0.1}
REINFORCE = "-advantages_T * torch.exp(logprobs_T - old_logprobs_T)"


def config(folder: Path, kind: str, text: str, **keys: Any) -> AlgorithmConfig:
    (folder / "mine.py").write_text(text)
    return AlgorithmConfig.model_validate({kind: f"{folder}/mine.py:f", **keys})


@pytest.mark.parametrize(
    ("kind", "text", "keys", "told"),
    [
        ("advantage", ADVANTAGE + "return rewards_PG.mean(1)", {}, r"returned shape \(3,\); expected \(3, 4\)"),
        ("advantage", ADVANTAGE + "return rewards_PG - rewards_PG.mean(1, keepdim=True)", {}, "that are not valid"),
        ("advantage", ADVANTAGE + "return rewards_PG / (rewards_PG - 1)", {}, "not finite"),
        ("advantage", ADVANTAGE + "return rewards_PG * 0", {}, "nothing would be learned"),
        ("advantage", ADVANTAGE + "return rewards_PG.mul_(2)", {}, "changes the rewards"),
        ("advantage", ADVANTAGE + "return torch.rand_like(rewards_PG)", {}, "other values when it is called again"),
        ("advantage", ADVANTAGE + "return 1 / 0", {}, r"raised ZeroDivisionError.*mine.py:5\), on a tiny batch"),
        (
            "advantage",
            "def f(rewards_PG):\n    return rewards_PG",
            {},
            r"takes \(rewards_PG\) by position; exp",
        ),
        ("ratio", RATIO + f"return ({REINFORCE}).mean()", {}, r"returned shape \(\); expected \(7,\)"),
        ("ratio", RATIO + f"return -({REINFORCE})", {}, "wrong sign"),
        ("ratio", RATIO + f"return ({REINFORCE}).detach()", {}, "has no gradient with respect to logprobs_T"),
        ("ratio", RATIO + f"return {REINFORCE} + logprobs_T.mean()", {}, "change other tokens; use sequences.mask_T"),
        ("ratio", RATIO + f"return {REINFORCE} + torch.rand(1)", {}, "other values when it is called again"),
        ("ratio", RATIO + f"return {REINFORCE} * advantages_T.std()", {}, "the split of the batch"),
        ("ratio", RATIO + f"return {REINFORCE} / sequences.sum(torch.ones_like(logprobs_T))", {}, "not finite"),
        ("ratio", RATIO + f"return {REINFORCE}", {"dual_clip": 3.0}, r"does not take algorithm.dual_clip=3.0"),
        ("aggregation", AGGREGATION + "return [1.0], 1.0", {}, "expected a number for each length"),
        ("aggregation", AGGREGATION + "return [[1.0] * len(g) for g in lengths], 9.0", {}, "completion of length 0"),
        (
            "aggregation",
            AGGREGATION + "return [[float(n > 0) for n in g] for g in lengths], float(sum(map(len, lengths)))",
            {},
            "depends on completions of length 0",
        ),
        ("aggregation", AGGREGATION + "return [[-1.0 * n for n in g] for g in lengths], 1.0", {}, "of 0 or more"),
        ("kl", KL_ESTIMATE + "return (logprobs_T - reference_logprobs_T).mean()", IN_LOSS, "returned shape"),
        (
            "kl",
            KL_ESTIMATE + "return logprobs_T - reference_logprobs_T.mean()",
            IN_LOSS,
            "if other tokens are in the batch",
        ),
        ("kl", KL_ESTIMATE + "return (logprobs_T - reference_logprobs_T).detach()", IN_LOSS, "has no gradient"),
        (
            "kl",
            KL_ESTIMATE + "return logprobs_T",
            {**IN_LOSS, "options": {"sacle": 1}},
            "options.sacle is no",
        ),
        (
            "kl",
            "def f(logprobs_T, reference_logprobs_T, *, scale):\n    return scale * logprobs_T",
            IN_LOSS,
            r"needs a value for scale; set algorithm\.options\.scale",
        ),
    ],
)
def test_what_breaks_a_contract_is_told(tmp_path: Path, kind: str, text: str, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        try_functions(config(tmp_path, kind, text, **keys), 20)
    assert f"algorithm.{kind}={tmp_path}/mine.py:f" in str(caught.value) or "algorithm.options" in str(caught.value)


@pytest.mark.parametrize("kind", ["advantage", "ratio", "aggregation", "kl"])
def test_every_built_in_choice_passes_as_a_function_of_ones_own(kind: Any) -> None:
    for name, function in BUILT_IN[kind].items():
        keys: dict[str, Any] = {"kl": "none"} | {kind: f"{function.__module__}:{function.__name__}"}
        keys |= {"kl_coefficient": 0.1} if kind == "kl" else {}
        keys |= {"pass_k": 2} if name == "pass_at_k" else {}
        assert try_functions(AlgorithmConfig.model_validate(keys), 20) == [f"algorithm.{kind}"]


def test_every_name_of_the_config_has_a_function_that_says_what_it_does() -> None:
    names = {"advantage": get_args(Advantage), "ratio": get_args(Ratio), "aggregation": get_args(Aggregation)}
    names["kl"] = tuple(name for name in get_args(KL) if name != "none")
    assert {kind: tuple(functions) for kind, functions in BUILT_IN.items()} == names
    said = [choice(kind, name).said for kind, functions in BUILT_IN.items() for name in functions]
    assert all(said) and len(set(said)) == len(said)


def test_the_page_s_functions_compute_what_they_say_whatever_the_split(tmp_path: Path) -> None:
    (tmp_path / "my_objective.py").write_text(block("objectives.md", "python", "def above_median("))
    named = {
        "advantage": "above_median",
        "ratio": "capped",
        "aggregation": "root_mean",
        "kl": "absolute",
    }
    algorithm = AlgorithmConfig.model_validate(
        {key: f"{tmp_path}/my_objective.py:{name}" for key, name in named.items()}
        | {"kl_coefficient": 0.01, "clip_high": 0.2, "options": {"scale": 0.5}}
    )
    assert len(try_functions(algorithm, 20)) == 4
    valid_PG = torch.tensor([[True, True, True, False]])
    found_PG = advantages_of(algorithm, torch.tensor([[1.0, 0.0, 0.5, 9.0]]), valid_PG)
    assert found_PG.tolist() == [[0.25, -0.25, 0.0, 0.0]]
    weights, denominator = aggregation_of(algorithm, 20)([[4, 1, 0]])
    assert (weights, denominator) == ([[0.5, 1.0, 0.0]], 3.0)
    sequences = [
        TrainingSequence((1, 2, 3, 4, 5), 1, (-1.0, -0.5, -2.0, -1.5), 0.25, 0.5),
        TrainingSequence((1, 2), 1, (-0.7,), -0.25, 1.0),
        TrainingSequence((1, 2, 3), 1, (-0.7, -0.1), 0.0, 0.5),
    ]
    logprobs = [torch.tensor([-0.9, -0.9, -1.9, -0.1]), torch.tensor([-0.2]), torch.tensor([-0.4, -0.3])]

    def gradient(parts: list[list[int]]) -> list[float]:
        new = [row.clone().requires_grad_() for row in logprobs]
        for part in parts:
            batch = pack([sequences[place] for place in part])
            new_T = torch.cat([new[place] for place in part])
            terms = policy_terms(algorithm, batch, new_T, torch.zeros_like(new_T), batch.old_logprobs_T - 0.1)
            (terms.loss_sum / denominator).backward()  # type: ignore[no-untyped-call]
        return [float(value) for row in new for value in row.grad]  # type: ignore[union-attr]

    whole = gradient([[0, 1, 2]])
    assert all(whole)
    for parts in ([[0], [1], [2]], [[2, 0], [1]], [[1, 2], [0]]):
        assert gradient(parts) == pytest.approx(whole, rel=1e-5)


def test_a_name_that_is_neither_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"should be 'group_std', .*file\.py:function; did you mean 'group_std'"):
        AlgorithmConfig.model_validate({"advantage": "grup_std"})
    problems = list(AlgorithmConfig.model_validate({"options": {"clip_low": 1, "x": 2}}).problems(8))
    assert ["names no function" in problem for problem in problems] == [True, False]
    assert "set algorithm.clip_low" in problems[1]


def test_other_processes_find_the_file_wherever_they_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    algorithm = AlgorithmConfig(advantage="mine.py:f", ratio="package.module:g")
    found = algorithm.with_absolute_files()
    assert (found.advantage, found.ratio) == (f"{tmp_path}/mine.py:f", "package.module:g")
    # A loss of the user's may move a completion without advantage, so none is left out.
    assert not found.only_advantages_teach and AlgorithmConfig().only_advantages_teach
