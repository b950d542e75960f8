"""Gives the convolutions and max pools of any function gradients that convert.

A network calls `jax.lax` somewhere deep inside. So the function is traced once, and
computed operation by operation, with those of `tflite_export.convolution` in place of
JAX's. A network needs to know nothing of it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core

from tflite_export import convolution
from tflite_export.errors import ExportError

# Calls that only group operations, whose contents can be put in their place.
_GROUPS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}


def with_builtin_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose reverse-mode gradients are built-in operators.

    Args:
      function: of pytrees of arrays, to a pytree of arrays.

    Returns:
      A function of the same arguments. It raises ExportError when it meets a
      convolution or a max pool of a kind whose gradient is not known here.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> pool = lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)).sum()
      >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
      >>> jax.grad(with_builtin_gradients(pool))(x).ravel()
      Array([0., 0., 0., 1.], dtype=float32)
    """

    def rewritten(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = _compute(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return rewritten


def _compute(jaxpr: Any, consts: Any, inputs: list[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex_core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        arguments = [read(atom) for atom in eqn.invars]
        if name in _RULES:
            outputs = [_RULES[name](*arguments, **eqn.params)]
        elif name in _GROUPS:
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            open_jaxpr = getattr(inner, "jaxpr", inner)
            outputs = _compute(open_jaxpr, getattr(inner, "consts", ()), arguments)
        else:
            _refuse_hidden(eqn)
            outputs = _apply(eqn, arguments)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, arguments: list[Any]) -> list[Any]:
    """One operation as it is, with whatever rules of differentiation it has."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Early 0.10 releases of JAX return functions to pass first, later ones do not.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    result = eqn.primitive.bind(*functions, *arguments, **params)
    return list(result) if eqn.primitive.multiple_results else [result]


def _refuse_hidden(eqn: Any) -> None:
    """Raises if an operation that is taken as it is computes with a rewritten one."""
    for inner in _jaxprs(eqn.params):
        for operation in inner.eqns:
            if operation.primitive.name in _RULES:
                raise ExportError(
                    f"{operation.primitive.name} inside of {eqn.primitive.name}: its "
                    "gradient cannot be replaced by one that converts; call it outside "
                    "of loops, branches and functions with gradients of their own."
                )
            _refuse_hidden(operation)


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **unused: Any,
) -> jax.Array:
    is_depthwise = feature_group_count > 1 and kernel.shape[2:] == (1, x.shape[-1])
    nhwc = ("NHWC", "HWIO", "NHWC")
    is_known = (
        x.ndim == 4
        and dimension_numbers == lax.conv_dimension_numbers(x.shape, kernel.shape, nhwc)
        and all(n == 1 for n in (*lhs_dilation, *rhs_dilation, batch_group_count))
        and (feature_group_count == 1 or is_depthwise)
        and min(min(pads) for pads in padding) >= 0
        and x.dtype == jnp.float32
    )
    if not is_known:
        raise ExportError(
            f"a convolution of {x.dtype}{list(x.shape)} by {list(kernel.shape)} in "
            f"{feature_group_count} groups: only float32 channels-last 2-D ones can be "
            "trained on a device, undilated, padded by 0 or more, in 1 group or "
            "depthwise with one output per channel."
        )
    strides = tuple(int(n) for n in window_strides)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return convolution.convolve(x, kernel, strides, pads, feature_group_count)


def _max_pool(
    x: jax.Array,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
) -> jax.Array:
    is_known = (
        x.ndim == 4
        and {window_dimensions[i] * window_strides[i] for i in (0, -1)} == {1}
        and (tuple(padding[0]), tuple(padding[-1])) == ((0, 0), (0, 0))
        and all(n == 1 for n in (*base_dilation, *window_dilation))
        and x.dtype == jnp.float32
    )
    if not is_known:
        raise ExportError(
            f"a max pool of {x.dtype}{list(x.shape)} with the window "
            f"{list(window_dimensions)}: only float32 channels-last 2-D ones can be "
            "trained on a device, undilated."
        )
    window, strides = tuple(window_dimensions[1:3]), tuple(window_strides[1:3])
    pads = tuple((int(low), int(high)) for low, high in padding[1:3])
    return convolution.max_pool(x, window, strides, pads)


_RULES = {"conv_general_dilated": _convolve, "reduce_window_max": _max_pool}
