"""The reward models among a run's verifiers: whether they fit the policy, and how they start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from grpo import config
from grpo.cluster.device import planned_device
from grpo.cluster.reward_models.actor import ScorerSetup
from grpo.cluster.reward_models.group import RewardModelProcess
from grpo.config.verifiers import specs_of
from grpo.policy.score_scale import SCALE_FILE, ScoreScale
from grpo.policy.stored import end_tokens
from rewards.build import REWARD_MODEL, VerifierSpec
from rewards.verifiers.reward_model import RewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_models(settings: config.TrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that each reward model can score the policy's completions, without loading its weights.

    Raises:
        ValueError: a model cannot; the message has the reason and the remedy.
    """
    from grpo.policy.scores import check_scorer  # It imports transformers.

    for spec in specs_of(settings.verifiers, settings.verification):
        if spec.use != REWARD_MODEL:
            continue
        options = options_of(spec)
        check_scorer(options.path, _key(spec), tokenizer, settings.max_sequence_tokens)
        _scale(spec, options)
        if options.device == "gpu" and planned_device(settings.cluster) == "cpu":
            raise ValueError(f"{_key(spec)}: device=gpu, but cluster.device is a CPU; set device=cpu")


def open_model(
    spec: VerifierSpec,
    tokenizer: PreTrainedTokenizerBase,
    policy_path: str,
    dtype: config.Dtype,
    longest: int,
    start_s: float,
) -> RewardModelProcess:
    """Start the process of a reward model; the arguments are those of `Verification.open_models`.

    Raises:
        ValueError: the model cannot score this policy's completions, or cannot be loaded.
        TimeoutError: the model was not loaded within `start_s` seconds.
    """
    from grpo.policy.scores import check_scorer  # It imports transformers.

    options = options_of(spec)
    check_scorer(options.path, _key(spec), tokenizer, longest)
    assert isinstance(tokenizer.eos_token_id, int), "sampling needs an end token"
    device = "cuda" if options.device == "gpu" else "cpu"
    # The process may run in another folder.
    path = str(Path(options.path).absolute()) if Path(options.path).is_dir() else options.path
    return RewardModelProcess(
        ScorerSetup(spec.name, path, dtype, device, options.threads, options.batch_tokens),
        scale=_scale(spec, options),
        end_token=tokenizer.eos_token_id,
        end_tokens=end_tokens(policy_path, tokenizer),
        deadline_s=options.deadline_s,
        start_s=start_s,
    )


def options_of(spec: VerifierSpec) -> RewardModel:
    """Return the options of a reward model.

    Raises:
        ValueError: an option is unknown, or has a value that it cannot have.
    """
    try:
        return RewardModel(**spec.options)
    except TypeError as problem:
        raise ValueError(f"{_key(spec)}: {problem}; docs/reward_models.md lists the options") from problem


def _scale(spec: VerifierSpec, options: RewardModel) -> ScoreScale | None:
    if not options.normalise:
        return None
    scale = ScoreScale.read(Path(options.path))
    if scale is None:
        raise ValueError(
            f"{_key(spec)}: {options.path} has no {SCALE_FILE} with the scale of its scores, as `grpo reward` writes; "
            "set normalise: false to use the scores as they are"
        )
    return scale


def _key(spec: VerifierSpec) -> str:
    return f"verifier {spec.name!r} (reward_model)"
