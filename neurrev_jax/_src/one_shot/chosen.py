"""The leaves that get masks, and keeping their highest scores.

Shapes in this module: L sparsifiable leaves.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, distributions, selection
from neurrev_jax._src import paths as paths_lib


class Chosen:
    """The leaves of a parameter tree that get masks, and how many entries stay.

    Attributes:
      paths: of the L leaves, in the order of the tree.
      leaves: the L leaves.
      is_global: whether entries compete over all leaves together, or in each.
      numbers: how many entries stay: one number for all leaves together, or L.
    """

    def __init__(
        self,
        params: base.Params,
        sparsity: Any,
        distribution: Any,
        where: paths_lib.Where | None,
    ):
        self._all, self._structure = paths_lib.flatten_with_paths(params)
        shapes = paths_lib.sparsifiable(params, where)
        if distribution == "global":
            if isinstance(sparsity, Mapping):
                raise ValueError(
                    f"sparsity={sparsity!r} by path needs a distribution per leaf, "
                    "'erk' for example; distribution='global' takes one number."
                )
            whole = {"all leaves": (sum(map(math.prod, shapes.values())),)}
            counts = distributions.initial_counts(whole, sparsity, _everywhere)
        else:
            counts = distributions.initial_counts(shapes, sparsity, distribution)
        self.is_global = distribution == "global"
        self.paths = tuple(shapes if self.is_global else counts)
        self.numbers = list(counts.values())
        leaves = dict(self._all)
        self.leaves = [leaves[path] for path in self.paths]

    @property
    def sizes(self) -> list[int]:
        """Entries that each of `numbers` is taken from."""
        sizes = [leaf.size for leaf in self.leaves]
        return [sum(sizes)] if self.is_global else sizes

    def replace(
        self,
        leaves: Sequence[jax.Array],
        other: Callable[[str, Any], Any] | None = None,
    ) -> base.Params:
        """The parameter tree with these leaves for the L, the rest as it is.

        Args:
          leaves: the L leaves.
          other: what to make of each of the other leaves, from its path and value.
        """
        new = dict(zip(self.paths, leaves, strict=True))
        keep = other or (lambda path, leaf: leaf)
        return self._structure.unflatten(
            new[path] if path in new else keep(path, leaf) for path, leaf in self._all
        )

    def highest(
        self,
        scores: Sequence[jax.Array],
        key: jax.Array,
        numbers: Sequence[Any] | None = None,
        candidates: Sequence[jax.Array] | None = None,
    ) -> list[jax.Array]:
        """The entries with the highest scores, exactly as many as there are to be.

        Args:
          scores: L arrays; NaN counts as lower than every number.
          key: PRNG key, settles ties.
          numbers: how many, in place of the attribute; may be traced.
          candidates: L bool arrays, all entries by default.

        Returns:
          L bool arrays.
        """
        numbers = self.numbers if numbers is None else numbers
        if candidates is None:
            candidates = [jnp.ones(score.shape, bool) for score in scores]
        # One type, so that leaves of different types compare.
        lowest = [jnp.negative(score.astype(jnp.float32)) for score in scores]
        if self.is_global:
            return selection.select_among([lowest], candidates, numbers[0], key)
        return selection.select_each([lowest], candidates, numbers, key)

    def masks(self, chosen: Sequence[jax.Array]) -> base.Masks:
        """The mask tree: these for the L leaves, () and True for all others."""
        return self.replace(chosen, lambda path, leaf: jnp.ones((), bool))

    def keep_highest(self, scores: Sequence[jax.Array], key: Any) -> base.Masks:
        """The mask tree that keeps the highest scores."""
        return self.masks(self.highest(scores, selection.as_key(key)))


def gradient(
    loss_fn: Callable[..., jax.Array], chosen: Chosen, *arguments: Any
) -> Callable[[Sequence[jax.Array]], list[jax.Array]]:
    """The gradient of `loss_fn(params, *arguments)` by the chosen leaves.

    Raises:
      ValueError: if the loss is no scalar.
    """

    def loss(leaves: Sequence[jax.Array]) -> jax.Array:
        value = loss_fn(chosen.replace(leaves), *arguments)
        if not hasattr(value, "shape") or value.shape != ():
            raise ValueError(
                f"loss_fn returned {jax.tree.map(jnp.shape, value)} where it must "
                "return one number: the mean loss over the batch, nothing besides."
            )
        return value

    return jax.grad(loss)


def _everywhere(shapes: distributions.Shapes, sparsity: float) -> dict[str, float]:
    return dict.fromkeys(shapes, sparsity)
