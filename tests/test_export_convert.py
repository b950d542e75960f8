"""Conversion: builtin operators only, the same function, the sparsity kept."""

import dataclasses
import functools
import gzip
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
import tflite_export
from neurrev_jax import models
from tflite_export import cluster, graph, layers

ROOT = pathlib.Path(__file__).resolve().parents[1]

# TensorFlow is loaded by one process, and JAX's own converter promotes as it likes.
pytestmark = [pytest.mark.xdist_group("export"), pytest.mark.loose_numerics]

# Small enough to convert in a second or two; the depth and the order of operations
# are those of the networks that they are named after.
NARROW = {
    "resnet32": (models.ResNet((5, 5, 5), (8, 16, 32), 10), (1, 32, 32, 3)),
    "vgg19": (models.VGG((2, 2, 4, 4, 4), (4, 4, 8, 8, 8), 10), (1, 32, 32, 3)),
    "resnet50": (
        models.ImageNetResNet(
            block="bottleneck",
            stage_sizes=(3, 4, 6, 3),
            widths=(4, 8, 8, 16),
            num_classes=10,
        ),
        (1, 64, 64, 3),
    ),
    "mobilenet": (models.mobilenet_v1(10, width_multiplier=0.25), (1, 64, 64, 3)),
}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def network(name, sparsity=0.8):
    """(apply, effective parameters, input spec) with statistics as after training."""
    module, shape = NARROW[name]
    init = jax.jit(
        lambda: module.init(jax.random.key(0), jnp.zeros(shape)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    variables = init()
    rng = np.random.default_rng(1)

    def settle(path, x):
        low, high = (-0.5, 0.1) if "mean" in str(path[-1]) else (0.1, 1.0)
        return rng.uniform(low, high, x.shape).astype(np.float32)

    stats = jax.tree_util.tree_map_with_path(settle, variables["batch_stats"])
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=sparsity)
    state = tx.init(variables["params"])
    params = neurrev_jax.sparsify(variables["params"], state)
    params["classifier"]["kernel"] *= 100

    def apply(params, images):
        return module.apply({"params": params, "batch_stats": stats}, images)

    return apply, params, jax.ShapeDtypeStruct(shape, np.float32)


@functools.cache
def export(name, **options):
    if options.get("precision") == "int8":
        shape = NARROW[name][1]
        options["representative_data"] = [draw(*shape, seed=i) for i in range(4)]
    return tflite_export.convert(*network(name), **options)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Stem, 30 in the blocks, 2 shortcuts; what is strided is padded apart.
        (
            "resnet32",
            {"CONV_2D": 33, "ADD": 15, "PAD": 2, "SUM": 1, "FULLY_CONNECTED": 1},
        ),
        ("vgg19", {"CONV_2D": 16, "MAX_POOL_2D": 4, "SUM": 1, "FULLY_CONNECTED": 1}),
        (
            "resnet50",
            {
                "CONV_2D": 53,
                "ADD": 16,
                "PAD": 4,
                "PADV2": 1,
                "MAX_POOL_2D": 1,
                "SUM": 1,
                "FULLY_CONNECTED": 1,
            },
        ),
        (
            "mobilenet",
            {
                "CONV_2D": 14,
                "DEPTHWISE_CONV_2D": 13,
                "PAD": 5,
                "SUM": 1,
                "FULLY_CONNECTED": 1,
            },
        ),
    ],
)
def test_batch_norm_and_relu_leave_no_operator_behind(name, expected):
    exported = export(name)
    found = exported.operators()
    assert found.pop("DENSIFY", 0) > 0
    assert found == expected
    _, _, spec = network(name)
    inputs = [draw(*spec.shape, seed=i) for i in range(3)]
    result = tflite_export.verify(exported, inputs)
    assert result.passed
    assert 0 < result.relative_difference < 5e-6
    assert result.agreement == 1
    assert all(leaf.stored == leaf.nonzero for leaf in result.weights)
    assert len(result.weights) == len(exported.weights)


def test_sparse_storage_is_smaller_and_computes_the_same():
    sparse, dense = export("resnet32"), export("resnet32", sparse=False)
    assert "DENSIFY" not in dense.operators()
    assert sparse.size < 0.5 * dense.size
    x = draw(1, 32, 32, 3)
    np.testing.assert_array_equal(sparse.runner()(x)[0], dense.runner()(x)[0])
    assert sparse.gzipped_size == len(gzip.compress(sparse.model, 6, mtime=0))


@pytest.mark.parametrize(
    ("options", "at_most"),
    [
        ({"precision": "float16"}, 5e-3),
        ({"precision": "int8", "sparse": False}, 0.25),
        ({"precision": "dynamic_int8", "sparse": False}, 0.25),
    ],
)
def test_other_precisions_are_smaller_and_near(options, at_most):
    exported, dense = export("resnet32", **options), export("resnet32", sparse=False)
    assert exported.size < 0.7 * dense.size
    found = tflite_export.verify(exported, [draw(1, 32, 32, 3)])
    assert 1e-6 < found.relative_difference < at_most
    # Small weights may be rounded to zero; none may come alive.
    assert all((leaf.stored or 0) <= leaf.nonzero for leaf in found.weights)


def test_shift_makes_one_sparse_part_of_a_residual_network():
    exported = export("resnet32", rewrite="shift")
    placed = cluster.place(exported.graph)
    inside = [p for p in placed if p.is_sparse]
    assert {p.layer.kernel for p in inside} == {(1, 1)}
    # All others are the entry and the shifts, which are in the part as well.
    others = [p for p in placed if not p.is_sparse]
    assert {p.layer.name.rpartition("/")[2] for p in others} == {"entry", "shift"}
    assert all("in the sparse part" in p.reason for p in others)
    found = tflite_export.verify(exported, [draw(1, 32, 32, 3)])
    assert found.passed
    assert found.relative_difference < 5e-6
    assert all(leaf.stored == leaf.nonzero for leaf in found.weights)


def test_no_two_operators_read_one_pad():
    model = export("resnet32", rewrite="shift").graph
    pads = [op for op in model.operators if op.kind == "PAD"]
    assert len(pads) > 10
    assert all(len(model.consumers(op.outputs[0])) == 1 for op in pads)


def test_mobilenet_is_sparse_by_itself_and_counts_what_is_executed():
    exported = export("mobilenet")
    placed = {p.layer.name: p for p in cluster.place(exported.graph)}
    pointwise = placed["MobileNetV1/separable_5/pointwise_conv"]
    assert pointwise.is_sparse
    nonzero = np.count_nonzero(exported.weights["separable_5/pointwise_conv/kernel"])
    # 64 pixels, halved by the first layer and twice more.
    assert pointwise.multiply_adds == 8 * 8 * nonzero
    assert not placed["MobileNetV1/layer_1/conv"].is_sparse
    assert not placed["MobileNetV1/separable_5/depthwise_conv"].is_sparse
    assert placed["MobileNetV1/classifier"].is_sparse


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("resnet32", "stage_1/block_1/conv_1", "3x3 convolution"),
        ("resnet32", "stage_2/block_1/shortcut_conv", "stride 2x2"),
        ("resnet50", "stem/conv", "7x7"),
        ("resnet50", "stage_1/bottleneck_1/conv_1", "MAX_POOL_2D"),
        ("vgg19", "stage_1/layer_1/conv", "3x3 convolution"),
    ],
)
def test_the_rule_that_a_layer_breaks_is_named(name, layer, why):
    placed = cluster.place(export(name).graph)
    (found,) = [p for p in placed if layers.belongs_to(p.layer, f"{layer}/kernel")]
    assert not found.is_sparse
    assert why in found.reason


def small_part(sparsity=0.9, last="mean", padding=((1, 1), (1, 1)), **options):
    """Entry, depthwise, 1x1, and a way out."""
    rng = np.random.default_rng(0)
    keep = (rng.random((16, 32)) >= sparsity).astype(np.float32)
    weights = {
        "entry": draw(3, 3, 3, 16),
        "deep": draw(3, 3, 1, 16),
        "point": (draw(16, 32) * keep)[None, None],
    }
    conv = functools.partial(
        jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

    def f(w, x):
        x = conv(x, w["entry"], (2, 2), ((1, 1), (1, 1)))
        x = conv(x, w["deep"], (2, 2), padding, feature_group_count=16)
        x = jax.nn.relu(conv(x, w["point"], (1, 1), "VALID"))
        return {"mean": lambda: jnp.mean(x, (1, 2)), "maps": lambda: x}[last]()

    spec = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    exported = tflite_export.convert(f, weights, spec, **options)
    return [p for p in cluster.place(exported.graph) if p.layer.weights.shape[0] == 32]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, ""),
        ({"sparsity": 0.6}, "two thirds"),
        ({"sparse": False}, "sparse=True"),
        ({"last": "maps"}, "does not end"),
        ({"padding": "SAME"}, "padding"),
        ({"precision": "int8", "sparse": False}, "float"),
    ],
)
def test_each_rule_of_the_sparse_part_is_checked(options, why):
    if options.get("precision") == "int8":
        data = [draw(1, 16, 16, 3, seed=i) for i in range(2)]
        options = {**options, "representative_data": data}
    (found,) = small_part(**options)
    assert found.is_sparse == (not why)
    assert why in found.reason


def test_channels_that_a_method_removed_are_not_in_the_file():
    apply, params, spec = network("resnet32")
    params = jax.tree.map(np.array, params)
    block = params["stage_3"]["block_2"]
    block["norm_1"]["scale"][:20] = 0
    block["norm_1"]["bias"][:20] = 0
    block["conv_2"]["kernel"][:, :, :20] = 0
    whole = export("resnet32", sparse=False)
    exported = tflite_export.convert(apply, params, spec, sparse=False)
    assert (whole.dead_channels, exported.dead_channels) == (0, 20)
    found = {layer.name: layer for layer in layers.find(exported.graph)}
    first = found["ResNet/stage_3/block_2/conv_1"].weights
    second = found["ResNet/stage_3/block_2/conv_2"].weights
    assert first.shape == (12, 3, 3, 32)
    assert second.shape == (32, 3, 3, 12)
    # 20 of 32 channels of two convolutions, in four bytes.
    saved = 2 * 20 * 32 * 9 * 4
    assert saved <= whole.size - exported.size < 1.5 * saved
    assert tflite_export.verify(exported, [draw(1, 32, 32, 3)]).passed


def perceptron(sparsity, size=64):
    rng = np.random.default_rng(0)
    weights = {
        name: draw(size, size, seed=i) * (rng.random((size, size)) >= sparsity)
        for i, name in enumerate("abc")
    }
    weights = jax.tree.map(np.float32, weights)

    def f(w, x):
        return jax.nn.relu(jax.nn.relu(x @ w["a"]) @ w["b"]) @ w["c"]

    return f, weights, jax.ShapeDtypeStruct((1, size), np.float32)


def test_float16_that_turns_into_nan_is_caught():
    with pytest.raises(tflite_export.VerificationError) as caught:
        tflite_export.convert(*perceptron(0.98), precision="float16")
    assert "not finite" in str(caught.value)
    assert "sparse=False" in str(caught.value)
    # The model is there for who wants to look into it.
    assert not np.isfinite(caught.value.exported.runner()(draw(1, 64))[0]).all()
    fine = tflite_export.convert(*perceptron(0.98), precision="float16", sparse=False)
    assert tflite_export.verify(fine, [draw(1, 64)]).passed


def test_int8_that_does_not_run_sparsely_is_caught():
    data = [draw(1, 64, seed=i) for i in range(8)]
    with pytest.raises(tflite_export.VerificationError, match="cannot run") as caught:
        tflite_export.convert(
            *perceptron(0.98), precision="int8", representative_data=data
        )
    assert "choose sparse=False" in str(caught.value)


def test_weights_of_functions_without_names_are_found_by_their_number():
    exported = tflite_export.convert(*perceptron(0.8))
    found = tflite_export.verify(exported, [draw(1, 64)])
    assert [leaf.path for leaf in found.weights] == ["a", "b", "c"]
    assert all(leaf.stored == leaf.nonzero for leaf in found.weights)


def test_masks_are_applied_first():
    f, weights, spec = perceptron(0.0)
    rng = np.random.default_rng(3)
    masks = jax.tree.map(lambda w: jnp.asarray(rng.random(w.shape) > 0.8), weights)
    exported = tflite_export.convert(f, weights, spec, masks=masks)
    x = draw(1, 64)
    masked = neurrev_jax.apply_masks(weights, masks)
    wanted = f(masked, x)
    np.testing.assert_allclose(exported.runner()(x)[0], wanted, rtol=1e-4, atol=1e-4)
    kept = [int(m.sum()) for m in jax.tree.leaves(masks)]
    assert [leaf.stored for leaf in tflite_export.verify(exported, [x]).weights] == kept


def test_several_inputs_whole_numbers_and_a_tree_of_outputs():
    def f(scale, x, i):
        return {"sum": x * 2 + scale, "rest": (i + 1, jnp.sum(x, -1))}

    specs = [
        jax.ShapeDtypeStruct((2, 3), np.float32),
        jax.ShapeDtypeStruct((4,), np.int32),
    ]
    exported = tflite_export.convert(f, np.float32(3), specs)
    x, i = draw(2, 3), np.arange(4, dtype=np.int32)
    wanted = jax.tree.leaves(f(3.0, x, i))
    for got, want in zip(exported.runner()(x, i), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    found = tflite_export.verify(exported, [(x, i)])
    assert (found.agreement, found.accuracy) == (None, None)


def swapped_classes():
    """A model and a function that differ."""
    exported = tflite_export.convert(*perceptron(0.8))
    return exported, lambda x: -exported.reference(x)


def test_a_model_of_another_function_fails():
    exported, other = swapped_classes()
    wrong = dataclasses.replace(exported, reference=other)
    found = tflite_export.verify(wrong, [draw(1, 64)])
    assert not found.passed
    assert found.agreement == 0
    assert any("differs from JAX" in problem for problem in found.problems)
    assert any("predicts the class" in problem for problem in found.problems)


def test_sparsity_that_was_lost_is_found():
    exported, _ = swapped_classes()
    emptier = {path: w.copy() for path, w in exported.weights.items()}
    emptier["b"][:32] = 0
    found = tflite_export.verify(
        dataclasses.replace(exported, weights=emptier), [draw(1, 64)]
    )
    (problem,) = found.problems
    assert problem.startswith("b has")
    assert "sparsity was lost" in problem


def test_accuracy_counts_labels():
    exported, _ = swapped_classes()
    inputs = [draw(1, 64, seed=i) for i in range(4)]
    classes = [int(np.argmax(exported.reference(x))) for x in inputs]
    found = tflite_export.verify(exported, inputs, [*classes[:3], classes[3] + 1])
    assert (found.accuracy, found.reference_accuracy) == (0.75, 0.75)


NO_DATA = {"precision": "int8", "sparse": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16"}, "precision='bfloat16' is unknown; choose"),
        ({"rewrite": "winograd"}, "rewrite='winograd' is unknown; choose"),
        (NO_DATA, "needs representative_data"),
        ({"representative_data": [1]}, "no effect with precision='float32'"),
        ({**NO_DATA, "representative_data": []}, "holds no sample"),
        ({**NO_DATA, "representative_data": [draw(2, 64)]}, "sample 0 has arrays"),
        ({"precision": "dynamic_int8"}, "choose sparse=False"),
        ({**NO_DATA, "rewrite": "shift"}, "gains nothing"),
        ({"masks": {"a": True}}, "masks do not fit params"),
    ],
)
def test_choices_that_cannot_be_met_are_refused(options, message):
    with pytest.raises(tflite_export.ExportError, match=message):
        tflite_export.convert(*perceptron(0.8), **options)


def test_inputs_without_a_fixed_shape_are_refused():
    f, weights, _ = perceptron(0.8)
    for spec in (None, jax.ShapeDtypeStruct((0, 64), np.float32), [3]):
        with pytest.raises(tflite_export.ExportError, match="no fixed shape"):
            tflite_export.convert(f, weights, spec)


def test_an_operation_without_a_builtin_form_is_named():
    spec = jax.ShapeDtypeStruct((3, 3), np.float32)
    with pytest.raises(tflite_export.ExportError, match="sort"):
        tflite_export.convert(lambda _, x: jnp.sort(x), {}, spec)


def test_what_does_not_fit_a_model_is_refused():
    exported, _ = swapped_classes()
    run = exported.runner()
    with pytest.raises(tflite_export.ExportError, match="1 inputs and got 2"):
        run(draw(1, 64), draw(1, 64))
    with pytest.raises(tflite_export.ExportError, match="must be float32 of shape"):
        run(draw(1, 65))
    with pytest.raises(tflite_export.ExportError, match="no inputs to compare"):
        tflite_export.verify(exported, [])
    with pytest.raises(tflite_export.ExportError, match="2 labels for 1 examples"):
        tflite_export.verify(exported, [draw(1, 64)], [1, 2])


def test_texts_are_stored_and_constants_stay_aligned():
    exported = export("mobilenet")
    model = graph.with_metadata(exported.model, "note", "first")
    model = graph.with_metadata(model, "note", "é second")
    stored = graph.read(model).metadata
    assert stored["note"].decode() == "é second"
    assert {"min_runtime_version"} < set(stored)
    x = draw(1, 64, 64, 3)
    again = exported.with_model(model)
    np.testing.assert_array_equal(again.runner()(x)[0], exported.runner()(x)[0])
    for tensor in graph.read(model).tensors:
        if tensor.data is not None and tensor.data.nbytes > 64:
            assert model.index(tensor.data.tobytes()) % 16 == 0


def test_other_files_are_no_models():
    for contents in (b"", b"not a model at all", b"\0" * 100):
        with pytest.raises(tflite_export.ExportError, match=r"not a \.tflite model"):
            graph.read(contents)


def test_the_documentation_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks, "docs/export.md shows no Python"
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "docs/export.md", "exec"), {"__name__": "documentation"})
    assert (tmp_path / "model.tflite").stat().st_size > 0
