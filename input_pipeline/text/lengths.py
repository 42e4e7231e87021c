"""Which groups of texts by length suit a data set (`config.method.text_groups`)."""

import itertools

import numpy as np

# How rarely a batch has more long texts than its groups have room for.
DEVIATIONS = 3
MULTIPLE = 8  # of lengths, for the sake of kernels


def propose_groups(
    lengths, whole: int, texts: int, count: int = 3
) -> tuple[tuple[float, int], ...]:
    """(share, length) of each group of texts, by which the fewest positions are computed.

    Each group is smaller than the share of the texts that fit, by what a device's texts of a batch
    vary from the whole data set: three standard deviations.

    Args:
      lengths: i32[N], tokens of the texts, both ends included.
      whole: the context length; longer texts are cut there.
      texts: how many a device encodes at once.
      count: groups, with that of whole texts, which is not among the results.
    """
    lengths = np.minimum(lengths, whole)
    steps = np.arange(MULTIPLE, whole, MULTIPLE)
    fit = (lengths[:, None] <= steps).mean(axis=0)
    room = np.maximum(fit - DEVIATIONS * np.sqrt(fit * (1 - fit) / texts), 0)
    room = dict(zip(steps.tolist(), np.floor(100 * room) / 100))
    found = min(
        (
            groups_of(chosen, room)
            for size in range(count)
            for chosen in itertools.combinations(room, size)
        ),
        key=lambda groups: positions(groups, whole),
    )
    return found


def groups_of(lengths, room) -> tuple[tuple[float, int], ...]:
    """The groups of these lengths that take all there is room for; those without texts left out."""
    taken, found = 0.0, []
    for length in lengths:
        share = round(float(room[length] - taken), 2)
        if share > 0:
            found.append((share, length))
            taken += share
    return tuple(found)


def positions(groups, whole: int) -> float:
    """How many positions a text takes on average."""
    return whole + sum(share * (length - whole) for share, length in groups)
