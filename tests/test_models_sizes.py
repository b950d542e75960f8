"""The sizes of the networks of the papers, and where they are sparse."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
import pytest

import neurrev_jax
from neurrev_jax import models

FACTORIES = {
    "resnet32": models.resnet32,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "vgg19": models.vgg19,
    "mobilenet_v1": models.mobilenet_v1,
}


@functools.cache
def params_of(name, classes, size=32, **options):
    """Shapes of the parameters; nothing is computed."""
    model = FACTORIES[name](classes, **options)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def flat(tree):
    """Leaves by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def kernels(params):
    """Shapes of the kernels, by path."""
    return {
        path: leaf.shape
        for path, leaf in flat(params).items()
        if path.endswith("/kernel")
    }


@pytest.mark.parametrize(
    ("name", "classes", "total", "weights", "count"),
    [
        ("resnet32", 10, 1_860_522, 1_855_584, 34),
        ("resnet32", 100, 1_872_132, 1_867_104, 34),
        ("resnet34", 1000, 21_797_672, 21_779_648, 37),
        ("resnet50", 1000, 25_557_032, 25_502_912, 54),
        ("vgg19", 10, 20_035_018, 20_024_000, 17),
        ("vgg19", 100, 20_081_188, 20_070_080, 17),
        ("mobilenet_v1", 1000, 4_231_976, 4_209_088, 28),
    ],
)
def test_published_number_of_parameters(name, classes, total, weights, count):
    params = params_of(name, classes)
    assert sum(leaf.size for leaf in flat(params).values()) == total
    shapes = kernels(params)
    assert len(shapes) == count
    assert sum(map(math.prod, shapes.values())) == weights
    # Nothing else has two axes: the rest is batch norm and one bias per class.
    assert sum(leaf.ndim > 1 for leaf in flat(params).values()) == count


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "mobilenet_v1"])
@pytest.mark.parametrize("size", [64, 128, 224])
def test_imagenet_networks_take_images_of_any_size(name, size):
    model = FACTORIES[name]()
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = functools.partial(model.apply, mutable=[models.ACTIVATIONS])
    logits, seen = jax.eval_shape(apply, variables, images)
    assert logits.shape == (2, 1000) and logits.dtype == jnp.float32
    maps = flat(seen[models.ACTIVATIONS])
    first, last = {
        "resnet34": ("stem/relu", "stage_4/block_3/relu_2"),
        "resnet50": ("stem/relu", "stage_4/bottleneck_3/relu_3"),
        "mobilenet_v1": ("layer_1/relu", "separable_13/pointwise_relu"),
    }[name]
    assert maps[first].shape[1:3] == (size // 2, size // 2)
    assert maps[last].shape[1:3] == (size // 32, size // 32)


def test_vgg19_ends_in_a_2x2_average_pool():
    model = models.vgg19()
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    maps = flat(variables[models.ACTIVATIONS])
    sides = {path: leaf.shape[1] for path, leaf in maps.items()}
    assert len(maps) == 16
    assert [sides[f"stage_{i}/layer_1/relu"] for i in range(1, 6)] == [32, 16, 8, 4, 2]
    assert maps["stage_5/layer_4/relu"].shape == (2, 2, 2, 512)


def test_width_multiplier_scales_every_layer():
    half = kernels(params_of("mobilenet_v1", 10, width_multiplier=0.5))
    assert half["layer_1/conv/kernel"] == (3, 3, 3, 16)
    assert half["separable_13/depthwise_conv/kernel"] == (3, 3, 1, 512)
    assert half["separable_13/pointwise_conv/kernel"] == (1, 1, 512, 512)
    assert half["classifier/kernel"] == (512, 10)
    tiny = kernels(params_of("mobilenet_v1", 10, width_multiplier=0.01))
    assert {shape[-1] for shape in tiny.values()} == {8, 10}


# --- where they are sparse ----------------------------------------------------


def dense_leaves(params, **options):
    """Paths of the kernels that a transformation never rewires."""
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), **options)
    masks = flat(neurrev_jax.get_masks(jax.eval_shape(tx.init, params)))
    return {path for path in kernels(params) if masks[path].shape == ()}


def densities(params, sparsity):
    return {p: 1 - s for p, s in neurrev_jax.erk()(kernels(params), sparsity).items()}


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet32", "stem/conv/kernel"),
        ("resnet34", "stem/conv/kernel"),
        ("resnet50", "stem/conv/kernel"),
        ("vgg19", "stage_1/layer_1/conv/kernel"),
        ("mobilenet_v1", "layer_1/conv/kernel"),
    ],
)
def test_uniform_leaves_first_convolution_depthwise_and_classifier_dense(name, first):
    params = params_of(name, 100)
    depthwise = {path for path in kernels(params) if "depthwise" in path}
    assert len(depthwise) == (13 if name == "mobilenet_v1" else 0)
    dense = dense_leaves(params, sparsity=0.9, distribution="uniform")
    assert dense == depthwise | {first, "classifier/kernel"}


@pytest.mark.parametrize(
    ("sparsity", "expected", "epsilon", "first", "classifier"),
    [
        (
            0.8,
            {
                f"stage_1/bottleneck_{block}/conv_{conv}/kernel"
                for block in (1, 2, 3)
                for conv in (1, 3)
            }
            | {
                "stage_1/bottleneck_1/shortcut_conv/kernel",
                "stage_2/bottleneck_1/conv_1/kernel",
            },
            99.5617,
            0.8572,
            0.1482,
        ),
        (0.9, {"stage_1/bottleneck_1/conv_1/kernel"}, 48.7866, 0.4200, 0.0726),
    ],
)
def test_erk_of_resnet50(sparsity, expected, epsilon, first, classifier):
    params = params_of("resnet50", 1000)
    got = densities(params, sparsity)
    assert {path for path, density in got.items() if density == 1} == expected
    assert got["stem/conv/kernel"] == pytest.approx(first, abs=5e-5)
    assert got["classifier/kernel"] == pytest.approx(classifier, abs=5e-5)
    raw = sum((2048, 1000)) / math.prod((2048, 1000))
    assert got["classifier/kernel"] / raw == pytest.approx(epsilon, abs=5e-5)
    # Dense by the cap: a full mask, not an exclusion.
    assert dense_leaves(params, sparsity=sparsity, distribution="erk") == set()


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.98])
def test_erk_of_vgg19(classes, sparsity):
    got = densities(params_of("vgg19", classes), sparsity)
    expected = {"stage_1/layer_1/conv/kernel", "classifier/kernel"}
    if (classes, sparsity) == (100, 0.98):
        expected.remove("classifier/kernel")
    assert {path for path, density in got.items() if density == 1} == expected


@pytest.mark.parametrize("name", ["resnet34", "mobilenet_v1"])
def test_erk_spends_its_budget(name):
    params = params_of(name, 1000)
    got = densities(params, 0.9)
    shapes = kernels(params)
    assert set(shapes) - set(got) == {path for path in shapes if "depthwise" in path}
    covered = sum(math.prod(shapes[path]) for path in got)
    spent = sum(density * math.prod(shapes[path]) for path, density in got.items())
    assert spent / covered == pytest.approx(0.1, rel=1e-4)
    assert dense_leaves(params, sparsity=0.9) == set(shapes) - set(got)
