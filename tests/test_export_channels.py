"""Channels that make no difference are cut out; what has to stay is counted."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from rich.console import Console

import neurrev_jax
import tflite_export
from neurrev_jax import models
from tests import harness
from tflite_export import channels, layers, report, rewriting
from tflite_export.recording import record

# TensorFlow is loaded by one process, and JAX's own converter promotes as it likes.
pytestmark = [pytest.mark.xdist_group("export"), pytest.mark.loose_numerics]

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def without(kernel, *dead):
    """The kernel with filters removed."""
    kernel = kernel.copy()
    kernel[..., list(dead)] = 0
    return kernel


def conv(x, kernel, stride=1, padding=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


def cut(f, *inputs):
    """What is cut out of a function, having seen that it computes the same."""
    specs = [jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype) for x in inputs]
    found = channels.cut(record(f, specs))
    got, wanted = jax.jit(found.recording)(*inputs), jax.jit(f)(*inputs)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max() or 1))
    return found


def widths(function, x):
    """(inputs, outputs) of each convolution."""
    return [
        equation.invars[1].aval.shape[2:]
        for equation in jax.make_jaxpr(function)(x).jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]


# --- networks whose channels Chase removed ------------------------------------


NETWORKS = {
    "mobilenet": models.MobileNetV1(3, widths=(8, 12, 12), strides=(2, 1, 2)),
    "vgg": models.VGG((2, 1), (8, 12), 3),
    "resnet": models.ResNet((1, 1), (8, 16), 3),
    "prelu": models.VGG((1, 1), (8, 12), 3, activation="prelu"),
}
SHAPE = (1, 8, 8, 3)


@functools.cache
def chased(name):
    """(variables, number of channels that the masks have lost)."""
    network = NETWORKS[name]
    rng = np.random.default_rng(0)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(SHAPE))
    # Statistics as after training: batch norm makes something of every zero.
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.2, 1, x.shape) * 0.5, jnp.float32),
        variables,
    )
    params = jax.tree.map(
        lambda x: x * rng.choice([-1, 1], x.shape) if x.ndim > 1 else x,
        variables["params"],
    )
    groups = models.channel_groups(params)
    method = neurrev_jax.chase(
        schedule=neurrev_jax.periodic(1),
        soft_until=1,
        groups=groups,
        channel_sparsity=0.4,
        channel_window=(0, 1),
        channel_floor=0.25,
    )
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.5)
    state = tx.init(params)
    params = neurrev_jax.sparsify(params, state)
    update = jax.jit(tx.update)
    for _ in range(2):
        gradients = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params
        )
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    masks = harness.leaves(state.masks)
    removed = 0
    for group in groups:
        left = np.zeros(group.width, bool)
        for path, axis, _ in group.axes:
            left |= np.moveaxis(masks[path], axis, 0).reshape(group.width, -1).any(1)
        removed += int(np.sum(~left))

    return {**variables, "params": params}, removed


def export(network, variables):
    def apply(params, x):
        return network.apply({**variables, "params": params}, x)

    spec = jax.ShapeDtypeStruct(SHAPE, np.float32)
    return tflite_export.convert(apply, variables["params"], spec, sparse=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_that_chase_removed_is_missing_in_the_file(name):
    variables, removed = chased(name)
    exported = export(NETWORKS[name], variables)
    assert removed >= 6
    assert (exported.dead_channels, exported.kept_channels) == (removed, {})
    inputs = [draw(*SHAPE, seed=i) for i in range(3)]
    found = tflite_export.verify(exported, inputs)
    assert found.passed and found.relative_difference < 1e-5
    assert all(leaf.stored == leaf.nonzero for leaf in found.weights)
    # Not only counted: no filter without a weight is left, nor an input unread.
    for layer in layers.find(exported.graph):
        stored = layer.weights.data.reshape(layer.weights.shape) != 0
        rest = tuple(range(stored.ndim - 1))
        if layer.operator.kind != "DEPTHWISE_CONV_2D":
            assert stored.reshape(len(stored), -1).any(axis=1).all(), layer.name
        assert stored.any(axis=rest).all(), layer.name


@pytest.mark.parametrize("activation", ["swish", "leaky_relu"])
def test_activations_that_read_a_convolution_twice_let_channels_go(activation):
    variables, removed = chased("vgg")
    exported = export(NETWORKS["vgg"].clone(activation=activation), variables)
    assert exported.dead_channels == removed
    assert tflite_export.verify(exported, [draw(*SHAPE)]).passed


@pytest.mark.parametrize(
    ("activation", "hardware"),
    # sigmoid makes 0.5 of zero: that channel goes because no weight reads it.
    [("gelu", False), ("elu", False), ("sigmoid", False), ("swish", True)],
)
def test_so_do_others_and_their_tables(activation, hardware):
    variables, removed = chased("vgg")
    network = NETWORKS["vgg"].clone(activation=activation, hardware=hardware)
    found = cut(lambda x: network.apply(variables, x), draw(*SHAPE))
    assert found.removed == removed


def test_a_depthwise_convolution_written_as_shifted_products_loses_its_channels():
    variables, removed = chased("mobilenet")
    network = NETWORKS["mobilenet"].clone(convolution=models.loop_convolution)
    found = cut(lambda x: network.apply(variables, x), draw(*SHAPE))
    assert found.removed == removed


def test_a_channel_of_a_residual_stream_stays_where_another_layer_adds_to_it():
    variables, removed = chased("resnet")
    variables = jax.tree.map(np.array, variables)
    block = variables["params"]["stage_2"]["block_1"]
    f = lambda x: NETWORKS["resnet"].apply(variables, x)
    for leaf in (block["conv_2"]["kernel"], *block["norm_2"].values()):
        leaf[..., :5] = 0
    found = channels.cut(record(f, [jax.ShapeDtypeStruct(SHAPE, np.float32)]))
    assert found.removed == removed
    assert found.kept == {"part of a sum that is not zero": 5}
    # Without a shortcut there nothing of these channels is left to add.
    for leaf in (block["shortcut_conv"]["kernel"], *block["shortcut_norm"].values()):
        leaf[..., 1:4] = 0
    found = cut(lambda x: f(x), draw(*SHAPE))
    assert found.removed == removed + 3
    assert found.kept == {"part of a sum that is not zero": 2}


# --- single operations --------------------------------------------------------


def test_a_sum_loses_what_both_sides_have_lost():
    x, last = draw(1, 6, 6, 2), draw(3, 3, 6, 3, seed=1)
    left, right = without(draw(3, 3, 2, 6), 0, 1), without(draw(1, 1, 2, 6), 1, 2)

    def f(x):
        y = jax.nn.relu(conv(x, left)) + conv(x, right, padding=0)
        return conv(y, last)

    found = cut(f, x)
    assert (found.removed, found.kept) == (1, {"part of a sum that is not zero": 2})
    assert widths(found.recording, x) == [(2, 5), (2, 5), (5, 3)]


@pytest.mark.parametrize("shifts", [False, True])
def test_a_channel_goes_with_what_reads_it(shifts):
    x, second = draw(1, 6, 6, 2), draw(3, 3, 6, 3, seed=1)
    first, shift = without(draw(3, 3, 2, 6), 1, 4), without(draw(6, seed=3), 1, 4)

    def f(x):
        y = conv(x, first) * draw(6, seed=2) + shift
        return conv(jax.nn.relu(y), second)

    found = cut(f, x)
    assert found.removed == 2
    assert widths(found.recording, x) == [(2, 4), (4, 3)]
    if shifts:
        spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
        rewritten = rewriting.rewrite(found.recording, [spec])
        np.testing.assert_allclose(jax.jit(rewritten)(x), f(x), atol=2e-5)
        assert 6 not in {n for pair in widths(rewritten, x) for n in pair}


def pooled(y):
    window = ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return lax.reduce_window(y, -jnp.inf, lax.max, *window)


def averaged(y):
    return lax.reduce_window(y, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "SAME") / 4


THROUGH = {
    "depthwise": lambda y: conv(y, draw(3, 3, 1, 6), groups=6),
    "max pool": pooled,
    "average pool": averaged,
    "padding": lambda y: jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0))),
    "slice": lambda y: y[:, 1:, ::2],
    "minimum": lambda y: jnp.minimum(y, jnp.max(y, axis=(1, 2), keepdims=True)),
    "transposed twice": lambda y: (y.transpose(3, 0, 2, 1) * 2).transpose(1, 3, 2, 0),
    "reshaped twice": lambda y: jnp.tanh(y.reshape(36, 6)).reshape(1, 6, 6, 6),
    "one number": lambda y: y * jnp.sum(jnp.ones(3)),
    "of pixels": lambda y: y * draw(1, 6, 6, 1),
    "of everything": lambda y: y * draw(1, 6, 6, 6),
    "its own mean": lambda y: y * jax.nn.sigmoid(jnp.mean(y, (1, 2), keepdims=True)),
    # Computed from all channels, and the same for all of them.
    "attention": lambda y: y * jax.nn.sigmoid(conv(y, draw(1, 1, 6, 1), padding=0)),
}


@pytest.mark.parametrize("name", THROUGH)
def test_what_keeps_channels_apart_lets_them_go(name):
    first, second = without(draw(3, 3, 2, 6), 1, 4), draw(3, 3, 6, 3, seed=1)
    f = lambda x: conv(THROUGH[name](conv(x, first)), second)
    assert cut(f, draw(1, 6, 6, 2)).removed == 2


HELD = {
    "read by sort": lambda y: jnp.sort(y, axis=1),
    "read by concatenate": lambda y: jnp.concatenate([y, y], axis=-1)[..., :6],
    "read by rev": lambda y: y[..., ::-1],
    "in a convolution of groups": lambda y: conv(y, draw(3, 3, 3, 6), groups=2),
    "read by dot_general along another axis": lambda y: jnp.einsum(
        "bhwc,wv->bhvc", y, draw(6, 6)
    ),
}


@pytest.mark.parametrize("why", HELD)
def test_what_does_not_holds_them_and_says_so(why):
    first, second = without(draw(3, 3, 2, 6), 1, 4), draw(3, 3, 6, 3, seed=1)
    f = lambda x: conv(HELD[why](conv(x, first)), second)
    found = cut(f, draw(1, 6, 6, 2))
    assert (found.removed, found.kept) == (0, {why: 2})


def test_outputs_of_the_network_keep_their_channels():
    first, second = without(draw(3, 3, 2, 6), 1, 4), without(draw(3, 3, 6, 3), 0)

    def f(x):
        y = jax.nn.relu(conv(x, first))
        return {"maps": y, "last": conv(y, second)}

    found = cut(f, draw(1, 6, 6, 2))
    assert (found.removed, found.kept) == (0, {"an output of the network": 3})


@pytest.mark.parametrize(("unread", "removed"), [((), 1), ((2, 3), 3)])
def test_a_channel_with_a_bias_stays_unless_nothing_reads_it(unread, removed):
    first, second = without(draw(3, 3, 2, 4), 0, 1, 2), draw(3, 3, 4, 3)
    bias = np.float32([1, 0, 1, 1])
    second[:, :, unread] = 0
    f = lambda x: conv(jax.nn.relu(conv(x, first) + bias), second)
    found = cut(f, draw(1, 6, 6, 2))
    kept = {"a constant other than zero, by a bias": 1 if unread else 2}
    assert (found.removed, found.kept) == (removed, kept)


@pytest.mark.parametrize(
    ("after", "removed"),
    [
        (jax.nn.sigmoid, 0),
        (lambda y: jnp.maximum(y, -1.0), 1),
        (lambda y: jnp.maximum(y, 0.5), 0),
        (lambda y: jnp.maximum(y, 0.0) * 2.0, 1),
        (lambda y: jnp.where(y > 0, y, -1.0), 0),
        (lambda y: 1.0 / (y + 2.0) - 0.5, 1),
    ],
)
def test_what_matters_is_what_becomes_of_zero(after, removed):
    first, second = without(draw(3, 3, 2, 4), 0), draw(3, 3, 4, 3)
    f = lambda x: conv(after(jnp.abs(conv(x, first))), second)
    assert cut(f, draw(1, 6, 6, 2)).removed == removed


def test_a_window_in_the_padding_as_a_whole_is_no_zero():
    first, second = without(draw(3, 3, 2, 4), 0), draw(3, 3, 4, 3)

    def f(x, pad):
        pads = ((0, 0), (pad, 0), (0, 0), (0, 0))
        y = conv(x, first)
        y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), pads)
        return conv(jnp.maximum(y, -1.0), second)

    x = draw(1, 6, 6, 2)
    assert cut(functools.partial(f, pad=1), x).removed == 1
    assert cut(functools.partial(f, pad=2), x).removed == 0


def test_what_only_feeds_removed_channels_goes_too():
    """Channels are followed forwards as zeros and backwards as never read."""
    a, b, c = draw(4, 6), draw(6, 6, seed=1), draw(6, 3, seed=2)
    # The second layer reads no. 0 of the first only for its no. 1, which nobody reads.
    b[0], b[0, 1], c[1] = 0, 1, 0
    # No. 2 of the first layer is zero, and all that no. 3 of the second reads.
    a[:, 2], b[:, 3], b[2, 3] = 0, 0, 1
    f = lambda x: jax.nn.relu(jax.nn.relu(x @ a) @ b) @ c
    found = cut(f, draw(2, 4))
    assert (found.removed, found.kept) == (4, {})
    shapes = [o.outputs[0].shape for o in found.recording.operations]
    assert shapes == [(2, 4), (2, 4), (2, 4), (2, 4), (2, 3)]


def test_pixels_and_channels_in_one_axis():
    first, norm = without(draw(3, 3, 2, 6), 1, 4), draw(1, 6 * 6 * 6)
    dense = draw(6 * 6 * 6, 5)
    f = lambda x: (conv(x, first).reshape(1, -1) * norm) @ dense
    found = cut(f, draw(1, 6, 6, 2))
    assert found.removed == 2
    assert found.recording.operations[-1].inputs[1].shape == (6 * 6 * 4, 5)


def test_one_channel_stays_of_a_layer_that_is_dead_as_a_whole():
    x, second = draw(1, 6, 6, 2), draw(3, 3, 4, 3)
    f = lambda x: conv(jax.nn.relu(conv(x, np.zeros((3, 3, 2, 4), "f"))), second)
    found = cut(f, x)
    assert (found.removed, found.kept) == (3, {"the last one of its layer": 1})


def test_other_layouts_and_weights_on_the_left():
    kernel, dense = draw(4, 2, 3, 3), draw(5, 4)
    kernel[1] = 0

    def f(x):
        numbers = ("NCHW", "OIHW", "NCHW")
        y = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        return jnp.einsum("oc,bc->ob", dense, jnp.sum(jax.nn.relu(y), axis=(2, 3)))

    assert cut(f, draw(2, 2, 6, 6)).removed == 1


# --- what is recorded ---------------------------------------------------------


def test_a_recording_is_the_function():
    key = jax.random.key(0)

    def f(x, i):
        noise = jax.random.normal(key, (3,))
        unread = jnp.sort(x)
        loop = lax.fori_loop(0, i, lambda _, y: y * 2, x)
        del unread
        return {"noise": x + noise, "same": x, "loop": loop, "one": jnp.ones((2, 2))}

    x = draw(3)
    specs = [jax.ShapeDtypeStruct((3,), "float32"), jax.ShapeDtypeStruct((), "int32")]
    recording = record(f, specs)
    assert "sort" not in {operation.name for operation in recording.operations}
    got, wanted = recording(x, np.int32(3)), f(x, 3)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_constants_that_are_repeated_take_no_memory():
    row = draw(5)
    spec = jax.ShapeDtypeStruct((1, 64, 64, 5), "float32")
    f = lambda x: x + jnp.broadcast_to(jnp.exp(row), x.shape)
    (add,) = record(f, [spec]).operations
    assert add.inputs[1].shape == spec.shape
    assert add.inputs[1].strides[:3] == (0, 0, 0)


# --- what is printed ----------------------------------------------------------


def test_the_report_says_what_stays_and_why():
    first, second = without(draw(3, 3, 2, 4), 0, 1, 2), draw(3, 3, 4, 3)
    bias = np.float32([0, 1, 1, 1])
    f = lambda _, x: conv(jax.nn.relu(conv(x, first) + bias), second)
    spec = jax.ShapeDtypeStruct((1, 4, 4, 2), np.float32)
    exported = tflite_export.convert(f, {}, spec, sparse=False)
    text = io.StringIO()
    report.show_channels(exported, Console(file=text, width=200))
    assert text.getvalue().splitlines() == [
        "channels cut out, always zero or never read: 1",
        "channels without weights that stay: 2 (2 a constant other than zero, by a "
        "bias)",
    ]
