"""The simulator against closed forms, against a plain one that goes event by event, and against its own rules."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_engines import VirtualReplica, VirtualReplicas

from grpo.planning.simulation.loop import Deployment, Integers, RolloutSchedule, Speeds, Step, groups_needed, simulate
from grpo.rollout.staleness import OpenGroups


def constant(schedule: RolloutSchedule, steps: int, size: int, tokens: int) -> Integers:
    return np.full((groups_needed(schedule, steps), size), tokens)


def mean_step_s(steps: tuple[Step, ...], warm_up: int) -> float:
    return (steps[-1].ended_s - steps[warm_up].began_s) / (len(steps) - warm_up)


def test_constant_lengths_in_turns_give_the_closed_form() -> None:
    schedule, speeds = RolloutSchedule(6, prompt_tokens=10), Speeds(0.01, 0.001, 0.002, 3.0, 0.004, 0.5)
    steps = simulate(schedule, Deployment(3, 100, 2), speeds, constant(schedule, 4, 5, 200), 4)
    # Two prompts and ten sequences a replica; 6 x (10 + 5 x 200) tokens to learn from on two GPUs.
    generate = 2 * 10 * 0.002 + 200 * (0.01 + 10 * 0.001)
    learn = 3.0 + 0.004 * 6060 / 2
    for number, step in enumerate(steps):
        assert step.began_s == pytest.approx(number * (generate + learn + 0.5))
        assert step.ready_s - step.began_s == pytest.approx(generate)
        assert step.learned_s - step.ready_s == pytest.approx(learn)
        assert step.tokens == 6060
        assert step.sampled_tokens == pytest.approx(6000)
        assert step.busy_s == pytest.approx(3 * generate)
        assert step.slot_s == pytest.approx(30 * (generate - 0.04))
        assert step.groups == tuple(range(6 * number, 6 * number + 6))


def test_too_few_slots_take_turns() -> None:
    schedule = RolloutSchedule(4)
    steps = simulate(schedule, Deployment(1, 5), Speeds(0.01, 0.001), constant(schedule, 1, 3, 100), 1)
    # Twelve sequences on five slots: five, five, two.
    assert steps[0].ready_s == pytest.approx(100 * (0.015 + 0.015 + 0.012))
    assert steps[0].slot_s == pytest.approx(100 * (5 * 0.015 + 5 * 0.015 + 2 * 0.012))


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize(("learn_s", "expected_s"), [(5.0, 5.5), (1.0, 2.5)])
def test_with_a_lag_the_slower_side_sets_the_pace(lag: int, learn_s: float, expected_s: float) -> None:
    """The learner with its push, or the generator with the pause of the push: 200 tokens of 10 ms."""
    schedule = RolloutSchedule(4, lag)
    speeds = Speeds(0.01, learn_base_s=learn_s, push_s=0.5)
    steps = simulate(schedule, Deployment(1, 4 * 3), speeds, constant(schedule, 20, 3, 200), 20)
    assert mean_step_s(steps, 8) == pytest.approx(expected_s)
    idle_s = sum(step.ready_s - step.began_s for step in steps[8:])
    assert idle_s == pytest.approx(12 * (expected_s - learn_s - 0.5))


def test_a_push_has_what_runs_computed_again() -> None:
    """One slot, 30 tokens a completion; a push every 12 s in which nothing is due."""
    schedule = RolloutSchedule(1, 1, prompt_tokens=7)
    speeds = Speeds(1.0, prefill_token_s=0.5, learn_base_s=2.0, push_s=4.0)
    steps = simulate(schedule, Deployment(1, 1), speeds, np.array([[30], [30], [30]]), 2)
    # Both prompts first; then the first completion; 2 tokens of the second while the learner works.
    assert steps[0].ready_s == 7.0 + 30.0
    assert steps[0].ended_s == 37.0 + 2.0 + 4.0
    # 7 + 2 tokens again, the prompt of the third, and the 28 tokens that are left.
    assert steps[1].ready_s == pytest.approx(43.0 + 4.5 + 3.5 + 28.0)
    assert steps[0].sampled_tokens == pytest.approx(32.0)


@st.composite
def runs(draw: st.DrawFn, partial: str = "continue") -> dict[str, Any]:
    schedule = RolloutSchedule(draw(st.integers(1, 5)), draw(st.integers(0, 4)), partial, draw(st.integers(0, 9999)))  # type: ignore[arg-type]
    steps, size = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    # Long and odd, so that no two sequences end at the same time, when rounding would decide which is first.
    lengths = random.integers(1, draw(st.sampled_from([3, 60])) * 10_000 + 1, (groups_needed(schedule, steps), size))
    lengths[random.random(lengths.shape) < 0.1] *= 20
    duration = st.sampled_from([0.0, 0.013, 0.7])
    return {
        "schedule": schedule,
        "deployment": Deployment(draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 3))),
        "speeds": Speeds(
            1e-5,
            1e-4 * draw(duration),
            1e-4 * draw(duration),
            10 * draw(duration),
            1e-4 * draw(duration),
            draw(duration),
        ),
        "lengths_NG": lengths,
        "steps": steps,
    }


def plainly(
    schedule: RolloutSchedule, deployment: Deployment, speeds: Speeds, lengths_NG: Integers, steps: int
) -> list[tuple[float, float, float, tuple[int, ...]]]:
    """The same run event by event, by the rules of the loop itself: each step ready, ended, busy seconds, groups."""
    replicas = [
        VirtualReplica(deployment.max_sequences, speeds.decode_base_s, speeds.decode_sequence_s)
        for _ in range(deployment.replicas)
    ]
    engines = VirtualReplicas(replicas)
    open_groups = OpenGroups(schedule.prompts_per_step, schedule.max_policy_lag, steps + schedule.max_policy_lag)
    first_token: dict[int, int] = {}
    sampled: set[int] = set()
    told = []
    for version in range(steps):
        for ticket in open_groups.admit():
            prefill_s = schedule.prompt_tokens * speeds.prefill_token_s
            engines.submit(ticket.group, lengths_NG[ticket.group].tolist(), prefill_s)
        before_s = engines.busy_s
        while True:
            ended_s = engines.ended_s()
            for group in sorted(ended_s.keys() - sampled, key=lambda group: ended_s[group]):
                open_groups.sampled(group, first_token.get(group, version))
                open_groups.finish(group)
                sampled.add(group)
            if open_groups.are_finished(schedule.prompts_per_step):
                break
            engines.run_to_next_end()
        ready_s = engines.now_s
        chosen = open_groups.take(schedule.prompts_per_step)
        tokens = sum(lengths_NG[group].sum() + schedule.prompt_tokens for group in chosen)
        engines.run_until(ready_s + speeds.learn_base_s + speeds.learn_token_s * tokens / deployment.learner_gpus)
        engines.hold(speeds.push_s)
        open_groups.advance(version + 1)
        for group in engines.begun(lengths_NG.shape[1]):
            first_token.setdefault(group, version)
        for replica in replicas:
            running = [one for one in replica.sequences if one.runs]
            again = sum(one.length - one.left for one in running)
            again += schedule.prompt_tokens * len({one.group for one in running})
            replica.blocked_until_s = max(replica.blocked_until_s, replica.now_s) + again * speeds.prefill_token_s
        told.append((ready_s, engines.now_s, engines.busy_s - before_s, tuple(chosen)))
    return told


@settings(max_examples=100, deadline=None)
@given(runs())
def test_it_agrees_with_a_plain_simulation(run: dict[str, Any]) -> None:
    for step, (ready_s, ended_s, busy_s, groups) in zip(simulate(**run), plainly(**run), strict=True):
        assert step.ready_s == pytest.approx(ready_s, rel=1e-9)
        assert step.ended_s == pytest.approx(ended_s, rel=1e-9)
        assert step.busy_s == pytest.approx(busy_s, rel=1e-6, abs=1e-6)
        assert step.groups == groups


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["continue", "restart"]).flatmap(lambda partial: runs(partial)))
def test_nothing_is_too_old_nothing_used_twice_and_no_work_is_lost(run: dict[str, Any]) -> None:
    steps, schedule, lengths = simulate(**run), run["schedule"], run["lengths_NG"]
    used = [group for step in steps for group in step.groups]
    assert len(set(used)) == len(used) == len(steps) * schedule.prompts_per_step
    sampled = learned = 0.0
    for version, step in enumerate(steps):
        assert all(version - schedule.max_policy_lag <= birth <= version for birth in step.births)
        assert step.began_s <= step.ready_s <= step.learned_s <= step.ended_s
        # Submitted by now, and no more than the replicas' slots could do in the time.
        assert max(step.groups) < (version + 1 + schedule.max_policy_lag) * schedule.prompts_per_step
        assert step.busy_s <= run["deployment"].replicas * (step.learned_s - step.began_s) + 1e-6
        assert step.slot_s <= run["deployment"].max_sequences * step.busy_s + 1e-6
        sampled += step.sampled_tokens
        learned += lengths[list(step.groups)].sum()
        # What is learned from was sampled before, and nothing was sampled that nobody asked for.
        assert learned <= sampled + 1e-6
        if schedule.max_policy_lag == 0:
            assert sampled == pytest.approx(learned)
        elif schedule.partial == "continue":
            assert (
                sampled <= lengths[: (version + 1 + schedule.max_policy_lag) * schedule.prompts_per_step].sum() + 1e-6
            )


def test_a_restart_samples_again_and_stays_due() -> None:
    schedule = RolloutSchedule(1, 1, "restart")
    lengths = np.array([[3], [20], [3], [3]])
    steps = simulate(schedule, Deployment(1, 8), Speeds(1.0, learn_base_s=5.0), lengths, 3)
    # At 8 s, the first push, the long one has 8 tokens and begins again. It is waited for though another is there; from
    # then on it is as young as that one.
    assert [step.ready_s for step in steps] == [3.0, 28.0, 33.0]
    assert [step.groups for step in steps] == [(0,), (2,), (1,)]
    assert [step.births for step in steps] == [(0,), (1,), (1,)]
    assert sum(step.sampled_tokens for step in steps) == 8 + 3 + 20 + 3 + 3
    going_on = simulate(RolloutSchedule(1, 1), Deployment(1, 8), Speeds(1.0, learn_base_s=5.0), lengths, 3)
    assert [step.ready_s for step in going_on] == [3.0, 20.0, 25.0]
    assert [step.groups for step in going_on] == [(0,), (1,), (2,)]


def test_a_group_that_had_to_wait_for_a_slot_is_younger() -> None:
    """Group 3 gets the only slot of its replica at the first push, and need not be learned from before group 4."""
    lengths = np.array([[5], [6], [5], [20], [2], [2], [1], [1], [1], [1]])
    steps = simulate(RolloutSchedule(2, 1), Deployment(2, 1), Speeds(1.0), lengths, 3)
    assert [step.ready_s for step in steps] == [6.0, 26.0, 28.0]
    # So does group 5 behind it: step 2 waits for it, as it might be old, and then learns from group 6.
    assert [step.groups for step in steps] == [(0, 1), (2, 4), (3, 6)]
    assert [step.births for step in steps] == [(0, 0), (0, 1), (1, 2)]


@pytest.mark.parametrize("tail", ["none", "log-normal", "Pareto"])
@pytest.mark.parametrize("slots", [8, 1000])
def test_more_lag_is_not_slower_in_expectation(tail: str, slots: int) -> None:
    means: dict[int, list[float]] = {0: [], 1: [], 2: [], 4: [], 8: []}
    for seed in range(8):
        random = np.random.default_rng(seed)
        lengths = {
            "none": np.full((800, 4), 200),
            "log-normal": np.ceil(random.lognormal(5, 1, (800, 4))).astype(np.int64),
            "Pareto": np.minimum(np.ceil(50 * (1 + random.pareto(1.2, (800, 4)))), 4000).astype(np.int64),
        }[tail]
        for lag, found in means.items():
            steps = simulate(
                RolloutSchedule(8, lag), Deployment(4, slots), Speeds(0.01, 2e-4, 0, 1.0, 1e-4), lengths, 60
            )
            found.append(mean_step_s(steps, 30))
    mean = [sum(found) / len(found) for found in means.values()]
    assert all(later <= 1.005 * earlier for earlier, later in itertools.pairwise(mean)), mean
    if tail == "Pareto" and slots == 1000:
        assert mean[0] > 2 * mean[3]


def test_the_same_lengths_give_the_same_run() -> None:
    schedule = RolloutSchedule(7, 2)
    lengths = np.random.default_rng(3).integers(1, 90, (groups_needed(schedule, 9), 5))
    one, other = (simulate(schedule, Deployment(3, 6), Speeds(0.1, 0.01), lengths, 9) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Speeds(0.0), "takes some time"),
        (lambda: Speeds(0.1, push_s=-1.0), "push_s is -1.0"),
        (lambda: Speeds(float("nan")), "decode_base_s"),
        (lambda: Deployment(0, 1), "replicas is 0"),
        (lambda: RolloutSchedule(0), "prompts_per_step"),
        (lambda: RolloutSchedule(1, -1), "max_policy_lag is -1"),
        (
            lambda: simulate(RolloutSchedule(2), Deployment(1, 1), Speeds(1.0), np.ones((3, 1), np.int64), 2),
            "4 groups, got 3",
        ),
        (
            lambda: simulate(RolloutSchedule(1), Deployment(1, 1), Speeds(1.0), np.zeros((1, 1), np.int64), 1),
            "0 tokens",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
