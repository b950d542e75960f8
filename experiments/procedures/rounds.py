"""How iterative magnitude pruning divides its way to a sparsity into rounds.

A round trains, prunes and rewinds; what is left after the last one is trained once
more. Frankle and Carbin (2019) prune 20 % of the remaining weights in each round.
Without JAX: a config is checked before JAX starts.
"""

import math

# Of a logarithm's last digits: 1 - 0.8 ** 3 is three rounds of 0.2, not four.
_ROUNDING = 1e-9


def rounds_needed(prune_fraction: float, sparsity: float) -> int:
    """Rounds until at most the wanted density is left.

    Args:
      prune_fraction: part of the remaining weights that a round prunes, in (0, 1).
      sparsity: in (0, 1).

    Returns:
      The number of rounds, at least 1.

    >>> [rounds_needed(0.2, sparsity) for sparsity in (0.9, 0.95, 0.98)]
    [11, 14, 18]
    """
    exact = math.log(1 - sparsity) / math.log(1 - prune_fraction)
    return max(1, math.ceil(exact - _ROUNDING))


def prune_fraction(rounds: int, sparsity: float) -> float:
    """What each of so many equal rounds has to prune.

    Args:
      rounds: at least 1.
      sparsity: in (0, 1).

    Returns:
      Part of the remaining weights, in (0, 1).

    >>> round(prune_fraction(2, 0.75), 6)
    0.5
    """
    return 1 - (1 - sparsity) ** (1 / rounds)


def kept(done: int, rounds: int, fraction: float, size: int, budget: int) -> int:
    """Weights that are left after a number of rounds.

    Args:
      done: rounds so far.
      rounds: rounds in all.
      fraction: part of the remaining weights that a round prunes.
      size: weights that may be pruned.
      budget: weights that are left after the last round; none goes below it.

    Returns:
      size - floor((1 - (1 - fraction)^done) * size), but the budget after the last
      round, and nowhere less.

    >>> [kept(done, 3, 0.2, size=1000, budget=600) for done in range(4)]
    [1000, 800, 640, 600]
    """
    if done >= rounds:
        return budget
    pruned = math.floor((1 - (1 - fraction) ** done) * size + _ROUNDING * size)
    return max(size - pruned, budget)
