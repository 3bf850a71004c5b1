"""Send an evaluation's completions to the verifier: each alone, or all of a problem and seed as a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future

from grpo.evaluation.problems import Problem
from grpo.evaluation.questions import Sample
from grpo.evaluation.store import Key, Record
from rewards.judging import judge
from rewards.pool import VerifierPool
from rewards.verdict import Verdict

# A completion with the future of its verdict.
Asking = tuple[Key, Sample, Future[Verdict]]


class Judging:
    """Requests verdicts from the verifier pool.

    A group verifier judges the `k` completions of a problem and seed together, as soon as all of them exist. A group
    may contain stored completions; the verifier judges them again with the new completions.
    """

    def __init__(
        self, name: str, problems: Sequence[Problem], k: int, pool: VerifierPool, records: Mapping[Key, Record]
    ) -> None:
        """Store the arguments; request no verdict yet.

        Args:
            name: name of the task, and of its verifier in the pool.
            problems: problems of the task.
            k: number of completions for each problem and seed.
            pool: pool that runs the verifier.
            records: stored completions, by key.
        """
        self._name, self._k, self._pool = name, k, pool
        self._problems = {problem.id: problem for problem in problems}
        self._records = records
        self._in_groups = pool.judges_groups(name)
        self._waiting: dict[Key, Sample] = {}

    def add(self, key: Key, sample: Sample) -> list[Asking]:
        """Add a completion. Return the requests that start now: for this completion, for its group, or none yet."""
        if sample.verdict is not None:
            known: Future[Verdict] = Future()
            known.set_result(sample.verdict)
            return [(key, sample, known)]
        if not self._in_groups:
            return self._ask([(key, sample)])
        self._waiting[key] = sample
        keys = [(key[0], key[1], number) for number in range(self._k)]
        if any(member not in self._waiting and member not in self._records for member in keys):
            return []
        return self._ask([(member, self._taken(member)) for member in keys])

    def refuse(self, key: Key, refusal: str) -> None:
        """Note that there is no completion for a key.

        Raises:
            RuntimeError: a group verifier cannot judge the group without it.
        """
        if self._in_groups:
            raise RuntimeError(
                f"{key[0]}: {refusal}. The verifier judges the {self._k} completions of a problem together, so none "
                "may be missing. Earlier completions are stored; the same command continues the evaluation"
            )

    def _taken(self, key: Key) -> Sample:
        return self._waiting.pop(key) if key in self._waiting else _sample(self._records[key])

    def again(self, failed: Iterable[Record]) -> list[Asking]:
        """Judge stored completions again. A group verifier judges the whole group, if the group is complete."""
        known = [record for record in failed if record.problem in self._problems]
        if not self._in_groups:
            return [asking for record in known for asking in self._ask([(record.key, _sample(record))])]
        requests: list[Asking] = []
        for problem, seed in dict.fromkeys((record.problem, record.seed) for record in known):
            keys = [(problem, seed, number) for number in range(self._k)]
            if all(key in self._records for key in keys):
                requests += self._ask([(key, _sample(self._records[key])) for key in keys])
        return requests

    def _ask(self, group: Sequence[tuple[Key, Sample]]) -> list[Asking]:
        problem = self._problems[group[0][0][0]]
        texts, tokens = [sample.text for _, sample in group], [sample.tokens for _, sample in group]
        messages = [sample.conversation["messages"] for _, sample in group if sample.conversation]
        transcripts = messages if len(messages) == len(group) else None
        verdicts = judge(self._pool, [self._name], problem.reference, problem.row, texts, tokens, transcripts)
        return [(key, sample, named[self._name]) for (key, sample), named in zip(group, verdicts, strict=True)]


def _sample(record: Record) -> Sample:
    return Sample(record.completion, record.completion_tokens, record.finish_reason, conversation=record.conversation)
