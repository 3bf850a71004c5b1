"""An evaluation's completions on their way to the verifier, alone or as the group of their problem and seed."""

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
    """Asks for verdicts.

    A group verifier judges the `k` completions of one problem and seed together, as soon as all of them are there;
    those that are stored take part, and are judged anew with the others.
    """

    def __init__(
        self, name: str, problems: Sequence[Problem], k: int, pool: VerifierPool, records: Mapping[Key, Record]
    ) -> None:
        """Nothing is asked yet.

        Args:
            name: of the task, and of its verifier in the pool.
            problems: the task's.
            k: completions for each problem and seed.
            pool: runs the verifier.
            records: what is stored.
        """
        self._name, self._k, self._pool = name, k, pool
        self._problems = {problem.id: problem for problem in problems}
        self._records = records
        self._in_groups = pool.judges_groups(name)
        self._waiting: dict[Key, Sample] = {}

    def add(self, key: Key, sample: Sample) -> list[Asking]:
        """Take a completion; what is asked of the pool now: it alone, its whole group, or nothing yet."""
        if not self._in_groups:
            return self._ask([(key, sample)])
        self._waiting[key] = sample
        keys = [(key[0], key[1], number) for number in range(self._k)]
        if any(one not in self._waiting and one not in self._records for one in keys):
            return []
        return self._ask([(one, self._taken(one)) for one in keys])

    def _taken(self, key: Key) -> Sample:
        return self._waiting.pop(key) if key in self._waiting else _sample(self._records[key])

    def again(self, failed: Iterable[Record]) -> list[Asking]:
        """Ask anew for stored completions; of those in groups that are whole, for the groups."""
        known = [record for record in failed if record.problem in self._problems]
        if not self._in_groups:
            return [asking for one in known for asking in self._ask([(one.key, _sample(one))])]
        asked: list[Asking] = []
        for problem, seed in dict.fromkeys((one.problem, one.seed) for one in known):
            keys = [(problem, seed, number) for number in range(self._k)]
            if all(key in self._records for key in keys):
                asked += self._ask([(key, _sample(self._records[key])) for key in keys])
        return asked

    def _ask(self, group: Sequence[tuple[Key, Sample]]) -> list[Asking]:
        problem = self._problems[group[0][0][0]]
        texts, tokens = [sample.text for _, sample in group], [sample.tokens for _, sample in group]
        verdicts = judge(self._pool, [self._name], problem.reference, problem.row, texts, tokens)
        return [(key, sample, named[self._name]) for (key, sample), named in zip(group, verdicts, strict=True)]


def _sample(record: Record) -> Sample:
    return Sample(record.completion, record.completion_tokens, record.finish_reason)
