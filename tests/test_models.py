import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from neurrev_jax import models

NHWC = ("NHWC", "HWIO", "NHWC")


def shapes(model, size):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, size, size, 3)))


def initialize(model, images):
    # Compiled without optimization, which would take longer than everything else.
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    return init(jax.random.key(0), images)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("classes", "expected"), [(10, 1_860_522), (100, 1_872_132)])
def test_resnet32_has_the_published_number_of_parameters(classes, expected):
    variables = shapes(models.resnet32(classes), 32)
    assert count(variables["params"]) == expected


def test_resnet32_has_34_kernels_of_1_855_584_weights():
    params = shapes(models.resnet32(), 32)["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    kernels = {path: leaf for path, leaf in flat.items() if path.endswith("kernel")}
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

    plain = model.apply(variables, images)
    logits, seen = model.apply(variables, images, mutable=[models.ACTIVATIONS])
    np.testing.assert_array_equal(plain, logits)
    flat = flax.traverse_util.flatten_dict(seen[models.ACTIVATIONS], sep="/")
    assert sorted(flat) == [
        "stage_1/block_1/relu_1",
        "stage_1/block_1/relu_2",
        "stage_1/block_2/relu_1",
        "stage_1/block_2/relu_2",
        "stage_2/block_1/relu_1",
        "stage_2/block_1/relu_2",
        "stem/relu",
    ]
    assert all(float(h.min()) == 0 for h in flat.values())
    assert flat["stage_2/block_1/relu_2"].shape == (2, 4, 4, 6)
    # The last one is what the classifier sees.
    pooled = flat["stage_2/block_1/relu_2"].mean((1, 2))
    head = variables["params"]["classifier"]
    np.testing.assert_allclose(
        pooled @ head["kernel"] + head["bias"][None], logits, rtol=1e-5, atol=1e-6
    )


def test_activation_is_an_argument():
    model = models.ResNet((1,), (4,), num_classes=3, activation=nn.leaky_relu)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = initialize(model, images)
    _, seen = model.apply(variables, images, mutable=[models.ACTIVATIONS])
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


@pytest.mark.parametrize(
    ("size", "strides", "kernel", "padding"),
    [
        (8, (1, 1), 3, 1),
        (8, (2, 2), 3, 1),
        (7, (2, 2), 3, 1),
        (8, (2, 2), 1, 0),
        (7, (2, 1), 3, 0),
        (9, (3, 2), 2, 1),
    ],
)
def test_loop_convolution_has_the_gradients_of_lax(size, strides, kernel, padding):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, size, size + 1, 3))
    w = jax.random.normal(keys[1], (kernel, kernel, 3, 5))
    pads = ((padding, padding), (padding, padding))

    def loss(convolve):
        def value(x, w):
            y = convolve(x, w, strides, pads, dimension_numbers=NHWC)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))

    actual = loss(models.loop_convolution)(x, w)
    expected = loss(lax.conv_general_dilated)(x, w)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        actual,
        expected,
    )


def test_loop_convolution_leaves_other_convolutions_to_lax():
    x, w = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 1, 4))
    for options in ({"feature_group_count": 4}, {"rhs_dilation": (2, 2)}):
        kernel = w if "feature_group_count" in options else jnp.ones((3, 3, 4, 4))
        arguments = (x, kernel, (1, 1), "SAME")
        np.testing.assert_array_equal(
            models.loop_convolution(*arguments, dimension_numbers=NHWC, **options),
            lax.conv_general_dilated(*arguments, dimension_numbers=NHWC, **options),
        )


def test_network_computes_the_same_with_loop_convolution():
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    plain = models.ResNet((1,), (4,), num_classes=3)
    looped = plain.clone(convolution=models.loop_convolution)
    variables = initialize(plain, images)

    def grads(model):
        def loss(params):
            out, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.sum(out**2)

        return jax.jit(jax.grad(loss))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        grads(plain),
        grads(looped),
    )
