"""Convolutions rewritten as shifts: the same function, in other operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from neurrev_jax import models
from tflite_export import rewriting

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spec(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def conv(x, kernel, stride=1, padding=1, groups=1, dilation=1):
    pads = padding if isinstance(padding, str) else ((padding, padding),) * 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


def operations(function, x):
    """How often each kind of convolution is computed, by (kernel, stride, groups)."""
    counts = {}
    for equation in jax.make_jaxpr(function)(x).jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            kind = (
                kernel[0],
                equation.params["window_strides"][0],
                equation.params["feature_group_count"] > 1,
            )
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def assert_same(f, x, at_most=2e-6):
    rewritten = rewriting.rewrite(f, [spec(x)])
    got, wanted = jax.jit(rewritten)(x), jax.jit(f)(x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=at_most * float(jnp.abs(b).max() or 1))
    return rewritten


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_3x3_convolution_is_the_same_as_shifts_and_1x1_ones(size, stride, channels):
    x, kernel = draw(2, *size, channels), draw(3, 3, channels, 5, seed=1)
    rewritten = assert_same(lambda x: conv(x, kernel, stride), x)
    kinds = operations(rewritten, x)
    if (stride, channels) == (2, 3):
        assert kinds == {(3, 2, False): 1}, "the entry itself has to stay"
    elif stride == 1:
        # An entry, a shift for all taps but the middle, and nine 1x1 convolutions.
        assert kinds == {(3, 2, False): 1, (3, 1, True): 8, (1, 1, False): 9}
    else:
        assert kinds == {(3, 2, False): 1, (3, 2, True): 9, (1, 1, False): 9}


def test_taps_without_weights_are_left_out():
    x, kernel = draw(1, 6, 6, 3), draw(3, 3, 3, 4, seed=1)
    kernel[0] = 0
    kernel[1, 1] = 0
    rewritten = assert_same(lambda x: conv(x, kernel), x)
    assert operations(rewritten, x) == {
        (3, 2, False): 1,
        (3, 1, True): 5,
        (1, 1, False): 5,
    }


def test_a_layer_without_any_weight_gives_its_bias():
    x = draw(1, 4, 4, 3)
    rewritten = assert_same(lambda x: conv(x, np.zeros((3, 3, 3, 2), "f")) + 1.5, x)
    assert operations(rewritten, x)[(1, 1, False)] == 1


def test_two_convolutions_of_one_input_share_its_shifts():
    x, a, b = draw(1, 8, 8, 3), draw(3, 3, 3, 4), draw(1, 1, 3, 4, seed=2)

    def f(x):
        return conv(x, a, 1) * conv(x, b, 1, padding=0)

    def block(x):
        y = conv(x, a)
        return conv(y, draw(3, 3, 4, 4), 2) + conv(y, draw(1, 1, 4, 4), 2, padding=0)

    assert_same(f, x)
    rewritten = assert_same(block, x)
    # Of the 1x1 shortcut of stride 2 the subsampling is the middle tap's.
    assert operations(rewritten, x)[(3, 2, True)] == 9


@pytest.mark.parametrize(
    "absorbed",
    [
        lambda y, c: y + c,
        lambda y, c: c - y,
        lambda y, c: y - c,
        lambda y, c: (y * c - 0.5) / 3 + c,
        lambda y, c: 2 * y,
    ],
)
def test_what_is_done_per_channel_is_folded_into_the_weights(absorbed):
    x, kernel, c = draw(1, 6, 6, 2), draw(3, 3, 2, 5), draw(5, seed=3)

    def f(x):
        return jax.nn.relu(absorbed(conv(x, kernel), c.reshape(1, 1, 1, 5)))

    rewritten = assert_same(f, x)
    names = [e.primitive.name for e in jax.make_jaxpr(rewritten)(x).jaxpr.eqns]
    assert not {"mul", "sub", "div"} & set(names)


def test_what_is_not_per_channel_is_left_alone():
    x, kernel = draw(1, 6, 6, 2), draw(3, 3, 2, 5)
    of_pixels = draw(1, 6, 6, 5, seed=4)
    assert_same(lambda x: conv(x, kernel) * of_pixels, x)
    assert_same(lambda x: of_pixels / (conv(x, kernel) + 100.0), x)


def test_a_convolution_read_twice_keeps_both_values():
    x, kernel = draw(1, 6, 6, 2), draw(3, 3, 2, 3)

    def f(x):
        y = conv(x, kernel)
        return jax.nn.relu(y) + 2 * y, y

    assert_same(f, x)


@pytest.mark.parametrize(
    "options",
    [
        {"dilation": 2, "padding": 2},
        {"groups": 4},
        {"stride": 2, "padding": "SAME"},
        {"stride": 3},
        {"padding": 0},
    ],
)
def test_convolutions_of_another_kind_stay_as_they_are(options):
    x = draw(1, 8, 8, 4)
    kernel = draw(3, 3, 4 // options.get("groups", 1), 8, seed=1)
    rewritten = assert_same(lambda x: conv(x, kernel, **options), x)
    kinds = operations(rewritten, x)
    assert list(kinds.values()) == [1]


def test_behind_a_max_pool_nothing_is_rewritten():
    x, first, second = draw(1, 8, 8, 3), draw(3, 3, 3, 4), draw(3, 3, 4, 4)

    def f(x):
        y = conv(x, first)
        y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
        return conv(y, second)

    rewritten = assert_same(f, x)
    assert operations(rewritten, x)[(3, 1, False)] == 1


@functools.cache
def network_and_variables():
    network = models.ResNet((1, 1), (4, 8), num_classes=3)
    x = draw(1, 8, 8, 3)
    variables = network.init(jax.random.key(0), x)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    # Statistics as after training, so that folding them is no identity.
    stats = jax.tree.map(
        lambda leaf: 0.5 + jax.random.uniform(next(keys), leaf.shape),
        variables["batch_stats"],
    )
    return network, {"params": variables["params"], "batch_stats": stats}


def test_a_whole_network_is_the_same_and_has_only_1x1_convolutions_inside():
    network, variables = network_and_variables()
    x = draw(1, 8, 8, 3, seed=5)
    rewritten = assert_same(lambda x: network.apply(variables, x), x, at_most=1e-5)
    kinds = operations(rewritten, x)
    assert set(kinds) == {(3, 2, False), (3, 1, True), (3, 2, True), (1, 1, False)}
    assert kinds[(3, 2, False)] == 1


def test_names_of_layers_stay():
    network, variables = network_and_variables()
    x = draw(1, 8, 8, 3)
    rewritten = rewriting.rewrite(lambda x: network.apply(variables, x), [spec(x)])
    scopes = {
        str(e.source_info.name_stack)
        for e in jax.make_jaxpr(rewritten)(x).jaxpr.eqns
        if e.primitive.name == "conv_general_dilated"
    }
    assert "ResNet/stage_2/block_1/conv_1" in scopes
    assert "ResNet/stage_2/block_1/conv_1/shift" in scopes
    assert "ResNet/stem/conv/entry" in scopes


def test_several_inputs_and_a_tree_of_outputs():
    kernel = draw(3, 3, 2, 3)

    def f(x, scale):
        y = conv(x, kernel) * scale
        return {"maps": y, "sums": (jnp.sum(y, (1, 2)), scale)}

    x, scale = draw(1, 4, 4, 2), draw(1, 1, 1, 1)
    got = rewriting.rewrite(f, [spec(x), spec(scale)])(x, scale)
    wanted = f(x, scale)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("activation", [jax.nn.leaky_relu, jax.nn.silu, jax.nn.relu6])
def test_activations_of_any_form_do_not_repeat_a_convolution(activation):
    x, first, second = draw(1, 6, 6, 2), draw(3, 3, 2, 4), draw(3, 3, 4, 3)
    # Without padding nothing becomes shifts, and convolutions can be counted.
    f = lambda x: conv(activation(conv(x, first, padding=0)), second, padding=0)
    rewritten = assert_same(f, x)
    assert operations(rewritten, x) == {(3, 1, False): 2}
