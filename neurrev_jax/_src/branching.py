"""Doing something on some calls only, without cost on the others."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

T = TypeVar("T")


@jax.custom_batching.custom_vmap
def _anywhere(predicate: jax.Array) -> jax.Array:
    return predicate


@_anywhere.def_vmap
def _anywhere_vmap(axis_size, in_batched, predicate):
    del axis_size, in_batched
    # Again through `_anywhere`, for the next vmap around this one.
    return _anywhere(jnp.any(predicate)), False


@jax.custom_batching.custom_vmap
def _where_own(predicate, new, old):
    # Without vmap the loop body runs only where the predicate holds, and a select
    # would only keep the old values from being overwritten in place.
    del predicate, old
    return new


@_where_own.def_vmap
def _where_own_vmap(axis_size, in_batched, predicate, new, old):
    if not in_batched[0]:
        return _where_own(predicate, new, old), in_batched[1]

    def select(a, b, a_batched, b_batched):
        a, b = (
            x if batched else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))
            for x, batched in ((a, a_batched), (b, b_batched))
        )
        own = jnp.reshape(predicate, (axis_size,) + (1,) * (jnp.ndim(a) - 1))
        return jnp.where(own, a, b)

    mine = jax.tree.map(select, new, old, in_batched[1], in_batched[2])
    return mine, jax.tree.map(lambda _: True, mine)


def run_if(
    predicate: jax.typing.ArrayLike, fn: Callable[..., T], carry: T, operands: Any = ()
) -> T:
    """`fn(carry, *operands)` where the predicate holds, else `carry`, in place.

    A loop that runs at most once stands in for `jax.lax.cond`: XLA updates the
    carry of a loop in place, whereas it copies what a conditional returns, which on
    every ordinary step would cost more than the whole optimizer. Under `vmap` the
    loop runs if any replica's predicate holds, and each replica applies its own;
    it never becomes a select that does the work on every step. A predicate that
    is known (not traced) is a Python `if`.

    Args:
      predicate: bool scalar.
      fn: keeps the structure, shapes and types of its first argument.
      carry: pytree of arrays.
      operands: whatever large arrays `fn` reads besides. (What it closes over and
        does not depend on the carry, XLA would compute before the loop, always.)

    Returns:
      A pytree like `carry`.
    """
    predicate = jnp.asarray(predicate, bool)
    if not isinstance(predicate, Tracer):
        return fn(carry, *operands) if predicate else carry

    def body(state):
        running, old = state
        # Ties the operands to the loop, so that nothing is hoisted out of it.
        read, _ = jax.lax.optimization_barrier((operands, running))
        new = fn(old, *read)
        new = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), new, old)
        return jnp.zeros((), bool), _where_own(predicate, new, old)

    carry = jax.tree.map(jnp.asarray, carry)
    return jax.lax.while_loop(
        lambda state: state[0], body, (_anywhere(predicate), carry)
    )[1]
