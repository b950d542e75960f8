"""MEST: elastic mutation under a hard and a soft memory bound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness

# Ten active of a hundred, of distinct sizes; entry 0 is the smallest.
THETA = np.concatenate([np.arange(1.0, 11.0) * (-1.0) ** np.arange(10), np.zeros(90)])


def transform(ratio, active=range(10), inner=None, schedule=None, **options):
    method = neurrev_jax.mest(ratio, schedule or neurrev_jax.periodic(1), **options)
    masks = harness.one_layer_masks(active, 100)
    return neurrev_jax.sparse_transform(inner or optax.sgd(0.0), method, masks=masks)


def test_elastic_mutation_prunes_and_grows_a_fraction_of_all_entries():
    masks = harness.one_layer_by_key(transform(0.02), THETA, keys=50)
    assert (masks.sum(1) == 10).all()
    assert masks[:, 2:10].all(), "8 stay, the largest"
    # 2 grow among the 92 others, those just dropped included.
    assert masks[:, 10:].any(0).sum() > 50 and masks[:, :2].any()


def test_a_soft_bound_trains_with_more_weights_until_the_ratio_is_zero():
    ratio = neurrev_jax.piecewise([0.05, 0.0], [6])
    tx = transform(ratio, memory="soft", schedule=neurrev_jax.periodic(2))
    params, state = harness.start(tx, {"kernel": jnp.asarray(THETA.reshape(2, -1))})
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    active, kept = [10], []
    for _ in range(8):
        # Grown weights become the largest, so that what is pruned is known.
        grown = (params["kernel"] == 0) & neurrev_jax.get_masks(state)["kernel"]
        params = {"kernel": jnp.where(grown, 50.0 + len(active), params["kernel"])}
        size = np.abs(np.ravel(params["kernel"]))
        grads = jax.tree.map(jnp.zeros_like, params)
        before = size.copy()
        params, state = harness.stepper(tx)(params, state, grads)
        mask = np.ravel(neurrev_jax.get_masks(state)["kernel"])
        active.append(int(mask.sum()))
        largest = np.argsort(-before)[:10]
        kept.append(mask[largest].all())
    assert active == [10, 10, 15, 15, 15, 15, 10, 10, 10]
    assert all(kept), "the ten largest are never pruned"


def test_the_score_adds_the_gradient_with_its_weight():
    grads = np.zeros(100)
    grads[0] = -5.0
    for weight, gone in ((0.0, [0, 1]), (1.0, [1, 2])):
        tx = transform(0.02, gradient_weight=weight)
        _, mask, _ = harness.one_layer(tx, THETA, grads)
        assert np.delete(mask[:10], gone).all(), "the highest scores are kept"
        assert mask.sum() == 10 and mask[10:].sum() == 2


def test_slots_of_pruned_weights_are_kept_unless_they_are_to_be_zeroed():
    theta, inner = THETA[:100], optax.sgd(1e-6, momentum=0.5)
    for slots, expected in (("keep", 1.0), ("zero", 0.0)):
        options = {} if slots == "keep" else {"slots": slots}
        tx = transform(0.05, inner=inner, **options)
        _, mask, state = harness.one_layer(tx, theta, grads=np.ones(100))
        (trace,) = (x for x in jax.tree.leaves(state.inner_state) if x.size == 100)
        gone = ~mask[:10]
        assert gone.sum() >= 3
        np.testing.assert_array_equal(np.ravel(trace)[:10][gone], expected)
        np.testing.assert_array_equal(np.ravel(trace)[:10][~gone], 1.0)


@pytest.mark.parametrize(
    ("memory", "ratio", "limit"), [("hard", 0.2, "0.1"), ("soft", 0.95, "0.9")]
)
def test_a_ratio_that_a_leaf_cannot_meet(memory, ratio, limit):
    over_time = (
        neurrev_jax.piecewise([0.0, ratio], [5]),
        neurrev_jax.cosine(ratio, until=10),
        neurrev_jax.cubic(0.0, ratio, begin=0, until=10),
    )
    for value in (ratio, *over_time):
        method = neurrev_jax.mest(value, memory=memory)
        tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.9)
        with pytest.raises(ValueError, match=f"{ratio}.*kernel.*{limit}"):
            tx.init({"kernel": jnp.ones((10, 10))})


def test_a_soft_bound_leaves_full_leaves_as_they_are():
    full = jnp.ones((4, 5), bool)
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.1),
        neurrev_jax.mest(0.05, neurrev_jax.periodic(1), memory="soft"),
        masks={"kernel": jnp.zeros((10, 10), bool).at[0].set(True), "full": full},
    )
    params = {"kernel": jnp.ones((10, 10)), "full": jnp.ones((4, 5))}
    for _, state in harness.run(tx, params, 2)[1:]:
        masks = neurrev_jax.get_masks(state)
        assert masks["kernel"].sum() == 15 and masks["full"].all()


def test_refusals_and_defaults():
    for options, match in (
        ({"memory": "typo"}, "memory='typo'"),
        ({"slots": "typo"}, "slots='typo'"),
        ({"gradient_weight": -1.0}, r"gradient_weight=-1\.0"),
        ({"update_ratio": -0.1}, r"update_ratio=-0\.1"),
    ):
        with pytest.raises(ValueError, match=match):
            neurrev_jax.mest(**options)
    schedule = neurrev_jax.mest().schedule
    assert [bool(schedule(jnp.int32(t))) for t in (999, 1000)] == [False, True]
