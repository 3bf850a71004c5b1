"""Sampling ahead, under schedules that chance makes: nothing too old, nothing lost or used twice, no standstill."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.rollout.staleness import OpenGroups, Ticket


@dataclass
class Schedule:
    """A run in which a generator, verifiers and a learner do what chance says, one small thing at a time."""

    chance: random.Random
    prompts_per_step: int
    lag: int
    steps: int
    restarts: bool
    refills: bool
    resumes: bool
    open_groups: OpenGroups = field(init=False)
    # Of what is sampled: the version of its first token, None before it has one.
    sampling: dict[int, int | None] = field(default_factory=dict)
    verifying: dict[int, int] = field(default_factory=dict)
    finished: list[tuple[int, int]] = field(default_factory=list)
    asked: list[Ticket] = field(default_factory=list)
    # Groups that hardly ever come before another that is there: long completions, hanging verdicts.
    slow: set[int] = field(default_factory=set)
    trained: list[list[int]] = field(default_factory=list)

    def run(self) -> None:
        self.open_groups = OpenGroups(self.prompts_per_step, self.lag, self.steps)
        while len(self.trained) < self.steps:
            self.ask(self.open_groups.admit())
            step = self.take(self.prompts_per_step)
            if self.refills and (more := self.chance.randint(0, self.prompts_per_step)):
                self.ask(self.open_groups.refill(more, 1))
                step += self.take(more)
            self.trained.append(step)
            # The learner steps, and the others go on beside it.
            for _ in range(self.chance.choice((0, 1, 5, 30))):
                self.something_else()
            self.push(len(self.trained))
            if self.resumes and self.chance.random() < 0.3:
                self.resume()

    def ask(self, tickets: list[Ticket]) -> None:
        self.asked += tickets
        self.slow |= {ticket.group for ticket in tickets if self.chance.random() < 0.4}
        self.sampling |= dict.fromkeys(ticket.group for ticket in tickets)
        under_way = len(self.sampling) + len(self.verifying) + len(self.finished)
        assert under_way <= (1 + self.lag) * self.prompts_per_step

    def take(self, count: int) -> list[int]:
        version = self.open_groups.version
        while not self.open_groups.are_finished(count):
            assert self.sampling or self.verifying, "a step waits, and nothing is under way"
            # Where it need not wait for completions it gets along with verdicts, whatever else is sampled.
            if self.open_groups.are_sampled(count):
                self.decide()
            else:
                self.something_else()
        chosen = self.open_groups.take(count)
        oldest = dict(self.finished)
        assert all(version - self.lag <= oldest[group] <= version for group in chosen)
        if self.lag < 2:
            # What was left lying finished no earlier than what was taken without being due.
            due = [group for group in chosen if oldest[group] + self.lag == version]
            left = [group for group, _ in self.finished if group not in due]
            assert set(left[: count - len(due)]) == set(chosen) - set(due)
        self.finished = [(group, birth) for group, birth in self.finished if group not in chosen]
        return chosen

    def something_else(self) -> None:
        if self.sampling and (not self.verifying or self.chance.random() < 0.6):
            self.sample()
        elif self.verifying:
            self.decide()

    def sample(self) -> None:
        """A group gets its first token, or its last."""
        group = self.next_of(self.sampling)
        first = self.sampling[group]
        if first is None:
            self.sampling[group] = self.open_groups.version
        else:
            del self.sampling[group]
            self.verifying[group] = first
            self.open_groups.sampled(group, first)

    def next_of(self, groups: Iterable[int]) -> int:
        # They begin as soon as others; it is the end that is long in coming.
        quick = [group for group in groups if group not in self.slow or self.sampling.get(group, 0) is None]
        return self.chance.choice(quick if quick and self.chance.random() < 0.95 else list(groups))

    def decide(self) -> None:
        group = self.next_of(self.verifying)
        self.finished.append((group, self.verifying.pop(group)))
        self.open_groups.finish(group)
        assert self.open_groups.buffered == len(self.finished)

    def push(self, version: int) -> None:
        self.open_groups.advance(version)
        if self.restarts:
            self.sampling = dict.fromkeys(self.sampling)

    def resume(self) -> None:
        state = self.open_groups.state_dict()
        self.open_groups = OpenGroups(self.prompts_per_step, self.lag, self.steps, self.open_groups.version)
        self.open_groups.load_state_dict(state)
        # What had no verdicts is sampled again; at once, so that what is open stays what the open_groups says.
        assert set(state["unfinished"]) == {*self.sampling, *self.verifying}
        self.sampling, self.verifying = dict.fromkeys(state["unfinished"]), {}


@settings(max_examples=300, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_whatever_comes_when(
    chance: random.Random, prompts: int, lag: int, steps: int, restarts: bool, refills: bool, resumes: bool
) -> None:
    schedule = Schedule(chance, prompts, lag, steps, restarts, refills, resumes)
    schedule.run()
    # Every group is trained on, once.
    numbers = [group for step in schedule.trained for group in step]
    assert sorted(numbers) == [ticket.group for ticket in schedule.asked] == list(range(len(numbers)))
    assert not schedule.open_groups.unfinished and not schedule.open_groups.buffered
    # Seeds do not depend on who came when: batch by batch, and refills by their step.
    batches = [ticket.batch for ticket in schedule.asked if not ticket.refill]
    assert batches == [number // prompts for number in range(prompts * steps)]
    if not lag:
        assert numbers == sorted(numbers)
        assert all(
            ticket.batch == at for at, step in enumerate(schedule.trained) for ticket in _tickets(schedule, step)
        )


def _tickets(schedule: Schedule, step: list[int]) -> list[Ticket]:
    return [schedule.asked[group] for group in step]


def test_young_groups_do_not_crowd_out_those_that_fall_due_together() -> None:
    open_groups = OpenGroups(2, 2, steps=9)
    assert len(open_groups.admit()) == 6
    sampled(open_groups, [0, 1], 0)
    assert open_groups.take(2) == [0, 1]
    open_groups.advance(1)
    assert [ticket.group for ticket in open_groups.admit()] == [6, 7]
    sampled(open_groups, [6, 7], 1)
    # Four of version 0 are left, all due at step 2, which has room for two: this step must take the other two.
    assert not open_groups.are_finished(2)
    sampled(open_groups, [4], 0)
    assert not open_groups.are_finished(2)
    sampled(open_groups, [2], 0)
    assert open_groups.take(2) == [2, 4]
    open_groups.advance(2)
    open_groups.admit()
    sampled(open_groups, [3, 5], 0)
    assert open_groups.take(2) == [3, 5]


def sampled(open_groups: OpenGroups, groups: list[int], version: int) -> None:
    for group in groups:
        open_groups.sampled(group, version)
        open_groups.finish(group)


def test_a_step_waits_for_the_group_that_would_be_too_old_for_the_next() -> None:
    open_groups = OpenGroups(2, 1, steps=9)
    assert [ticket.group for ticket in open_groups.admit()] == [0, 1, 2, 3] and open_groups.admit() == []
    sampled(open_groups, [1, 3], 0)
    assert open_groups.take(2) == [1, 3]
    open_groups.advance(1)
    assert [ticket.group for ticket in open_groups.admit()] == [4, 5]
    sampled(open_groups, [5, 4, 2], 1)
    # Group 0 was asked for at version 0.
    assert not open_groups.are_finished(2) and not open_groups.are_sampled(2)
    open_groups.sampled(0, 0)
    assert open_groups.are_sampled(2) and not open_groups.are_finished(2)
    open_groups.finish(0)
    # Group 2 is younger than it might be: its first token is of version 1.
    assert open_groups.take(2) == [0, 5]


def test_a_generator_that_missed_a_push_is_told() -> None:
    open_groups = OpenGroups(1, 1, steps=9)
    open_groups.admit()
    sampled(open_groups, [0], 0)
    open_groups.take(1)
    open_groups.advance(1)
    open_groups.admit()
    with pytest.raises(RuntimeError, match=r"group 2 was requested at policy version 1 but has tokens of version 0"):
        open_groups.sampled(2, 0)
    open_groups.sampled(2, 1)
    with pytest.raises(RuntimeError, match="group 2 came twice"):
        open_groups.sampled(2, 1)
    with pytest.raises(RuntimeError, match="group 0 came without a request"):
        open_groups.sampled(0, 1)


def test_a_group_without_completions_is_not_finished_and_a_refill_does_not_exceed_the_bound() -> None:
    open_groups = OpenGroups(2, 1, steps=9)
    open_groups.admit()
    with pytest.raises(AssertionError):
        open_groups.finish(0)
    sampled(open_groups, [0, 1], 0)
    with pytest.raises(AssertionError):
        open_groups.finish(0)
    open_groups.take(2)
    with pytest.raises(AssertionError):
        open_groups.refill(3, 1)
    assert [ticket.refill for ticket in open_groups.refill(2, 1)] == [1, 1]


def test_what_was_sampled_ahead_is_not_resumed_under_a_smaller_lag() -> None:
    open_groups = OpenGroups(2, 2, steps=9)
    open_groups.admit()
    state = open_groups.state_dict()
    OpenGroups(2, 3, steps=9).load_state_dict(state)
    for prompts, lag in ((2, 1), (3, 2)):
        with pytest.raises(ValueError, match=r"rollout\.prompts_per_step=2 and rollout\.max_policy_lag=2"):
            OpenGroups(prompts, lag, steps=9).load_state_dict(state)
    # With nothing open the settings are free.
    later = OpenGroups(3, 0, steps=9, version=4)
    later.load_state_dict(OpenGroups(2, 2, steps=9, version=4).state_dict())
    assert [ticket.batch for ticket in later.admit()] == [4, 4, 4]


def test_the_bounds_of_a_refill_and_of_an_advance() -> None:
    open_groups = OpenGroups(2, 1, steps=9)
    assert (open_groups.version, open_groups.admit()[-1]) == (0, Ticket(3, 1, 0))
    with pytest.raises(AssertionError):
        open_groups.refill(1, 1)
    sampled(open_groups, [1, 0], 0)
    assert open_groups.buffered == 2 and open_groups.unfinished == [2, 3]
    assert open_groups.take(2) == [0, 1] and open_groups.buffered == 0
    # Room for exactly two; both belong to the present step, whatever their number is.
    assert open_groups.refill(2, 7) == [Ticket(4, 0, 7), Ticket(5, 0, 7)]
    for version in (0, 2):
        with pytest.raises(AssertionError):
            open_groups.advance(version)
    # Four groups are due at step 1, which has places for two.
    with pytest.raises(AssertionError):
        open_groups.advance(1)


def test_groups_due_later_may_fill_their_steps_exactly() -> None:
    open_groups = OpenGroups(1, 2, steps=9)
    open_groups.admit()
    sampled(open_groups, [0], 0)
    assert open_groups.take(1) == [0]
    open_groups.advance(1)
    assert open_groups.version == 1 and open_groups.unfinished == [1, 2]


def test_a_group_is_finished_only_after_it_was_sampled_and_only_once() -> None:
    open_groups = OpenGroups(1, 0, steps=1)
    open_groups.admit()
    with pytest.raises(AssertionError):
        open_groups.finish(0)
    open_groups.sampled(0, 0)
    open_groups.finish(0)
    with pytest.raises(AssertionError):
        open_groups.finish(0)


def test_a_state_holds_the_order_of_finishing_and_the_births() -> None:
    open_groups = OpenGroups(3, 1, steps=4)
    open_groups.admit()
    open_groups.sampled(5, 0)
    sampled(open_groups, [4, 1], 0)
    state = open_groups.state_dict()
    assert state == {
        "prompts_per_step": 3, "max_policy_lag": 1, "asked": 6, "planned": 6,
        "finished": [[4, 0], [1, 0]], "unfinished": [0, 2, 3, 5],
    }  # fmt: skip
    resumed = OpenGroups(3, 1, steps=4, version=1)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state and resumed.buffered == 2
    # A group that is requested again is born at the present version; what finished before keeps its place.
    resumed.sampled(0, 1)
    assert resumed.are_sampled(3) and not resumed.are_finished(3)
    resumed.finish(0)
    assert resumed.state_dict()["finished"] == [[4, 0], [1, 0], [0, 1]]
    assert resumed.are_finished(3) and resumed.take(3) == [0, 1, 4]
    assert resumed.admit() == [Ticket(6, 2, 0), Ticket(7, 2, 0), Ticket(8, 2, 0)]


def test_without_open_groups_a_state_goes_on_at_the_present_version() -> None:
    state = OpenGroups(2, 1, steps=9).state_dict()
    resumed = OpenGroups(3, 0, steps=9, version=2)
    resumed.load_state_dict(state | {"asked": 10})
    assert resumed.admit() == [Ticket(10, 2, 0), Ticket(11, 2, 0), Ticket(12, 2, 0)]
    assert resumed.admit() == []
