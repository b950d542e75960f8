"""Which leaves form the channels of the networks, and that removing them is clean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neurrev_jax
from neurrev_jax import models
from tests import harness


def shapes(network, pixels=32):
    images = jnp.ones((1, pixels, pixels, 3))
    return jax.eval_shape(network.init, jax.random.key(0), images)["params"]


def names(group):
    return {axis.path: axis.axis for axis in group.axes}


def test_resnet32_loses_channels_inside_of_its_blocks_only():
    groups = models.channel_groups(shapes(models.resnet32()))
    assert [g.width for g in groups] == [32] * 5 + [64] * 5 + [128] * 5
    assert names(groups[5]) == {
        "stage_2/block_1/conv_1/kernel": 3,
        "stage_2/block_1/norm_1/bias": 0,
        "stage_2/block_1/norm_1/scale": 0,
        "stage_2/block_1/conv_2/kernel": 2,
    }
    assert [axis.path for axis in groups[5].filters] == [
        "stage_2/block_1/conv_1/kernel"
    ]


def test_resnet50_loses_the_two_inner_layers_of_each_bottleneck():
    groups = models.channel_groups(shapes(models.resnet50(), 64))
    assert len(groups) == 2 * (3 + 4 + 6 + 3)
    paths = {axis.path for group in groups for axis in group.axes}
    # What is added up, and what reads the sum, keeps its width.
    kept = ("conv_3/kernel", "shortcut_conv/kernel", "stem/conv/kernel")
    for group in groups:
        outputs = {a.path for a in group.axes if a.axis == 3}
        assert not any(path.endswith(kept) for path in outputs)
    widest = ("norm_3/scale", "classifier/kernel")
    assert not any(path.endswith(widest) for path in paths)
    assert names(groups[1]) == {
        "stage_1/bottleneck_1/conv_2/kernel": 3,
        "stage_1/bottleneck_1/norm_2/bias": 0,
        "stage_1/bottleneck_1/norm_2/scale": 0,
        "stage_1/bottleneck_1/conv_3/kernel": 2,
    }
    assert len(models.channel_groups(shapes(models.resnet34(), 64))) == 16


def test_vgg_loses_channels_everywhere():
    groups = models.channel_groups(shapes(models.vgg19()))
    assert [g.width for g in groups] == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    first, last = names(groups[1]), names(groups[-1])
    assert list(first) == [
        "stage_1/layer_2/conv/kernel",
        "stage_1/layer_2/norm/bias",
        "stage_1/layer_2/norm/scale",
        "stage_2/layer_1/conv/kernel",
    ]
    assert last["classifier/kernel"] == 0 and last["stage_5/layer_4/conv/kernel"] == 3


def test_mobilenet_takes_the_depthwise_convolution_along():
    groups = models.channel_groups(shapes(models.mobilenet_v1()))
    assert len(groups) == 14
    assert names(groups[9]) == {
        "separable_9/pointwise_conv/kernel": 3,
        "separable_9/pointwise_norm/bias": 0,
        "separable_9/pointwise_norm/scale": 0,
        "separable_10/depthwise_conv/kernel": 3,
        "separable_10/depthwise_norm/bias": 0,
        "separable_10/depthwise_norm/scale": 0,
        "separable_10/pointwise_conv/kernel": 2,
    }
    assert "layer_1/conv/kernel" in names(groups[0])
    assert names(groups[-1])["classifier/kernel"] == 0


def test_learned_slopes_go_with_their_channel():
    net = models.ResNet((1,), (4,), 3, activation="prelu")
    [group] = models.channel_groups(shapes(net))
    assert names(group)["stage_1/block_1/prelu_1/slope"] == 0
    net = models.MobileNetV1(3, widths=(8, 8), strides=(1, 1), activation="prelu")
    groups = models.channel_groups(shapes(net))
    assert {p for p in names(groups[0]) if "slope" in p} == {
        "layer_1/prelu/slope",
        "separable_1/depthwise_prelu/slope",
    }


NETWORKS = {
    "resnet": models.ResNet((1,), (4,), 3),
    "bottleneck": models.ImageNetResNet((1,), "bottleneck", (4,), 3),
    "vgg": models.VGG((1, 1), (4, 6), 3, activation="prelu"),
    "mobilenet": models.MobileNetV1(3, widths=(8, 9), strides=(1, 2)),
}


@pytest.mark.loose_numerics
@pytest.mark.parametrize("name", NETWORKS)
def test_a_removed_channel_is_zero_wherever_it_is_seen(name):
    """Masking what a group names silences exactly that channel's feature maps."""
    net, rng = NETWORKS[name], np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32)
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    # All positive, so that no channel is silent before.
    variables = jax.tree.map(
        lambda v: jnp.asarray(rng.uniform(1, 2, size=v.shape), jnp.float32), variables
    )
    params = variables["params"]
    tree = jax.tree.structure(params)
    apply = jax.jit(
        lambda p: net.apply({**variables, "params": p}, images, mutable="activations")
    )
    before = harness.leaves(apply(params)[1]["activations"])
    for group in models.channel_groups(params):
        removed = harness.leaves(params)
        for path, axis, shape in group.axes:
            assert removed[path].shape == shape
            index = [slice(None)] * len(shape)
            index[axis] = 1
            removed[path] = removed[path].copy()
            removed[path][tuple(index)] = 0
        gone = tree.unflatten([jnp.asarray(leaf) for leaf in removed.values()])
        logits, seen = apply(gone)
        after = harness.leaves(seen["activations"])
        silent = [
            path
            for path, maps in after.items()
            if not maps[..., 1].any() and before[path][..., 1].any()
        ]
        # In a MobileNet also after the depthwise convolution.
        kernels = [a for a in group.axes if a.path.endswith("conv/kernel")]
        assert len(silent) == 1 + any("depthwise" in a.path for a in kernels)
        # The next layer's masked inputs make no difference any more: they read zeros.
        reader = group.others[-1]
        assert reader.axis in (0, 2)
        restored = dict(removed) | {reader.path: harness.leaves(params)[reader.path]}
        same = tree.unflatten([jnp.asarray(leaf) for leaf in restored.values()])
        np.testing.assert_allclose(apply(same)[0], logits, rtol=1e-5, atol=1e-5)


def test_a_tree_of_something_else_is_refused():
    with pytest.raises(ValueError, match="channel_group"):
        models.channel_groups({"dense": {"kernel": jnp.ones((3, 4))}})


@pytest.mark.parametrize(
    ("filters", "others", "match"),
    [
        ({"a": 3}, {}, "'a' is no leaf"),
        ({"conv/kernel": 4}, {}, "axis 4 does not exist"),
        ({}, {"norm/scale": 0}, "at least one kernel"),
        ({"conv/kernel": 3}, {"deep/kernel": 3}, "deep/kernel: axis 3"),
    ],
)
def test_channel_group_refuses(filters, others, match):
    with pytest.raises(ValueError, match=match):
        neurrev_jax.channel_group(harness.net_params(), filters, others)
