"""A convolution whose gradients stay fast inside compiled loops on a CPU.

Shape letters: B examples, H and W pixels of the input, U and V pixels of the
output, I and O channels of input and output, K kernel size.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from neurrev_jax.models.depthwise import convolve_depthwise

Convolution = Callable[..., jax.Array]
"""Whatever is called like `jax.lax.conv_general_dilated`."""

_NHWC = ("NHWC", "HWIO", "NHWC")
_Padding = tuple[tuple[int, int], tuple[int, int]]


def loop_convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    **kwargs: Any,
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated` does, with gradients for loops.

    XLA's CPU compiler brings convolutions into the layout of its fast kernels only
    outside of loops; inside a `lax.scan` the gradient convolutions, which JAX
    expresses by permuted dimension numbers, fall back to scalar code. Here the same
    gradients are written with explicit transpositions, in the layout that is fast
    everywhere; that made a scanned training step of a small ResNet about 40 times
    faster. A depthwise convolution, which XLA's CPU compiler has no fast kernel for
    anywhere, becomes a sum of shifted products (see the module `depthwise`). Elsewhere
    than on a CPU there is nothing to gain. Only reverse-mode differentiation is
    supported.

    A convolution of another kind than channels-last, 2-D and undilated, with explicit
    padding and one group or as many as it has channels, goes to
    `jax.lax.conv_general_dilated` unchanged.

    Args:
      lhs: [B, H, W, I].
      rhs: [K, K, I, O], or [K, K, 1, I] for a depthwise one.
      window_strides: two strides.
      padding: ((low, high), (low, high)), not negative.
      lhs_dilation: None or ones.
      rhs_dilation: None or ones.
      dimension_numbers: as in `jax.lax.conv_general_dilated`.
      feature_group_count: 1, or I.
      precision: as in `jax.lax.conv_general_dilated`.
      **kwargs: anything else `jax.lax.conv_general_dilated` takes.

    Returns:
      [B, U, V, O].

    Example:
      >>> import jax.numpy as jnp
      >>> from neurrev_jax.models import ResNet, loop_convolution
      >>> net = ResNet((1,), (4,), num_classes=3, convolution=loop_convolution)
    """
    is_depthwise = (
        lhs.ndim == 4
        and feature_group_count > 1
        and rhs.shape[2:] == (1, lhs.shape[3])
        and feature_group_count == lhs.shape[3]
    )
    is_plain = (
        lhs.ndim == 4
        and not isinstance(padding, str)
        and all(int(n) == 1 for n in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and (feature_group_count == 1 or is_depthwise)
        and not kwargs
        and dimension_numbers is not None
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    )
    if not is_plain:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            **kwargs,
        )
    strides = (int(window_strides[0]), int(window_strides[1]))
    (top, bottom), (left, right) = padding
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    if is_depthwise:
        return convolve_depthwise(lhs, rhs, strides, pads)
    return _convolve(lhs, rhs, strides, pads, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: _Padding,
    precision: Any,
) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=_NHWC, precision=precision
    )


def _forward(x, kernel, strides, padding, precision):
    return _convolve(x, kernel, strides, padding, precision), (x, kernel)


def _backward(strides, padding, precision, residuals, g):
    x, kernel = residuals
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        dimension_numbers=_NHWC,
        precision=precision,
    )
    input_pads, kernel_pads = [], []
    for axis in (1, 2):
        n, k, low = x.shape[axis], kernel.shape[axis - 1], padding[axis - 1][0]
        spread = (g.shape[axis] - 1) * strides[axis - 1] + 1
        input_pads.append((k - 1 - low, n + low - spread))
        kernel_pads.append((low, k - 1 + spread - n - low))
    # [B, U, V, O] * [K, K, O, I], the kernel turned by 180 degrees.
    turned = jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2))
    dx = convolve(g, turned, padding=input_pads, lhs_dilation=strides)
    # [I, H, W, B] * [U, V, B, O]: the examples take the place of the channels.
    dkernel = convolve(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(g, (1, 2, 0, 3)),
        padding=kernel_pads,
        rhs_dilation=strides,
    )
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


_convolve.defvjp(_forward, _backward)
