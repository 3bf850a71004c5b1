"""The part of `grpo check` that reports why a run would not start: all reasons at once, from policy, data and code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from grpo import config
from grpo.config.verifiers import specs_of
from grpo.data.described import describe
from grpo.data.preferences import ranked_answers
from grpo.data.rows import HubUnreachable
from grpo.data.supervised import supervised_turns
from grpo.planning.gold import check_verifiers
from grpo.policy.adapters import require_peft
from grpo.policy.stored import check_positions, load_tokenizer, local_or_hub
from grpo.report.trackers import require_trackers
from grpo.run.functions import Callbacks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def checked_tokenizer(settings: config.JobConfig) -> PreTrainedTokenizerBase | None:
    """Check packages, policy, functions and verifiers; return the policy's tokenizer, or None for a new policy.

    If there is a problem, the data are read too, without the tokenizer, so that one message has all problems.

    Raises:
        ValueError: there are problems.
    """
    tokenizers: list[PreTrainedTokenizerBase] = []
    checks: list[Callable[[], object]] = [
        lambda: require_peft(settings.learner),
        lambda: require_trackers(settings.report.trackers),
        lambda: check_positions(settings),
    ]
    if not settings.policy.new:
        checks.append(lambda: tokenizers.append(load_tokenizer(local_or_hub(settings.policy))))
    if isinstance(settings, config.TrainConfig):
        memory_mib, specs = settings.verification.memory_mib, specs_of(settings.verifiers, settings.verification)
        checks += [lambda: Callbacks(settings), lambda: check_verifiers(specs, memory_mib)]
    problems = list(_problems(checks))
    if problems:
        problems += _problems(_readings(settings))
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return tokenizers[0] if tokenizers else None


def _readings(settings: config.JobConfig) -> list[Callable[[], object]]:
    """Functions that read each source of the data without a tokenizer."""
    if isinstance(settings, config.DpoConfig):
        preferences = settings.data
        return [lambda: ranked_answers(preferences)]
    if isinstance(settings, config.FineTuningConfig):
        data = settings.data
        return [lambda: supervised_turns(data)]
    sources: Mapping[str, config.DatasetConfig] = {
        settings.data.section(name): rows for name, rows in settings.data.by_name.items()
    }
    if settings.evaluation and settings.evaluation.data:
        sources = {**sources, "evaluation.data": settings.evaluation.data}
    return [functools.partial(describe, rows, where) for where, rows in sources.items()]


def _problems(checks: list[Callable[[], object]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except HubUnreachable:
            # Nothing is known about these rows. `grpo check` says so when nothing else stops it.
            continue
        except ValueError as problem:
            yield str(problem)
