"""Iterative magnitude pruning with rewinding (Frankle and Carbin 2019; Frankle et al.

2020, *Linear Mode Connectivity and the Lottery Ticket Hypothesis*). Train, prune the
smallest weights of the whole network, set the survivors back to what they were at an
early step, repeat.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import neurrev_jax
from experiments.procedures import rounds as rounds_lib


class Ticket(NamedTuple):
    """What the rounds remember.

    Attributes:
      done: rounds so far, int32[].
      budget: weights that are left after the last round, int32[].
      params: the parameters that survivors are set back to.
      batch_stats: the batch statistics that go with them.
    """

    done: Any
    budget: Any
    params: Any
    batch_stats: Any


@dataclasses.dataclass(frozen=True)
class Lottery:
    """How many rounds there are, and what each of them does.

    Attributes:
      inner: the optimizer, whose state every round starts anew.
      rounds: at least 1.
      fraction: part of the remaining weights that a round prunes.
      rewind_step: the step of training that a round goes back to.
    """

    inner: optax.GradientTransformation
    rounds: int
    fraction: float
    rewind_step: int

    def start(
        self, params: Any, batch_stats: Any, opt_state: neurrev_jax.SparseState
    ) -> tuple[neurrev_jax.SparseState, Ticket]:
        """Makes a sparse start dense: its masks say what has to be left in the end.

        Args:
          params: fresh parameters.
          batch_stats: fresh batch statistics.
          opt_state: with the masks of the wanted sparsity.

        Returns:
          (the state with every weight active, what is remembered).
        """
        budget = sum(jnp.sum(m, dtype=jnp.int32) for m in _sparse(opt_state.masks))
        masks = jax.tree.map(jnp.ones_like, opt_state.masks)
        ticket = Ticket(jnp.int32(0), jnp.int32(budget), params, batch_stats)
        return opt_state._replace(masks=masks), ticket

    def end_round(
        self, params: Any, opt_state: neurrev_jax.SparseState, ticket: Ticket, key: Any
    ) -> tuple[Any, Any, neurrev_jax.SparseState, Ticket]:
        """Prunes what has been trained and goes back to the rewind step.

        Args:
          params: trained parameters.
          opt_state: with their masks.
          ticket: what is remembered.
          key: PRNG key, settles ties.

        Returns:
          (parameters, batch statistics, state and memory of the next round). The
          optimizer starts anew, but counts its steps from the rewind step on.
        """
        done = int(ticket.done) + 1
        size = sum(m.size for m in _sparse(opt_state.masks))
        keep = rounds_lib.kept(
            done, self.rounds, self.fraction, size, int(ticket.budget)
        )
        masks = survivors(params, opt_state.masks, keep, key)
        params = neurrev_jax.apply_masks(ticket.params, masks)
        step = jnp.int32(self.rewind_step)
        fresh = opt_state._replace(
            count=step,
            masks=masks,
            inner_state=optax.tree.set(self.inner.init(params), count=step),
        )
        ticket = ticket._replace(done=np.int32(done))
        return params, ticket.batch_stats, fresh, ticket


def survivors(params: Any, masks: Any, keep: int, key: Any) -> Any:
    """The active weights that are largest in magnitude, over all layers together.

    Args:
      params: parameter tree.
      masks: mask tree; layers of shape () take no part.
      keep: how many stay active; all, if they are fewer.
      key: PRNG key, settles ties.

    Returns:
      The new masks, nested in the old ones.

    >>> w = {"a": jnp.array([3.0, -1.0]), "b": jnp.array([0.5, -2.0])}
    >>> masks = {"a": jnp.ones(2, bool), "b": jnp.ones(2, bool)}
    >>> survivors(w, masks, 2, jax.random.key(0))
    {'a': Array([ True, False], dtype=bool), 'b': Array([False,  True], dtype=bool)}
    """
    leaves, structure = jax.tree.flatten(masks)
    sparse = [i for i, mask in enumerate(leaves) if jnp.ndim(mask)]
    active = [jnp.asarray(leaves[i]) for i in sparse]
    weights = jax.tree.leaves(params)
    sizes = [jnp.abs(weights[i]) for i in sparse]
    total = sum(jnp.sum(mask, dtype=jnp.int32) for mask in active)
    pruned = neurrev_jax.select_global(sizes, active, total - keep, key)
    for i, mask, gone in zip(sparse, active, pruned, strict=True):
        leaves[i] = mask & ~gone
    return structure.unflatten(leaves)


def _sparse(masks: Any) -> list[Any]:
    return [mask for mask in jax.tree.leaves(masks) if jnp.ndim(mask)]
