"""Convolution and max pooling whose gradients are built-in operators of LiteRT.

JAX writes the gradients of a strided convolution as dilated ones and that of a max
pool as a scatter. The first become a TRANSPOSE_CONV, which is wrong where the padding
is explicit, and the second does not convert at all. Here both are written with PAD,
RESHAPE, slices, products and convolutions of stride 1.

Shape letters: B examples, H and W pixels of the input, U and V pixels of the output,
I and O channels of input and output, C channels, K and L rows and columns of a window.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

_NHWC = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pads, groups: int = 1
) -> jax.Array:
    """Convolves as `jax.lax.conv_general_dilated` does.

    The gradient by the input is a convolution of stride 1 of the cotangent with zeros
    between its pixels; that by the kernel is one matrix product per entry of the
    window, or for a depthwise convolution one sum. Only reverse-mode differentiation
    is supported.

    Args:
      x: [B, H, W, I], floating.
      kernel: [K, L, I, O], or [K, L, 1, I] for a depthwise one.
      strides: two strides.
      padding: ((low, high), (low, high)), not negative.
      groups: 1, or I for a depthwise one.

    Returns:
      [B, U, V, O].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> pads = ((1, 1), (1, 1))
      >>> grad = jax.grad(lambda x: convolve(x, kernel, (2, 2), pads).sum())(x)
      >>> grad[0, :, :, 0]
      Array([[1., 2., 1., 1.],
             [2., 4., 2., 2.],
             [1., 2., 1., 1.],
             [1., 2., 1., 1.]], dtype=float32)
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
    )


def _convolve_forward(x, kernel, strides, padding, groups):
    return convolve(x, kernel, strides, padding, groups), (x, kernel)


def _convolve_backward(strides, padding, groups, residuals, g):
    x, kernel = residuals
    # The kernel turned by 180 degrees; channels of input and output change places.
    turned = kernel[::-1, ::-1]
    if groups == 1:
        turned = jnp.transpose(turned, (0, 1, 3, 2))
    spread = _spread(g, strides)
    pads = [
        (k - 1 - low, n + low - size)
        for n, k, size, (low, _) in zip(
            x.shape[1:3], kernel.shape, spread.shape[1:3], padding, strict=False
        )
    ]
    dx = convolve(_fit(spread, pads), turned, (1, 1), ((0, 0), (0, 0)), groups)
    shifts = _shifts(_fit(x, padding), kernel.shape[:2], strides, g.shape[1:3])
    if groups == 1:
        rows = g.reshape(-1, g.shape[3])
        taps = [shift.reshape(-1, x.shape[3]).T @ rows for shift in shifts]
    else:
        taps = [jnp.sum(shift * g, axis=(0, 1, 2)) for shift in shifts]
    return dx, jnp.stack(taps).reshape(kernel.shape)


convolve.defvjp(_convolve_forward, _convolve_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: Pair, strides: Pair, padding: Pads) -> jax.Array:
    """The maximum of each window, as `flax.linen.max_pool` takes it.

    The gradient of a window goes to its first maximum, row by row, as JAX has it.
    Only reverse-mode differentiation is supported.

    Args:
      x: [B, H, W, C], floating.
      window: (K, L).
      strides: two strides.
      padding: ((low, high), (low, high)), not negative; of minus infinity.

    Returns:
      [B, U, V, C].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([[1.0, 2.0], [2.0, 0.0]]).reshape(1, 2, 2, 1)
      >>> pool = lambda x: max_pool(x, (2, 2), (2, 2), ((0, 0), (0, 0))).sum()
      >>> jax.grad(pool)(x)[0, :, :, 0]
      Array([[0., 1.],
             [0., 0.]], dtype=float32)
    """
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, *window, 1),
        (1, *strides, 1),
        ((0, 0), *padding, (0, 0)),
    )


def _max_pool_forward(x, window, strides, padding):
    y = max_pool(x, window, strides, padding)
    return y, (x, y)


def _max_pool_backward(window, strides, padding, residuals, g):
    x, y = residuals
    padded = _fit(x, padding, -jnp.inf)
    size = padded.shape[1:3]
    taken = jnp.zeros(y.shape, bool)
    total = jnp.zeros_like(padded)
    offsets = [(i, j) for i in range(window[0]) for j in range(window[1])]
    shifts = _shifts(padded, window, strides, y.shape[1:3])
    for offset, shift in zip(offsets, shifts, strict=True):
        chosen = (shift == y) & ~taken
        taken = taken | chosen
        spread = _spread(jnp.where(chosen, g, jnp.zeros_like(g)), strides)
        # Back to where the window took it from.
        back = [
            (start, n - start - m)
            for start, n, m in zip(offset, size, spread.shape[1:3], strict=True)
        ]
        total = total + _fit(spread, back)
    return (_fit(total, [(-low, -high) for low, high in padding]),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _spread(g: jax.Array, strides: Pair) -> jax.Array:
    """[B, U, V, C] to [B, U * down, V * across, C]: zeros after each row and column.

    By PAD and RESHAPE of at most four dimensions: more have no fast kernel, and some
    none at all.
    """
    batch, u, v, channels = g.shape
    down, across = strides
    if down > 1:
        g = _pad_axis_2(g.reshape(batch, u, 1, v * channels), down - 1)
    if across > 1:
        g = _pad_axis_2(g.reshape(batch * u * down, v, 1, channels), across - 1)
    return g.reshape(batch, u * down, v * across, channels)


def _pad_axis_2(x: jax.Array, zeros: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, zeros), (0, 0)))


def _fit(x: jax.Array, pads, value: float = 0.0) -> jax.Array:
    """Pads H and W; where a number is negative, cuts off so many pixels."""
    for axis, (low, high) in enumerate(pads, start=1):
        x = lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
    widths = [(max(low, 0), max(high, 0)) for low, high in pads]
    if any(low or high for low, high in widths):
        x = jnp.pad(x, ((0, 0), *widths, (0, 0)), constant_values=value)
    return x


def _shifts(
    x: jax.Array, window: tuple[int, ...], strides: Pair, size: tuple[int, ...]
) -> Iterator[jax.Array]:
    """For each entry of the window, row by row, the pixels that lie under it."""
    batch, _, _, channels = x.shape
    (u, v), (down, across) = size, strides
    for i in range(window[0]):
        for j in range(window[1]):
            limit = (batch, i + (u - 1) * down + 1, j + (v - 1) * across + 1, channels)
            yield lax.slice(x, (0, i, j, 0), limit, (1, down, across, 1))
