"""Distribute sequences over learner ranks and microbatches, as evenly as possible."""

from __future__ import annotations

from collections.abc import Sequence

from grpo.algorithm.packing import TrainingSequence


def sharing_units(sequences: Sequence[TrainingSequence], max_tokens: int) -> list[tuple[list[int], int]]:
    """Form units of sequences that share a prompt. The model computes the shared prompt once per unit.

    Args:
        sequences: sequences to train on.
        max_tokens: largest size of a unit, in tokens. The limit makes it possible to distribute the units evenly. A
            unit with a single sequence may be larger.

    Returns:
        For each unit: (indices of its sequences, number of tokens that the model computes for the unit).
    """
    units: list[tuple[list[int], int]] = []
    open_units: dict[tuple[int, ...], int] = {}
    for index, sequence in enumerate(sequences):
        prompt = sequence.token_ids[: sequence.prompt_length]
        completion_tokens = len(sequence.token_ids) - sequence.prompt_length - 1
        unit = open_units.get(prompt)
        if unit is not None and units[unit][1] + completion_tokens <= max_tokens:
            units[unit] = ([*units[unit][0], index], units[unit][1] + completion_tokens)
        else:
            open_units[prompt] = len(units)
            units.append(([index], len(prompt) + completion_tokens))
    return units


def split_evenly(lengths: Sequence[int], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Distribute sequences over ranks. Each rank gets the same number of microbatches of at most `max_tokens` tokens.

    The method is greedy (the LPT rule, Graham 1969). It takes the sequences in the order of their lengths, the longest
    first, and puts each sequence into the emptiest microbatch. If a microbatch becomes too large, the method starts
    again with more microbatches. Therefore the sizes of two microbatches differ at most by the length of the longest
    sequence. The microbatches are then distributed over the ranks in the order of their sizes. Therefore the totals of
    two ranks also differ at most by the length of the longest sequence. The k-th microbatches of all ranks, which run
    at the same time, have similar sizes.

    Args:
        lengths: length of each sequence, in tokens.
        ranks: number of data-parallel ranks.
        max_tokens: largest size of a microbatch, in tokens.

    Returns:
        For each rank and microbatch, the indices into `lengths`. If there are fewer sequences than microbatches, some
        microbatches are empty.

    Raises:
        ValueError: a sequence is longer than `max_tokens`.
    """
    if not lengths:
        raise ValueError("there is nothing to share out")
    longest = max(lengths)
    if longest > max_tokens:
        raise ValueError(
            f"a sequence of {longest} tokens does not fit learner.microbatch_tokens={max_tokens}; "
            "raise learner.microbatch_tokens, or lower the length limits"
        )
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    per_rank = -(-sum(lengths) // (max_tokens * ranks))
    while True:
        bins: list[list[int]] = [[] for _ in range(per_rank * ranks)]
        loads = [0] * len(bins)
        for index in order:
            emptiest = min(range(len(bins)), key=loads.__getitem__)
            bins[emptiest].append(index)
            loads[emptiest] += lengths[index]
        if max(loads) <= max_tokens:
            by_size = [bins[place] for place in sorted(range(len(bins)), key=loads.__getitem__, reverse=True)]
            return [by_size[rank::ranks] for rank in range(ranks)]
        per_rank += 1


def deal_out(sequences: Sequence[TrainingSequence], ranks: int, max_tokens: int) -> list[list[list[int]]]:
    """Distribute sequences over ranks as `split_evenly` does. Sequences of the same prompt stay together if possible.

    Returns:
        For each rank and microbatch, the indices into `sequences`.
    """
    total = sum(len(sequence.token_ids) for sequence in sequences)
    # A unit has at most a quarter of a rank's or a microbatch's tokens, so the units can be distributed evenly.
    units = sharing_units(sequences, min(max_tokens, total // ranks) // 4)
    shares = split_evenly([tokens for _, tokens in units], ranks, max_tokens)
    return [[[index for unit in chosen for index in units[unit][0]] for chosen in share] for share in shares]
