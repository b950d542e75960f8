"""Random masks."""

import math
from typing import Any

import jax

from neurrev_jax._src import base, distributions, selection, transform
from neurrev_jax._src import paths as paths_lib


@base.Card(prunes="at random")
def random_masks(
    params: base.Params,
    sparsity: Any = 0.9,
    *,
    distribution: Any = "erk",
    where: paths_lib.Where | None = None,
    key: Any = 0,
) -> base.Masks:
    """Masks drawn at random, each leaf's count exact (Liu et al., 2022).

    The very masks that `sparse_transform` draws with the same arguments.

    Args:
      params: parameter tree.
      sparsity: fraction of inactive entries in [0, 1), or by path pattern.
      distribution: how it is spread over the leaves, as for `sparse_transform`.
      where: `where(path, leaf) -> bool`, which leaves are sparsifiable.
      key: an int, a typed key or raw key data.

    Returns:
      A mask tree.

    Raises:
      ValueError: for arguments that `sparse_transform` would refuse.

    >>> import jax.numpy as jnp
    >>> int(random_masks({"kernel": jnp.ones((20, 10))}, 0.9)["kernel"].sum())
    20
    """
    shapes = paths_lib.sparsifiable(params, where)
    counts = distributions.initial_counts(shapes, sparsity, distribution)
    sizes = {path: math.prod(shapes[path]) for path in counts}
    drawn = jax.random.fold_in(selection.as_key(key), 0)
    return transform.draw_masks(params, base.Targets(sizes, counts), drawn)
