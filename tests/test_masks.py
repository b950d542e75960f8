"""Masks: applying, finding, merging, counting, packing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness


def example():
    params = {
        "a": {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4), "bias": jnp.ones(4)},
        "b": {"kernel": jnp.arange(1.0, 11.0).reshape(5, 2)},
    }
    masks = {
        "a": {"kernel": jnp.arange(12).reshape(3, 4) % 3 == 0, "bias": jnp.array(True)},
        "b": {"kernel": jnp.arange(10).reshape(5, 2) < 5},
    }
    return params, masks


def test_apply_masks():
    params, masks = example()
    got = jax.jit(neurrev_jax.apply_masks)(params, masks)
    expected = jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks)
    harness.assert_trees_equal(got, expected)


def test_apply_masks_keeps_the_dtype_and_drops_nan():
    params = {"kernel": jnp.array([[jnp.nan, 1.0], [2.0, jnp.inf]], jnp.bfloat16)}
    masks = {"kernel": jnp.array([[False, True], [True, False]])}
    got = neurrev_jax.apply_masks(params, masks)["kernel"]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got.astype(jnp.float32), [[0, 1], [2, 0]])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda masks: masks["a"],
        lambda masks: {**masks, "c": jnp.array(True)},
        lambda masks: {**masks, "b": {"kernel": jnp.ones((2, 5), bool)}},
        lambda masks: {**masks, "b": {"kernel": jnp.ones((5, 2))}},
    ],
    ids=["missing_leaf", "extra_leaf", "shape", "dtype"],
)
@pytest.mark.parametrize("function", ["apply_masks", "summarize"])
def test_masks_that_do_not_fit_are_an_error(spoil, function):
    params, masks = example()
    with pytest.raises(ValueError, match="mask"):
        getattr(neurrev_jax, function)(params, spoil(masks))


def test_density_counts_rewirable_leaves_only():
    _, masks = example()
    got = jax.jit(neurrev_jax.density)(masks)
    assert got.dtype == jnp.float32 and got.shape == ()
    assert float(got) == pytest.approx(9 / 22)


def test_summarize():
    params, masks = example()
    summary = neurrev_jax.summarize(params, masks)
    rows = {row.path: row for row in summary}
    assert rows["a/kernel"].shape == (3, 4)
    assert rows["a/kernel"].size == 12 and rows["a/kernel"].active == 4
    assert rows["a/kernel"].sparsity == pytest.approx(8 / 12)
    assert rows["b/kernel"].active == 5
    assert summary.total.size == 22 and summary.total.active == 9
    assert summary.total.sparsity == pytest.approx(13 / 22)
    table = str(summary)
    for cell in ("a/kernel", "b/kernel", "12", "22"):
        assert cell in table


def test_masked_norm_parameters_are_listed_but_not_in_the_sparsity():
    """Chase gives them masks; the sparsity of tables is that of kernels."""
    params, masks = example()
    params["norm"], masks["norm"] = jnp.ones(8), jnp.arange(8) < 3
    summary = neurrev_jax.summarize(params, masks)
    assert {row.path: row.active for row in summary}["norm"] == 3
    assert summary.total.size == 22 and summary.total.active == 9
    alone = neurrev_jax.summarize({"n": params["norm"]}, {"n": masks["norm"]})
    assert alone.total.active == 3


def test_packing_is_exact_and_one_bit_a_weight():
    params = {
        "a": {"kernel": jnp.zeros((37, 11)), "bias": jnp.zeros(3)},
        "b": [{"kernel": jnp.zeros((3, 3, 2, 2))}, jnp.zeros(())],
    }
    rng = np.random.default_rng(0)
    draw = lambda p: jnp.asarray(rng.random(p.shape) < 0.3 if p.ndim > 1 else True)
    masks = jax.tree.map(draw, params)
    packed = neurrev_jax.pack_masks(masks)
    harness.assert_trees_equal(neurrev_jax.unpack_masks(packed, params), masks)
    weights = 37 * 11 + 36
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(packed)) <= weights / 8 + 4


def test_packing_tells_full_masks_from_dense_leaves():
    params = {"a": jnp.zeros((2, 4)), "b": jnp.zeros((2, 4))}
    masks = {"a": jnp.ones((2, 4), bool), "b": jnp.array(True)}
    packed = neurrev_jax.pack_masks(masks)
    harness.assert_trees_equal(neurrev_jax.unpack_masks(packed, params), masks)


def test_unpacking_for_other_parameters_is_an_error():
    params, masks = example()
    packed = neurrev_jax.pack_masks(masks)
    other = {**params, "b": {"kernel": jnp.zeros((50, 2))}}
    with pytest.raises(ValueError, match="b/kernel"):
        neurrev_jax.unpack_masks(packed, other)
    with pytest.raises(ValueError):
        neurrev_jax.unpack_masks(packed, params["a"])


# --- finding masks in a state -------------------------------------------------


def sparse(**options):
    return neurrev_jax.sparse_transform(optax.sgd(0.1, momentum=0.9), **options)


def test_get_masks_finds_them_anywhere():
    params = harness.net_params()
    alone = neurrev_jax.get_masks(sparse().init(params))
    assert jax.tree.structure(alone) == jax.tree.structure(params)
    nests = [
        optax.chain(optax.clip(1.0), sparse(), optax.scale(1.0)),
        optax.MultiSteps(sparse(), 2),
        optax.apply_if_finite(sparse(), 3),
    ]
    for tx in nests:
        harness.assert_trees_equal(neurrev_jax.get_masks(tx.init(params)), alone)
    state = {"step": jnp.int32(0), "opt": (sparse().init(params), [jnp.zeros(3)])}
    harness.assert_trees_equal(neurrev_jax.get_masks(state), alone)


def test_get_masks_without_a_sparse_state():
    with pytest.raises(ValueError, match="sparse_transform"):
        neurrev_jax.get_masks(optax.sgd(0.1).init(harness.net_params()))


def labels(kernel_labels):
    """A label tree: kernels as given, everything else 'rest'."""
    flat = jax.tree_util.tree_flatten_with_path(harness.net_params())[0]
    names = ["/".join(entry.key for entry in path) for path, _ in flat]
    structure = jax.tree.structure(harness.net_params())
    return jax.tree.unflatten(structure, [kernel_labels.get(n, "rest") for n in names])


def test_get_masks_merges_the_parts_of_a_partition():
    params = harness.net_params()
    tx = optax.partition(
        {
            "half": sparse(sparsity=0.5),
            "most": sparse(sparsity=0.8),
            "rest": optax.adam(1e-3),
        },
        labels({"conv/kernel": "half", "deep/kernel": "most"}),
    )
    masks = neurrev_jax.get_masks(tx.init(params))
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert harness.counts(masks) == {"conv/kernel": 36, "deep/kernel": 44}


def test_get_masks_merges_masked_parts_in_a_chain():
    params = harness.net_params()
    choose = lambda name: jax.tree.map(
        lambda label: label == name,
        labels({"conv/kernel": "one", "deep/kernel": "two"}),
    )
    tx = optax.chain(
        optax.masked(sparse(sparsity=0.5), choose("one")),
        optax.masked(sparse(sparsity=0.8), choose("two")),
    )
    masks = neurrev_jax.get_masks(tx.init(params))
    assert harness.counts(masks) == {"conv/kernel": 36, "deep/kernel": 44}


def test_get_masks_refuses_overlapping_parts():
    params = harness.net_params()
    tx = optax.chain(sparse(), sparse(key=1))
    with pytest.raises(ValueError, match="both"):
        neurrev_jax.get_masks(tx.init(params))


def test_effective_params_and_gradient_masks_find_the_state_too():
    params = harness.net_params()
    tx = optax.chain(optax.clip(1.0), sparse())
    state = tx.init(params)
    params = neurrev_jax.sparsify(params, state)
    harness.assert_trees_equal(neurrev_jax.effective_params(params, state), params)
    needed = neurrev_jax.gradient_masks(state)
    for name, mask in harness.leaves(neurrev_jax.get_masks(state)).items():
        got = np.broadcast_to(harness.leaves(needed)[name], mask.shape)
        np.testing.assert_array_equal(got, mask)
