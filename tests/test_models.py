"""The networks: what they compute, observe, and how they start."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from neurrev_jax import models
from tests import network_oracles

TINY = {
    "resnet": models.ResNet((1, 1), (4, 6), num_classes=3),
    "basic": models.ImageNetResNet((1, 1), "basic", (4, 6), num_classes=3),
    "bottleneck": models.ImageNetResNet((1, 1), "bottleneck", (4, 6), num_classes=3),
    "vgg": models.VGG((1, 2), (4, 6), num_classes=3),
    "mobilenet": models.MobileNetV1(3, widths=(8, 10, 12), strides=(2, 1, 2)),
}
FEATURE_MAPS = {
    "resnet": {
        "stem/relu": (16, 4),
        "stage_1/block_1/relu_1": (16, 4),
        "stage_1/block_1/relu_2": (16, 4),
        "stage_2/block_1/relu_1": (8, 6),
        "stage_2/block_1/relu_2": (8, 6),
    },
    "basic": {
        "stem/relu": (8, 4),
        "stage_1/block_1/relu_1": (4, 4),
        "stage_1/block_1/relu_2": (4, 4),
        "stage_2/block_1/relu_1": (2, 6),
        "stage_2/block_1/relu_2": (2, 6),
    },
    "bottleneck": {
        "stem/relu": (8, 4),
        "stage_1/bottleneck_1/relu_1": (4, 4),
        "stage_1/bottleneck_1/relu_2": (4, 4),
        "stage_1/bottleneck_1/relu_3": (4, 16),
        "stage_2/bottleneck_1/relu_1": (4, 6),
        "stage_2/bottleneck_1/relu_2": (2, 6),
        "stage_2/bottleneck_1/relu_3": (2, 24),
    },
    "vgg": {
        "stage_1/layer_1/relu": (16, 4),
        "stage_2/layer_1/relu": (8, 6),
        "stage_2/layer_2/relu": (8, 6),
    },
    "mobilenet": {
        "layer_1/relu": (8, 8),
        "separable_1/depthwise_relu": (8, 8),
        "separable_1/pointwise_relu": (8, 10),
        "separable_2/depthwise_relu": (4, 10),
        "separable_2/pointwise_relu": (4, 12),
    },
}
AFTER_AN_ADDITION = {
    "stem/relu",
    "stage_1/block_1/relu_2",
    "stage_2/block_1/relu_2",
    "stage_1/bottleneck_1/relu_3",
    "stage_2/bottleneck_1/relu_3",
}


def shapes(model, size):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, size, size, 3)))


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (4, 16, 16, 3))


@pytest.fixture(scope="module", params=TINY)
def tiny(request, images):
    """A name, a small network and variables that are not those of the start."""
    model = TINY[request.param]
    variables = initialize(model, images)
    values, structure = jax.tree.flatten(
        {name: variables[name] for name in ("params", "batch_stats")}
    )
    rng = np.random.default_rng(0)
    values = [
        jnp.asarray(rng.uniform(0.3, 1, leaf.shape), leaf.dtype)
        if leaf.ndim < 2
        else leaf
        for leaf in values
    ]
    return request.param, model, jax.tree.unflatten(structure, values)


def compiled(function):
    """Without optimization, which would take longer than everything else."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def initialize(model, images):
    return compiled(model.init)(jax.random.key(0), images)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_resnet32_has_34_kernels_of_1_855_584_weights():
    params = shapes(models.resnet32(), 32)["params"]
    kernels = {
        path: leaf for path, leaf in flat(params).items() if path.endswith("kernel")
    }
    assert len(kernels) == 34
    assert count(kernels) == 1_855_584
    assert kernels["stage_3/block_1/shortcut_conv/kernel"].shape == (1, 1, 64, 128)
    assert "stage_1/block_1/shortcut_conv/kernel" not in kernels


def test_every_activation_is_observed_and_none_unless_asked():
    model = models.ResNet((2, 1), (4, 6), num_classes=3)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = initialize(model, images)
    assert set(variables) == {"params", "batch_stats", models.ACTIVATIONS}
    variables = {name: variables[name] for name in ("params", "batch_stats")}

    plain = compiled(model.apply)(variables, images)
    observe = lambda v, x: model.apply(v, x, mutable=[models.ACTIVATIONS])
    logits, seen = compiled(observe)(variables, images)
    np.testing.assert_array_equal(plain, logits)
    maps = flat(seen[models.ACTIVATIONS])
    assert sorted(maps) == [
        "stage_1/block_1/relu_1",
        "stage_1/block_1/relu_2",
        "stage_1/block_2/relu_1",
        "stage_1/block_2/relu_2",
        "stage_2/block_1/relu_1",
        "stage_2/block_1/relu_2",
        "stem/relu",
    ]
    assert all(float(h.min()) == 0 for h in maps.values())
    assert maps["stage_2/block_1/relu_2"].shape == (2, 4, 4, 6)
    # The last one is what the classifier sees.
    pooled = maps["stage_2/block_1/relu_2"].mean((1, 2))
    head = variables["params"]["classifier"]
    np.testing.assert_allclose(
        pooled @ head["kernel"] + head["bias"][None], logits, rtol=1e-5, atol=1e-6
    )


def test_activation_is_an_argument():
    model = models.ResNet((1,), (4,), num_classes=3, activation=nn.leaky_relu)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = initialize(model, images)
    observe = lambda v, x: model.apply(v, x, mutable=[models.ACTIVATIONS])
    _, seen = compiled(observe)(variables, images)
    assert float(seen[models.ACTIVATIONS]["stem"]["relu"].min()) < 0


def test_initialization_is_he_normal_by_fan_out():
    model = models.ResNet((1,), (64,), num_classes=10)
    params = initialize(model, jnp.ones((1, 8, 8, 3)))["params"]
    kernel = params["stage_1"]["block_1"]["conv_1"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert float(jnp.abs(kernel).max() / kernel.std()) > 3.5  # not truncated at 2
    assert float(params["classifier"]["kernel"].std()) == pytest.approx(0.01, rel=0.1)
    np.testing.assert_array_equal(params["classifier"]["bias"], 0)
    assert "bias" not in params["stem"]["conv"]


def test_widths_of_another_length_are_an_error():
    model = models.ResNet((1, 1), (4,), num_classes=3)
    with pytest.raises(ValueError, match="same length"):
        model.init(jax.random.key(0), jnp.ones((1, 8, 8, 3)))


# --- every network ------------------------------------------------------------


def test_feature_maps_have_names_that_say_what_is_inner(tiny, images):
    name, model, variables = tiny
    apply = compiled(lambda v, x: model.apply(v, x, mutable=[models.ACTIVATIONS]))
    logits, seen = apply(variables, images)
    assert logits.shape == (4, 3)
    maps = flat(seen[models.ACTIVATIONS])
    got = {path: (h.shape[1], h.shape[3]) for path, h in maps.items()}
    assert got == FEATURE_MAPS[name]
    assert all(float(h.min()) == 0 < float(h.max()) for h in maps.values())
    inner = {path for path in maps if models.is_inner(path)}
    assert inner == set(maps) - AFTER_AN_ADDITION


def test_is_inner_looks_at_whole_names():
    assert models.is_inner("relu_1")
    assert models.is_inner("replica/stage_12/bottleneck_11/relu_2")
    for path in (
        "prelu_1",
        "relu_11",
        "relu_2",
        "layer_x/relu",
        "relu",
        "",
        "stem/relu",
    ):
        assert not models.is_inner(path)


def test_forward_is_what_numpy_computes(tiny, images):
    name, model, variables = tiny
    actual = compiled(model.apply)(variables, images)
    layers = network_oracles.Layers(variables)
    forward = network_oracles.FORWARD[name]
    expected = forward(layers, np.asarray(images, np.float64))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_everywhere_and_the_same_with_loop_convolution(
    tiny, images
):
    name, model, variables = tiny

    def grads(model):
        def loss(params):
            out, new = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.sum(out**2), new["batch_stats"]

        return compiled(jax.grad(loss, has_aux=True))(variables["params"])

    plain, statistics = grads(model)
    looped, _ = grads(model.clone(convolution=models.loop_convolution))
    for path, expected in flat(plain).items():
        scale = float(jnp.abs(expected).max())
        assert np.isfinite(scale)
        assert scale > 0, f"{name}: nothing reaches {path}"
        np.testing.assert_allclose(
            flat(looped)[path], expected, rtol=1e-3, atol=1e-4 * scale, err_msg=path
        )
    before = flat(variables["batch_stats"])
    for path, now in flat(statistics).items():
        assert not np.array_equal(now, before[path]), f"{path} did not move"


# Flax's batch norm subtracts a float32 mean from what it normalizes.
@pytest.mark.loose_numerics
def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_in_float32(tiny, images):
    _, model, variables = tiny
    narrow = model.clone(dtype=jnp.bfloat16)
    start = jax.eval_shape(narrow.init, jax.random.key(0), images)
    stored = (start["params"], start["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}

    def apply(model):
        mutable = [models.ACTIVATIONS, "batch_stats"]
        train = lambda v, x: model.apply(v, x, train=True, mutable=mutable)
        return compiled(train)(variables, images)

    logits, seen = apply(narrow)
    expected, wide = apply(model)
    assert logits.dtype == jnp.float32
    maps = jax.tree.leaves(seen[models.ACTIVATIONS])
    assert {leaf.dtype for leaf in maps} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())
    # The logits are not rounded to bfloat16.
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))
    for path, mean in flat(seen["batch_stats"]).items():
        assert mean.dtype == jnp.float32
        right = flat(wide["batch_stats"])[path]
        np.testing.assert_allclose(mean, right, rtol=0.1, atol=0.1)


def test_batch_statistics_are_shared_over_the_axis(images):
    model = TINY["mobilenet"].clone(axis_name="batch")
    variables = initialize(TINY["mobilenet"], images)
    variables = {name: variables[name] for name in ("params", "batch_stats")}

    def train(model):
        return lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])

    together, whole = compiled(train(TINY["mobilenet"]))(images)
    split = jax.vmap(train(model), axis_name="batch")
    apart, parts = compiled(split)(images.reshape(2, 2, 16, 16, 3))
    np.testing.assert_allclose(apart.reshape(4, 3), together, rtol=1e-3, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5),
        parts,
        whole,
    )


def test_depthwise_kernels_start_by_the_fan_out_of_one_group():
    model = models.MobileNetV1(10, widths=(8, 1024, 64), strides=(1, 1, 1))
    params = initialize(model, jnp.ones((1, 4, 4, 3)))["params"]
    second = params["separable_2"]
    depthwise = second["depthwise_conv"]["kernel"]
    assert depthwise.shape == (3, 3, 1, 1024)
    assert float(depthwise.std()) == pytest.approx((2 / 9) ** 0.5, rel=0.03)
    assert float(jnp.abs(depthwise).max() / depthwise.std()) > 3.2  # not truncated
    pointwise = second["pointwise_conv"]["kernel"]
    assert float(pointwise.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    for norm in ("depthwise_norm", "pointwise_norm"):
        np.testing.assert_array_equal(second[norm]["scale"], 1)
        np.testing.assert_array_equal(second[norm]["bias"], 0)


# --- errors -------------------------------------------------------------------


def init(model, size=8):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, size, size, 3)))


def test_unknown_block():
    model = models.ImageNetResNet((1,), "botleneck", (4,), num_classes=3)
    with pytest.raises(ValueError, match=r"'botleneck'.*'basic' or 'bottleneck'"):
        init(model)


@pytest.mark.parametrize(
    "model",
    [
        models.ImageNetResNet((1, 1), "basic", (4,), num_classes=3),
        models.VGG((1, 1), (4,), num_classes=3),
        models.VGG((), (), num_classes=3),
        models.MobileNetV1(3, widths=(8, 8), strides=(1,)),
    ],
)
def test_sizes_that_do_not_match(model):
    with pytest.raises(ValueError, match=r"one entry per stage.*same length"):
        init(model)


def test_images_too_small_for_vgg():
    with pytest.raises(ValueError, match=r"8 x 8 pixels.*need 16"):
        init(models.vgg19(), size=8)
    init(models.vgg19(), size=16)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan")])
def test_width_multiplier_out_of_range(factor):
    with pytest.raises(ValueError, match=f"width_multiplier={factor}"):
        init(models.mobilenet_v1(width_multiplier=factor))
