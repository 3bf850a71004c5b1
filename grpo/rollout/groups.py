"""Make scored groups from prompts, with two functions: `Generate` samples completions, and `Verify` verifies them."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from grpo.algorithm.advantages import informative_groups
from grpo.rollout.world_verdicts import environment_verdict, failed_verdicts, has_failed, transcript
from grpo.types import Completion, Group, Prompt, Rollout
from rewards.build import ELSEWHERE, ENVIRONMENT, VerifierSpec
from rewards.compose import combine
from rewards.judging import Pool, judge
from rewards.selection import choose
from rewards.verdict import Verdict

# Function that samples a group for each prompt. It yields (index of the prompt, completions) as groups finish, in any
# order.
Generate = Callable[[Sequence[Prompt]], Iterable[tuple[int, Sequence[Completion]]]]
# Function that starts the verification of a group. For each completion, it returns the futures of the verdicts, by the
# verifier's name.
Verify = Callable[[Prompt, Sequence[Completion]], Sequence[Mapping[str, Future[Verdict]]]]


def collect(
    prompts: Sequence[Prompt],
    generate: Generate,
    verify: Verify,
    specs: Sequence[VerifierSpec],
    *,
    verdict_wait_s: float,
) -> Iterator[tuple[int, Group]]:
    """Sample and score a group for each prompt; yield each group when it finishes.

    Verification of a group starts as soon as the group is sampled. Meanwhile, sampling of the other groups continues.

    Args:
        prompts: prompts to sample for.
        generate: function that samples.
        verify: function that starts the verification of a group by the verifiers that judge its row.
        specs: verifiers, with their weights. The reward of a completion combines the verdicts of the verifiers that
            judge the prompt's row.
        verdict_wait_s: longest wait for a verdict, in seconds, after all groups are sampled.

    Yields:
        (index of the prompt, group).

    Raises:
        TimeoutError: a verdict did not arrive in time. Each verdict has a deadline, so in this case the pool itself
            hangs.
        RuntimeError: a prompt got no group, or two groups.
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
    """Start the verification of a group by the verifiers that judge its row (see `rewards.judging.judge`).

    A conversation whose world failed gets no verdicts here. The rewards of the environment and of reward models do not
    come from the pool.
    """
    names = [spec.name for spec in choose(specs, prompt.row) if spec.use not in ELSEWHERE]
    judged = [each for each in completions if not has_failed(each)]
    dialogues = [each.dialogue for each in judged if each.dialogue is not None]
    transcripts = [transcript(each) for each in dialogues] if dialogues and len(dialogues) == len(judged) else None
    texts, tokens = [each.text for each in judged], [each.sampled_tokens for each in judged]
    verdicts = iter(judge(pool, names, prompt.reference, prompt.row, texts, tokens, transcripts) if judged else ())
    return [{} if has_failed(each) else next(verdicts) for each in completions]


class Verifying:
    """Sampled groups whose verdicts have not all arrived."""

    def __init__(self, verify: Verify, specs: Sequence[VerifierSpec]) -> None:
        """Start without groups; the arguments are the same as in `collect`."""
        self._verify = verify
        self._specs = specs
        self._waiting: dict[int, tuple[Prompt, Sequence[Completion], Sequence[Mapping[str, Future[Verdict]]]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, index: int, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """Start the verification of a group; `done` returns the group together with `index`."""
        self._waiting[index] = (prompt, completions, self._verify(prompt, completions))

    def sampled(self) -> dict[int, Sequence[Completion]]:
        """Return the groups whose verdicts have not all arrived: index -> completions."""
        return {index: completions for index, (_, completions, _) in self._waiting.items()}

    def done(self) -> list[tuple[int, Group]]:
        """Remove and return the groups that have all their verdicts."""
        done = [index for index, (_, _, verdicts) in self._waiting.items() if _all_done(verdicts)]
        return [(index, _group(*self._waiting.pop(index), self._specs)) for index in done]

    def wait(self, timeout_s: float) -> bool:
        """Wait for the verdicts of the group that was started first; return False if verdicts are still missing."""
        return not concurrent.futures.wait(self._first()[1], timeout=timeout_s).not_done

    def late(self, waited_s: float) -> TimeoutError:
        """Return the error that names the missing verdicts of `wait`."""
        prompt, pending = self._first()
        count = sum(not future.done() for future in pending)
        return TimeoutError(f"{count} verdicts on prompt {prompt.id} did not come within {waited_s:.0f} s")

    def _first(self) -> tuple[Prompt, list[Future[Verdict]]]:
        prompt, _, verdicts = next(iter(self._waiting.values()))
        return prompt, [future for named in verdicts for future in named.values()]


def with_refills(wanted: int, sample: Callable[[int, int], Sequence[Group]], rounds: int) -> list[Group]:
    """Sample groups until enough groups have variance: for each group without variance, sample another group.

    This is DAPO's dynamic sampling, Yu et al. 2025 (arXiv:2503.14476), section 3.2, with a limited number of rounds. A
    round requests exactly the number of missing groups. So the result never has more groups with variance than
    `wanted`, and it contains every sampled group.

    Args:
        wanted: number of groups in the first round, and wanted number of groups with variance.
        sample: function that takes a count and the number of the round (0 for the first round), and returns that many
            further groups.
        rounds: largest number of rounds after the first round.
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
        if completion.dialogue is not None and has_failed(completion):
            rollouts.append(Rollout(completion, failed_verdicts(completion.dialogue, chosen), None))
            continue
        verdicts = {
            spec.name: environment_verdict(completion.dialogue, spec)
            if spec.use == ENVIRONMENT
            else named[spec.name].result()
            for spec in chosen
        }
        rollouts.append(Rollout(completion, verdicts, combine(chosen, verdicts).value))
    return Group(prompt, tuple(rollouts))


def seed_of(run_seed: int, step: int, prompt: Prompt, refill: int = 0) -> int:
    """Return the seed of a group's samples. The same run, step, refill and prompt give the same seed on every machine.

    `step` is the step that would train on the group if sampling did not run ahead (`Ticket.batch` in
    `grpo.rollout.staleness`). So the seed does not depend on the time of sampling.
    """
    again = f"/{refill}" if refill else ""
    digest = hashlib.blake2b(f"{run_seed}/{step}/{prompt.id}{again}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def reward_tensors(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Return the rewards of the groups, and a mask of the known rewards.

    Returns:
        rewards_PG: float32 [groups, completions of the largest group], 0 if the reward is unknown.
        valid_PG: bool, same shape; True if the reward is known.
    """
    size = max(len(group.rollouts) for group in groups)
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups]
    padded = [[*of_group, *[None] * (size - len(of_group))] for of_group in rewards]
    rewards_PG = torch.tensor([[reward or 0.0 for reward in of_group] for of_group in padded], dtype=torch.float32)
    return rewards_PG, torch.tensor([[reward is not None for reward in of_group] for of_group in padded])


def known_rows(values_PG: Tensor, valid_PG: Tensor) -> list[list[float | None]]:
    """Return the rows of `values_PG` as plain numbers, with None for each value that is not valid."""
    return [
        [value if valid else None for value, valid in zip(values_G, valid_G, strict=True)]
        for values_G, valid_G in zip(values_PG.tolist(), valid_PG.tolist(), strict=True)
    ]
