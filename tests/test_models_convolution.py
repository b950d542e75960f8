"""Convolutions whose gradients are fast in loops compute what lax computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from neurrev_jax import models

NHWC = ("NHWC", "HWIO", "NHWC")


def compiled(function):
    """Without optimization, which would take longer than everything else."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def value_and_grads(convolve, x, w, strides, pads, groups):
    """A scalar of the convolution, and its gradients by input and kernel."""

    def value(x, w):
        y = convolve(
            x, w, strides, pads, dimension_numbers=NHWC, feature_group_count=groups
        )
        return jnp.sum(jnp.sin(y))

    return jax.value_and_grad(value, argnums=(0, 1))(x, w)


@pytest.mark.parametrize(
    ("size", "strides", "kernel", "padding", "groups"),
    [
        (8, (1, 1), 3, 1, 1),
        (8, (2, 2), 3, 1, 1),
        (7, (2, 2), 3, 1, 1),
        (8, (2, 2), 1, 0, 1),
        (7, (2, 1), 3, 0, 1),
        (9, (3, 2), 2, 1, 1),
        (8, (1, 1), 3, 1, 3),
        (8, (2, 2), 3, 1, 3),
        (9, (3, 2), 2, 1, 3),
    ],
)
def test_loop_convolution_has_the_gradients_of_lax(
    size, strides, kernel, padding, groups
):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, size, size + 1, 3))
    shape = (kernel, kernel, 3, 5) if groups == 1 else (kernel, kernel, 1, 3)
    w = jax.random.normal(keys[1], shape)
    pads = ((padding, padding), (padding, padding))

    def of(convolve):
        call = lambda x, w: value_and_grads(convolve, x, w, strides, pads, groups)
        return compiled(call)(x, w)

    actual = of(models.loop_convolution)
    expected = of(lax.conv_general_dilated)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        actual,
        expected,
    )


def test_depthwise_convolution_is_the_sum_of_its_taps():
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, 5, 7, 4))
    w = jax.random.normal(keys[1], (3, 3, 1, 4))
    pads = ((1, 1), (0, 2))
    convolve = lambda x, w: models.loop_convolution(
        x, w, (2, 1), pads, dimension_numbers=NHWC, feature_group_count=4
    )
    actual = compiled(convolve)(x, w)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    expected = np.zeros((2, 3, 7, 4))
    for u, v in np.ndindex(3, 7):
        window = padded[:, 2 * u : 2 * u + 3, v : v + 3]
        expected[:, u, v] = np.einsum("bijc,ijc->bc", window, np.asarray(w)[:, :, 0])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_depthwise_convolution_of_bfloat16_sums_in_float32():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((16, 16, 16, 3), (3, 3, 1, 3), (16, 16, 16, 3))
    narrow = [
        jax.random.normal(key, shape).astype(jnp.bfloat16)
        for key, shape in zip(keys, shapes, strict=True)
    ]

    @compiled
    def value_and_pullback(x, w, g):
        def convolve(x, w):
            return models.loop_convolution(
                x,
                w,
                (1, 1),
                ((1, 1), (1, 1)),
                dimension_numbers=NHWC,
                feature_group_count=3,
            )

        y, pullback = jax.vjp(convolve, x, w)
        return y, *pullback(g)

    actual = value_and_pullback(*narrow)
    wide = value_and_pullback(*(value.astype(jnp.float32) for value in narrow))
    for got, expected in zip(actual, wide, strict=True):
        # Rounded once, at the end.
        assert got.dtype == jnp.bfloat16
        assert np.mean(got == expected.astype(jnp.bfloat16)) > 0.99


def test_depthwise_convolution_can_be_scanned_and_mapped():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    kernels = jax.random.normal(jax.random.key(1), (2, 3, 3, 1, 3))
    pads = ((1, 1), (1, 1))

    def grads(w):
        return value_and_grads(models.loop_convolution, x, w, (2, 2), pads, 3)[1]

    one = compiled(grads)
    one_by_one = [one(w) for w in kernels]
    mapped = compiled(jax.vmap(grads))(kernels)
    scanned = compiled(lambda w: lax.map(grads, w))(kernels)
    for i, expected in enumerate(one_by_one):
        for actual in (mapped, scanned):
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5),
                actual,
                expected,
            )


def test_loop_convolution_leaves_other_convolutions_to_lax():
    x, w = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 1, 4))
    pads = ((1, 1), (1, 1))
    for options, kernel, padding in (
        ({"feature_group_count": 4}, w, "SAME"),
        ({"feature_group_count": 4}, jnp.ones((3, 3, 1, 8)), pads),
        ({"feature_group_count": 2}, jnp.ones((3, 3, 2, 4)), pads),
        ({"rhs_dilation": (2, 2)}, jnp.ones((3, 3, 4, 4)), pads),
    ):
        arguments = (x, kernel, (1, 1), padding)
        np.testing.assert_array_equal(
            models.loop_convolution(*arguments, dimension_numbers=NHWC, **options),
            lax.conv_general_dilated(*arguments, dimension_numbers=NHWC, **options),
        )
