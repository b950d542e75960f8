"""SynFlow: masks by synaptic flow, without data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from neurrev_jax._src import base, selection
from neurrev_jax._src import paths as paths_lib
from neurrev_jax._src.one_shot import chosen as chosen_lib

# Inputs and cotangents are multiplied by 2^-e; both factors stay normal numbers.
_LARGEST_EXPONENT = 120
_EXPONENT_STEP = 30


@base.Card(prunes="smallest |w dR/dw|, R the sum of outputs, in rounds")
def synflow_masks(
    params: base.Params,
    sparsity: Any = 0.9,
    *,
    apply_fn: Callable[[base.Params, Any, jax.Array], Any],
    input_shape: Sequence[int],
    stats: Any = None,
    rounds: int = 100,
    additive: Sequence[str] = ("*bias", "*mean"),
    distribution: Any = "global",
    where: paths_lib.Where | None = None,
    key: Any = 0,
) -> base.Masks:
    """Iterative synaptic flow pruning (SynFlow; Tanaka et al., 2020, Algorithm 1).

    R is the sum of the outputs for an input of ones, with every parameter and every
    batch statistic replaced by its absolute value. In each of `rounds` rounds the
    weights with the highest |w dR/dw| under the masks so far stay; after round j a
    share (1 - s)^(j / rounds) of them is left. The scores of whatever separates input
    from output have the same sum, so that none of these is emptied while there is
    another choice: in a chain no layer, in a residual network no block as a whole. (A
    convolution on a shortcut may be, where the branch beside it carries far more.)

    R grows exponentially with depth: that of a ResNet-32 exceeds what float32 can
    hold. So input, additive parameters and the derivative at the output are multiplied
    by powers of two, found anew in each round, that put activations and derivatives
    in the middle of its range. For networks of linear layers, batch norm in inference
    mode, pooling and ReLU all scores of a round are multiplied by one power of two,
    which is exact and changes no rank. `params` stays as it is.

    Args:
      params: parameter tree, freshly initialized.
      sparsity: fraction of inactive entries in [0, 1).
      apply_fn: `apply_fn(params, stats, inputs)`, the outputs (logits) in inference
        mode.
      input_shape: shape of the inputs, with an axis for the one example: `(1, 32, 32,
        3)`.
      stats: tree of batch statistics; None for a network without any.
      rounds: how many, at least 1.
      additive: path patterns of parameters and statistics that are added, not
        multiplied: biases, and the running means of batch norm.
      distribution: `"global"` keeps N - floor(s N) of all N entries of the
        sparsifiable leaves together; anything that `sparse_transform` takes keeps
        the counts per leaf that it says, and then `sparsity` may be by path.
      where: `where(path, leaf) -> bool`, which leaves are sparsifiable.
      key: an int, a typed key or raw key data; settles ties.

    Returns:
      A mask tree.

    Raises:
      ValueError: for a sparsity outside [0, 1), an unknown distribution, a tree
        without a sparsifiable leaf, or fewer than one round.

    >>> import jax.numpy as jnp
    >>> params = {"a": {"kernel": jnp.array([[1.0, 0.5], [-2.0, 3.0]])},
    ...           "b": {"kernel": jnp.array([[2.0, 1.0], [-1.0, 1.0]])}}
    >>> apply = lambda p, stats, x: x @ p["a"]["kernel"] @ p["b"]["kernel"]
    >>> masks = synflow_masks(params, 0.5, apply_fn=apply, input_shape=(1, 2))
    >>> int(masks["a"]["kernel"].sum() + masks["b"]["kernel"].sum())
    4
    """
    if rounds < 1:
        raise ValueError(
            f"rounds={rounds!r} must be at least 1; the original takes 100."
        )
    chosen = chosen_lib.Chosen(params, sparsity, distribution, where)
    absolute = [jnp.abs(leaf) for leaf in chosen.leaves]

    def outputs(weights: list[jax.Array], scale: jax.Array) -> jax.Array:
        def scaled(path: str, leaf: jax.Array) -> jax.Array:
            is_added = any(paths_lib.matches(pattern, path) for pattern in additive)
            size = jnp.abs(leaf)
            return size * scale.astype(size.dtype) if is_added else size

        leaves, structure = paths_lib.flatten_with_paths(stats)
        positive = structure.unflatten(scaled(path, leaf) for path, leaf in leaves)
        ones = jnp.broadcast_to(scale, tuple(input_shape))
        out = apply_fn(chosen.replace(weights, scaled), positive, ones)
        sums = [jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(out)]
        return sum(sums[1:], sums[0])

    def prune(round_: jax.Array, carry: tuple[Any, jax.Array]):
        masks, exponent = carry
        weights = [jnp.where(m, w, 0) for m, w in zip(masks, absolute, strict=True)]
        exponent = _balance(lambda scale: outputs(weights, scale), exponent)
        scale = _power_of_two(-exponent)
        # The derivative at the output is scaled as the input is.
        grads = jax.grad(lambda ws: outputs(ws, scale) * scale)(weights)
        scores = [jnp.abs(g * w) for g, w in zip(grads, weights, strict=True)]
        tie_key = jax.random.fold_in(typed_key, round_)
        left = numbers[round_]
        masks = chosen.highest(scores, tie_key, list(left), masks)
        return masks, exponent

    typed_key = selection.as_key(key)
    numbers = jnp.array(_numbers(chosen, rounds), jnp.int32)
    every = [jnp.ones(leaf.shape, bool) for leaf in chosen.leaves]
    masks, _ = jax.lax.fori_loop(0, rounds, prune, (every, jnp.int32(0)))
    return chosen.masks(masks)


def _numbers(chosen: chosen_lib.Chosen, rounds: int) -> list[list[int]]:
    """How many entries are left after each round; the last is exact."""
    shares = [n / size for n, size in zip(chosen.numbers, chosen.sizes, strict=True)]
    return [
        [
            max(number, round(size * share ** (j / rounds)))
            for number, size, share in zip(
                chosen.numbers, chosen.sizes, shares, strict=True
            )
        ]
        for j in range(1, rounds)
    ] + [chosen.numbers]


def _balance(flow: Callable[[jax.Array], jax.Array], exponent: jax.Array) -> jax.Array:
    """The e for which activations lie between 2^-e and 2^e.

    Activations grow from the input, 2^-e, to R = 2^-e G, so that e = log2(G) / 2.

    Args:
      flow: R from the scale of the input.
      exponent: the e to try first, int32[].

    Returns:
      int32[]; the last one tried if R is 0 for all.
    """

    def is_searching(state):
        _, _, tries, found = state
        return ~found & (tries < 2 * _LARGEST_EXPONENT // _EXPONENT_STEP)

    def attempt(state):
        tried, _, tries, _ = state
        total = flow(_power_of_two(-tried))
        found = jnp.isfinite(total) & (total > 0)
        log = jnp.log2(jnp.where(found, total, jnp.float32(1)))
        balanced = jnp.round((log + tried.astype(jnp.float32)) / 2).astype(jnp.int32)
        # Neither a number nor zero: too large, so start from smaller inputs.
        further = tried + jnp.where(total == 0, -_EXPONENT_STEP, _EXPONENT_STEP)
        following = _clip(jnp.where(found, balanced, further))
        return following, tried, tries + 1, found

    state = (exponent, exponent, jnp.int32(0), jnp.zeros((), bool))
    return jax.lax.while_loop(is_searching, attempt, state)[0]


def _clip(exponent: jax.Array) -> jax.Array:
    return jnp.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent, exactly, float32[]."""
    return jnp.ldexp(jnp.ones((), jnp.float32), exponent)
