"""A depthwise convolution written as a sum of shifted products.

Shape letters: B examples, H and W pixels of the input, U and V pixels of the output,
C channels, K kernel size.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_Pads = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_depthwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: _Pads
) -> jax.Array:
    """Convolves each channel with its own kernel.

    y = sum over (i, j) of kernel[i, j] times x shifted by (i, j): K * K products
    that XLA fuses into one pass, where its CPU compiler has scalar code for grouped
    convolutions, inside of loops and outside, forwards and for the gradients.
    Measured on 2 CPU cores, a value with its gradients took 7 to 27 % of the time
    outside of a `lax.scan` and 1 to 7 % inside; compiling a MobileNetV1 takes three
    times as long. Only reverse-mode differentiation is supported. Sums are taken in
    float32 at least.

    Args:
      x: [B, H, W, C], floating.
      kernel: [K, K, 1, C].
      strides: two strides.
      padding: ((low, high), (low, high)), not negative.

    Returns:
      [B, U, V, C].

    Example:
      >>> import jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
      >>> convolve_depthwise(x, kernel, (2, 2), ((1, 1), (1, 1)))[0, :, :, 0]
      Array([[4., 6.],
             [6., 9.]], dtype=float32)
    """
    x_padded = _pad(x, [(*pads, 0) for pads in padding])
    size = [
        (x_padded.shape[axis] - kernel.shape[axis - 1]) // strides[axis - 1] + 1
        for axis in (1, 2)
    ]
    return _correlate(x_padded, kernel, strides, size).astype(x.dtype)


def _forward(x, kernel, strides, padding):
    return convolve_depthwise(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, g):
    x, kernel = residuals
    pads = []
    for axis in (1, 2):
        n, k, low = x.shape[axis], kernel.shape[axis - 1], padding[axis - 1][0]
        spread = (g.shape[axis] - 1) * strides[axis - 1] + 1
        pads.append((k - 1 - low, n + low - spread, strides[axis - 1] - 1))
    turned = kernel[::-1, ::-1]
    dx = _correlate(_pad(g, pads), turned, (1, 1), x.shape[1:3])
    x_padded = _pad(x, [(*low_high, 0) for low_high in padding])
    wide = np.promote_types(g.dtype, jnp.float32)
    dkernel = [
        jnp.sum(shifted.astype(wide) * g.astype(wide), axis=(0, 1, 2))
        for shifted in _shifts(x_padded, kernel.shape, strides, g.shape[1:3])
    ]
    dkernel = jnp.stack(dkernel).reshape(kernel.shape)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


convolve_depthwise.defvjp(_forward, _backward)


def _correlate(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], size: Sequence[int]
) -> jax.Array:
    """[B, H, W, C] and [K, K, 1, C] to [B, *size, C], in float32 at least."""
    wide = np.promote_types(x.dtype, jnp.float32)
    taps = kernel.astype(wide).reshape(-1, 1, 1, 1, x.shape[-1])
    shifts = _shifts(x, kernel.shape, strides, size)
    products = [
        shifted.astype(wide) * jnp.broadcast_to(tap, shifted.shape)
        for shifted, tap in zip(shifts, taps, strict=True)
    ]
    return functools.reduce(jnp.add, products)


def _shifts(
    x: jax.Array,
    kernel_shape: tuple[int, ...],
    strides: tuple[int, int],
    size: Sequence[int],
) -> Iterator[jax.Array]:
    """For each entry of the kernel, row by row, the pixels that it multiplies."""
    batch, _, _, channels = x.shape
    (u, v), (down, across) = size, strides
    for i in range(kernel_shape[0]):
        for j in range(kernel_shape[1]):
            limit = (batch, i + (u - 1) * down + 1, j + (v - 1) * across + 1, channels)
            yield lax.slice(x, (0, i, j, 0), limit, (1, down, across, 1))


def _pad(x: jax.Array, pads: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Pads H and W by (low, high, interior) zeros."""
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    # Computed once: fused into each of the shifts it would cost more than they do.
    return lax.optimization_barrier(padded)
