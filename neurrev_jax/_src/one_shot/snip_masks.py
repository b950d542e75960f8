"""SNIP: masks by the sensitivity of the loss to every connection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from neurrev_jax._src import base
from neurrev_jax._src import paths as paths_lib
from neurrev_jax._src.one_shot import chosen as chosen_lib


@base.Card(prunes="smallest |w dL/dw|")
def snip_masks(
    params: base.Params,
    sparsity: Any = 0.9,
    *,
    loss_fn: Callable[[base.Params, Any], jax.Array],
    batch: Any,
    distribution: Any = "global",
    where: paths_lib.Where | None = None,
    key: Any = 0,
) -> base.Masks:
    """Single-shot network pruning (SNIP; Lee et al., 2019, section 4).

    Keeps the connections with the largest |dL/dc| = |w dL/dw|, c = 1 being a factor on
    every connection. (The original divides by the sum of all, which changes no rank.)

    Args:
      params: parameter tree, freshly initialized (the original: by variance scaling).
      sparsity: fraction of inactive entries in [0, 1).
      loss_fn: `loss_fn(params, batch)`, the mean loss; batch norm in training mode.
      batch: one batch of training data.
      distribution: `"global"` keeps N - floor(s N) of all N entries of the
        sparsifiable leaves together; anything that `sparse_transform` takes keeps
        the counts per leaf that it says, and then `sparsity` may be by path.
      where: `where(path, leaf) -> bool`, which leaves are sparsifiable.
      key: an int, a typed key or raw key data; settles ties.

    Returns:
      A mask tree.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, a tree
        without a sparsifiable leaf, or a loss that is no scalar.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    >>> loss = lambda params, x: jnp.sum(params["kernel"] * x)
    >>> x = jnp.array([[9.0, 1.0], [1.0, 1.0]])
    >>> snip_masks(params, 0.5, loss_fn=loss, batch=x)["kernel"]
    Array([[ True, False],
           [False,  True]], dtype=bool)
    """
    chosen = chosen_lib.Chosen(params, sparsity, distribution, where)
    grads = chosen_lib.gradient(loss_fn, chosen, batch)(chosen.leaves)
    scores = [jnp.abs(g * w) for g, w in zip(grads, chosen.leaves, strict=True)]
    return chosen.keep_highest(scores, key)
