"""Masks by the size of the weights."""

from typing import Any

import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import paths as paths_lib
from neurrev_jax._src.one_shot import chosen as chosen_lib


@base.Card(prunes="smallest |w|")
def magnitude_masks(
    params: base.Params,
    sparsity: Any = 0.9,
    *,
    distribution: Any = "global",
    where: paths_lib.Where | None = None,
    key: Any = 0,
) -> base.Masks:
    """Keeps the largest |w|, of initial or of trained weights (Han et al., 2015).

    Args:
      params: parameter tree.
      sparsity: fraction of inactive entries in [0, 1).
      distribution: `"global"` keeps N - floor(s N) of all N entries of the
        sparsifiable leaves together; anything that `sparse_transform` takes keeps
        the counts per leaf that it says, and then `sparsity` may be by path.
      where: `where(path, leaf) -> bool`, which leaves are sparsifiable.
      key: an int, a typed key or raw key data; settles ties.

    Returns:
      A mask tree.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, or a tree
        without a sparsifiable leaf.

    >>> import jax.numpy as jnp
    >>> magnitude_masks({"kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}, 0.5)
    {'kernel': Array([[False,  True],
                      [ True, False]], dtype=bool)}
    """
    chosen = chosen_lib.Chosen(params, sparsity, distribution, where)
    return chosen.keep_highest([jnp.abs(leaf) for leaf in chosen.leaves], key)
