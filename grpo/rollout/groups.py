"""From prompts to scored groups, through two callables: one that samples and one that verifies."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from grpo.algorithm.advantages import informative_groups
from grpo.types import Completion, Group, Prompt, Rollout
from rewards.build import VerifierSpec
from rewards.compose import combine
from rewards.judging import Pool, judge
from rewards.selection import choose
from rewards.verdict import Verdict

# Yields (index of the prompt, its completions) as groups finish, in any order.
Generate = Callable[[Sequence[Prompt]], Iterable[tuple[int, Sequence[Completion]]]]
# Starts the verification of a group: for each completion a future for each verifier, by name.
Verify = Callable[[Prompt, Sequence[Completion]], Sequence[Mapping[str, Future[Verdict]]]]


def collect(
    prompts: Sequence[Prompt],
    generate: Generate,
    verify: Verify,
    specs: Sequence[VerifierSpec],
    *,
    verdict_wait_s: float,
) -> Iterator[tuple[int, Group]]:
    """Sample and score a group for each prompt; groups come as they finish.

    Verification of a group starts the moment it is sampled and runs beside the sampling of the others.

    Args:
        prompts: what to sample for.
        generate: samples.
        verify: starts the verification of a group by the verifiers that judge its row.
        specs: how verdicts make a reward; of these, a row's reward is made of those that judge it.
        verdict_wait_s: longest wait for a verdict once all groups are sampled.

    Yields:
        (index of the prompt, group).

    Raises:
        TimeoutError: a verdict did not come in time: the pool itself hangs, as single verdicts have deadlines.
        RuntimeError: a prompt got no group, or two.
    """
    verifying = Verifying(verify, specs)
    missing = set(range(len(prompts)))
    for index, completions in generate(prompts):
        if index not in missing:
            raise RuntimeError(f"prompt {index} got a second group")
        missing.remove(index)
        verifying.start(index, prompts[index], completions)
        yield from verifying.done()
    if missing:
        raise RuntimeError(f"{len(missing)} of {len(prompts)} prompts got no group, the first is {min(missing)}")
    while verifying:
        if not verifying.wait(verdict_wait_s):
            raise verifying.late(verdict_wait_s)
        yield from verifying.done()


def judge_group(
    pool: Pool, specs: Sequence[VerifierSpec], prompt: Prompt, completions: Sequence[Completion]
) -> list[dict[str, Future[Verdict]]]:
    """Start the verification of a group by the verifiers that judge its row; `rewards.judging.judge` says more."""
    names = [spec.name for spec in choose(specs, prompt.row)]
    texts, tokens = [each.text for each in completions], [len(each.token_ids) for each in completions]
    return judge(pool, names, prompt.reference, prompt.row, texts, tokens)


class Verifying:
    """Groups that are sampled and wait for their verdicts."""

    def __init__(self, verify: Verify, specs: Sequence[VerifierSpec]) -> None:
        """Begin with none; the arguments are those of `collect`."""
        self._verify = verify
        self._specs = specs
        self._waiting: dict[int, tuple[Prompt, Sequence[Completion], Sequence[Mapping[str, Future[Verdict]]]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, index: int, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """Start the verification of a group, which the caller knows by `index`."""
        self._waiting[index] = (prompt, completions, self._verify(prompt, completions))

    def done(self) -> list[tuple[int, Group]]:
        """Hand out the groups that have all of their verdicts by now."""
        done = [index for index, (_, _, verdicts) in self._waiting.items() if _all_done(verdicts)]
        return [(index, _group(*self._waiting.pop(index), self._specs)) for index in done]

    def wait(self, timeout_s: float) -> bool:
        """Wait for the verdicts of the group that was started first; False where some are still out."""
        return not concurrent.futures.wait(self._first()[1], timeout=timeout_s).not_done

    def late(self, waited_s: float) -> TimeoutError:
        """The error that tells what `wait` waited for."""
        prompt, pending = self._first()
        count = sum(not future.done() for future in pending)
        return TimeoutError(f"{count} verdicts on prompt {prompt.id} did not come within {waited_s:.0f} s")

    def _first(self) -> tuple[Prompt, list[Future[Verdict]]]:
        prompt, _, verdicts = next(iter(self._waiting.values()))
        return prompt, [future for named in verdicts for future in named.values()]


def with_refills(wanted: int, sample: Callable[[int, int], Sequence[Group]], rounds: int) -> list[Group]:
    """So many groups, and others in place of groups without variance, until enough have some.

    DAPO's dynamic sampling, Yu et al. 2025 (arXiv:2503.14476), section 3.2, bounded and without waste: a round asks for
    exactly as many groups as are missing, so that no group with variance is ever too many, and every group that was
    sampled is returned.

    Args:
        wanted: groups of the first round, and groups with variance that are wanted.
        sample: how many, and the number of the round, from 0 -> further groups.
        rounds: after the first, at most.
    """
    groups = list(sample(wanted, 0))
    for number in range(1, rounds + 1):
        missing = wanted - int(informative_groups(*reward_tensors(groups)).sum())
        if missing == 0:
            break
        groups += sample(missing, number)
    return groups


def _all_done(verdicts: Sequence[Mapping[str, Future[Verdict]]]) -> bool:
    return all(future.done() for named in verdicts for future in named.values())


def _group(
    prompt: Prompt,
    completions: Sequence[Completion],
    futures: Sequence[Mapping[str, Future[Verdict]]],
    specs: Sequence[VerifierSpec],
) -> Group:
    rollouts = []
    chosen = choose(specs, prompt.row)
    for completion, named in zip(completions, futures, strict=True):
        verdicts = {name: future.result() for name, future in named.items()}
        rollouts.append(Rollout(completion, verdicts, combine(chosen, verdicts).value))
    return Group(prompt, tuple(rollouts))


def seed_of(run_seed: int, step: int, prompt: Prompt, refill: int = 0) -> int:
    """Seed of a group's samples: the same for the same run, step, refill and prompt, wherever it is sampled.

    `step` is the one that the group is for where nothing is sampled ahead, whenever it is sampled
    (`grpo.rollout.staleness.Ticket.batch`).
    """
    again = f"/{refill}" if refill else ""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt.id}{again}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def reward_tensors(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Rewards of the groups, and which of them are known.

    Returns:
        rewards_PG, float32 [groups, completions of the largest group], 0 where unknown; valid_PG, bool, same shape.
    """
    size = max(len(group.rollouts) for group in groups)
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    padded = [[*of_group, *[None] * (size - len(of_group))] for of_group in rewards]
    rewards_PG = torch.tensor([[one or 0.0 for one in of_group] for of_group in padded], dtype=torch.float32)
    return rewards_PG, torch.tensor([[one is not None for one in of_group] for of_group in padded])


def known_rows(values_PG: Tensor, valid_PG: Tensor) -> list[list[float | None]]:
    """The rows of [P, G] as plain numbers, None where not valid."""
    return [
        [value if valid else None for value, valid in zip(values_G, valid_G, strict=True)]
        for values_G, valid_G in zip(values_PG.tolist(), valid_PG.tolist(), strict=True)
    ]
