"""The transformation: semantics, composition, trees, keys, errors."""

import dataclasses

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import neurrev_jax
from tests import harness

ratio, every = 0.3, 2
METHOD = neurrev_jax.neurrev(ratio, neurrev_jax.periodic(every))


def sparse(inner=None, method=METHOD, **options):
    """NeurRev every two calls around SGD with momentum, at 60 % everywhere."""
    inner = optax.sgd(0.1, momentum=0.9) if inner is None else inner
    options = {"sparsity": 0.6, "distribution": harness.even, **options}
    return neurrev_jax.sparse_transform(inner, method, **options)


def changes(history):
    """The calls after which some mask differs from before."""
    masks = [harness.leaves(neurrev_jax.get_masks(state)) for _, state in history]
    return [
        t
        for t in range(1, len(masks))
        if any((masks[t][path] != masks[t - 1][path]).any() for path in masks[t])
    ]


# --- semantics 1: apply_updates is enough -------------------------------------


def test_the_defaults_are_enough():
    params = {"kernel": jnp.ones((40, 50)), "bias": jnp.ones(50)}
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1))
    named = neurrev_jax.sparse_transform(
        optax.sgd(0.1),
        neurrev_jax.neurrev(update_ratio=0.1, schedule=neurrev_jax.periodic(1000)),
        sparsity=0.9,
        distribution="erk",
        key=0,
    )
    harness.assert_trees_equal(tx.init(params), named.init(params))
    assert harness.counts(tx.init(params).masks) == {"kernel": 200}
    state = tx.init(params)._replace(count=jnp.int32(998))
    params = neurrev_jax.sparsify(params, state)
    history, step = [(params, state)], harness.stepper(tx)
    for number in range(3):
        history.append(step(*history[-1], harness.fake_grads(number, params)))
        harness.assert_masked(history[-1][0], history[-1][1].masks)
    assert changes(history) == [2], "call number 1000 updates the topology"


def test_kept_weights_are_what_the_inner_optimizer_makes_of_them():
    """Bit for bit, with and without topology update, in one compilation mode."""
    inner = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(1e-2),
        optax.sgd(optax.linear_schedule(0.1, 0.01, 5), momentum=0.9, nesterov=True),
    )
    tx = sparse(inner)
    params, state = harness.start(tx, harness.net_params())
    for number in range(1, every + 1):
        grads = harness.fake_grads(number, params)
        masked = neurrev_jax.apply_masks(grads, state.masks)
        updates, _ = inner.update(masked, state.inner_state, params)
        expected = harness.leaves(optax.apply_updates(params, updates))
        old = harness.leaves(state.masks)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for path, new in harness.leaves(state.masks).items():
            got = harness.leaves(params)[path]
            if new.shape == ():
                np.testing.assert_array_equal(got, expected[path])
                continue
            kept = old[path] & new
            np.testing.assert_array_equal(got[kept], expected[path][kept])
            assert not got[~kept].any(), "not zero where inactive or just grown"
            assert (~old[path] & new).any() == (number % every == 0)


@pytest.mark.loose_numerics
@pytest.mark.parametrize("inner", ["sgd", "adamw"])
def test_grown_entries_start_at_zero_whatever_stood_there(inner):
    """Also where nobody called sparsify and the first call already grows."""
    inner = optax.sgd(0.1, momentum=0.9) if inner == "sgd" else optax.adamw(0.1)
    tx = sparse(inner, neurrev_jax.set_(0.5, neurrev_jax.periodic(1)))
    dense = harness.net_params()
    state = tx.init(dense)
    params, new = harness.stepper(tx)(dense, state, harness.fake_grads(1, dense))
    harness.assert_masked(params, new.masks)
    for path, mask in harness.leaves(new.masks).items():
        if mask.shape:
            grown = mask & ~harness.leaves(state.masks)[path]
            assert grown.any() and not harness.leaves(params)[path][grown].any()


def test_updates_keep_the_dtype_of_the_parameters():
    params = harness.net_params(dtype=jnp.bfloat16)
    for now, state in harness.run(sparse(), params, 3):
        assert {leaf.dtype for leaf in jax.tree.leaves(now)} == {
            jnp.dtype(jnp.bfloat16)
        }
        harness.assert_masked(now, state.masks)


# --- semantics 2: masked gradients, masked slots ------------------------------


def test_nan_in_an_inactive_gradient_does_not_leak():
    tx = sparse()
    params, state = harness.start(tx, harness.net_params())
    step = harness.stepper(tx)
    for number in range(1, 4):
        grads = jax.tree.map(
            lambda g, m: jnp.where(m, g, jnp.nan),
            harness.fake_grads(number, params),
            state.masks,
        )
        params, state = step(params, state, grads)
        for leaf in jax.tree.leaves((params, state.inner_state)):
            assert bool(jnp.isfinite(leaf).all())


def test_the_inner_optimizer_sees_masked_gradients():
    def update(grads, state, params=None):
        return grads, state

    tx = sparse(optax.GradientTransformation(lambda p: optax.EmptyState(), update))
    params, state = harness.start(tx, harness.net_params())
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, state, params)
    for path, mask in harness.leaves(state.masks).items():
        got = harness.leaves(updates)[path]
        assert (got[mask] == 1).all() and (mask.all() or not got[~mask].any())


def test_global_norm_clipping_inside_sees_active_entries_only():
    tx = sparse(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
    params, state = harness.start(tx, harness.net_params())
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, state, params)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, abs=1e-5)


# --- semantics 3: when --------------------------------------------------------


def test_calls_are_counted_from_one_and_the_inner_update_always_happens():
    method = neurrev_jax.neurrev(ratio, neurrev_jax.periodic(3, until=7, start=1))
    inner = optax.sgd(lambda count: jnp.float32(2.0) ** -count.astype(jnp.float32))
    tx = sparse(inner, method)
    params, state = harness.start(tx, harness.net_params())
    step, history = harness.stepper(tx), [(params, state)]
    ones = jax.tree.map(jnp.ones_like, params)
    for number in range(1, 12):
        before = history[-1][0]["conv"]["bias"]
        history.append(step(*history[-1], ones))
        moved = history[-1][0]["conv"]["bias"] - before
        np.testing.assert_allclose(moved, -(2.0 ** (1 - number)), rtol=1e-3, atol=1e-6)
        assert int(history[-1][1].count) == number
    assert changes(history) == [4, 7]


# --- semantics 4: exact counts, other leaves ----------------------------------


def test_counts_are_exact_and_dense_leaves_stay_dense():
    history = harness.run(sparse(), harness.net_params(), 4)
    first = harness.counts(history[0][1].masks)
    assert set(first) == set(harness.KERNELS)
    for _, state in history:
        assert harness.counts(state.masks) == first
        for path, mask in harness.leaves(state.masks).items():
            assert mask.shape == () or path in harness.KERNELS
            assert mask.shape != () or bool(mask)
    assert changes(history) == [2, 4]


def test_a_topology_update_changes_k_entries_of_each_leaf():
    method = neurrev_jax.rigl(0.3, neurrev_jax.periodic(1))
    tx = sparse(method=method)
    (_, before), (_, after) = harness.run(tx, harness.net_params(), 1)
    for path, old in harness.leaves(before.masks).items():
        if old.shape:
            new = harness.leaves(after.masks)[path]
            gone = int((old & ~new).sum())
            limit = int(np.floor(np.float32(0.3) * np.float32(old.sum())))
            assert gone == int((new & ~old).sum()) and 0 < gone <= limit


# --- semantics 5: extra arguments, frozen, composition ------------------------


def test_extra_arguments_reach_the_inner_optimizer():
    def update(grads, state, params=None, *, value, **extra):
        del params, extra
        return jax.tree.map(lambda g: g * value, grads), state

    scale = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = sparse(optax.chain(scale, optax.sgd(1.0)))
    params, state = harness.start(tx, harness.net_params())
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, state, params, value=3.0)
    np.testing.assert_array_equal(updates["norm"]["bias"], -3.0 * np.ones(4))
    with pytest.raises(TypeError, match="value"):
        tx.update(grads, state, params)


def test_extra_arguments_that_nobody_wants_are_ignored():
    tx = sparse()
    params, state = harness.start(tx, harness.net_params())
    grads = harness.fake_grads(1, params)
    harness.assert_trees_equal(
        tx.update(grads, state, params, value=jnp.float32(1.0)),
        tx.update(grads, state, params),
    )


def test_methods_see_extra_arguments():
    seen = {}

    def rewire(context):
        seen.update(context.extra)
        return METHOD.rewire(context)

    tx = sparse(method=dataclasses.replace(METHOD, rewire=rewire))
    params, state = harness.start(tx, harness.net_params())
    state = state._replace(count=jnp.int32(every - 1))
    tx.update(params, state, params, activity=jnp.float32(7.0))
    assert "activity" in seen


@pytest.mark.parametrize("as_arrays", [False, True])
def test_frozen_leaves_stay_as_they_are(as_arrays):
    tx = sparse(method=neurrev_jax.neurrev(ratio, neurrev_jax.periodic(1)))
    params, state = harness.start(tx, harness.net_params())
    update = jax.jit(tx.update)
    updates, state = update(harness.fake_grads(0, params), state, params)
    params = optax.apply_updates(params, updates)
    flag = lambda name: (
        lambda p: jnp.array(name == "conv") if as_arrays else name == "conv"
    )
    frozen = {name: jax.tree.map(flag(name), params[name]) for name in params}
    step = update if as_arrays else tx.update
    updates, new = step(harness.fake_grads(1, params), state, params, frozen=frozen)
    after = optax.apply_updates(params, updates)
    harness.assert_trees_equal(after["conv"], params["conv"])
    harness.assert_trees_equal(new.masks["conv"], state.masks["conv"])
    trace = lambda s: next(
        x for x in jax.tree.leaves(s.inner_state) if x.shape == (3, 3, 2, 4)
    )
    np.testing.assert_array_equal(trace(new), trace(state))
    for path, mask in harness.leaves(new.masks).items():
        if not path.startswith("conv"):
            assert (harness.leaves(after)[path] != harness.leaves(params)[path]).any()
        if path in ("deep/kernel", "head/kernel"):
            assert (mask != harness.leaves(state.masks)[path]).any()


def test_frozen_may_be_a_prefix():
    tx = sparse()
    params, state = harness.start(tx, harness.net_params())
    prefix = {"conv": True, "norm": False, "deep": False, "head": True}
    full = {k: jax.tree.map(lambda _, v=v: v, params[k]) for k, v in prefix.items()}
    grads = harness.fake_grads(1, params)
    harness.assert_trees_equal(
        tx.update(grads, state, params, frozen=prefix),
        tx.update(grads, state, params, frozen=full),
    )


def compositions():
    """By name: (transformation, calls at which the masks change in six)."""
    sgd = optax.sgd(0.1, momentum=0.9)
    return {
        "chain_inside": (sparse(optax.chain(optax.clip(0.5), sgd)), [2, 4, 6]),
        "chain_around": (optax.chain(optax.scale(0.5), sparse()), [2, 4, 6]),
        "multi_steps_inside": (
            sparse(optax.MultiSteps(sgd, 2).gradient_transformation()),
            [2, 4, 6],
        ),
        # Around, the sparse transformation is called once in two steps.
        "multi_steps_around": (optax.MultiSteps(sparse(), 2), [4]),
        "inject_inside": (
            sparse(optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)),
            [2, 4, 6],
        ),
        "inject_around": (
            optax.inject_hyperparams(lambda rate: sparse(optax.sgd(rate)))(rate=0.1),
            [2, 4, 6],
        ),
        "apply_if_finite_inside": (sparse(optax.apply_if_finite(sgd, 3)), [2, 4, 6]),
        "apply_if_finite_around": (optax.apply_if_finite(sparse(), 3), [2, 4, 6]),
    }


@pytest.mark.loose_numerics
@pytest.mark.parametrize("name", compositions())
def test_compositions(name):
    tx, expected = compositions()[name]
    history = harness.run(tx, harness.net_params(), 6)
    counts = harness.counts(neurrev_jax.get_masks(history[0][1]))
    for params, state in history:
        masks = neurrev_jax.get_masks(state)
        harness.assert_masked(params, masks)
        assert harness.counts(masks) == counts
        if "around" not in name:
            harness.assert_slots_masked(state.inner_state, masks)
    assert changes(history) == expected
    moved = harness.leaves(history[-1][0])["head/kernel"]
    assert (moved != harness.leaves(history[0][0])["head/kernel"]).any()


def test_injected_hyperparameters_can_be_changed():
    tx = optax.inject_hyperparams(lambda rate: sparse(optax.sgd(rate)))(rate=0.1)
    params, state = harness.start(tx, harness.net_params())
    state.hyperparams["rate"] = jnp.float32(0.5)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_array_equal(updates["norm"]["bias"], np.full(4, -0.5, np.float32))


def test_apply_if_finite_around_holds_everything_on_a_bad_step():
    tx = optax.apply_if_finite(sparse(), 3)
    params, state = harness.start(tx, harness.net_params())
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    params_after, state_after = harness.stepper(tx)(params, state, bad)
    harness.assert_trees_equal(params_after, params)
    harness.assert_trees_equal(
        neurrev_jax.get_masks(state_after), neurrev_jax.get_masks(state)
    )


@pytest.mark.loose_numerics
def test_masked_and_partition():
    params = harness.net_params()
    kernels = jax.tree.map(lambda p: p.ndim > 1, params)
    others = jax.tree.map(lambda p: p.ndim <= 1, params)
    chained = optax.chain(
        optax.masked(sparse(), kernels), optax.masked(optax.adam(0.01), others)
    )
    labels = jax.tree.map(lambda p: "sparse" if p.ndim > 1 else "dense", params)
    split = optax.partition({"sparse": sparse(), "dense": optax.adam(0.01)}, labels)
    for tx in (chained, split):
        history = harness.run(tx, params, 4)
        for now, state in history:
            masks = neurrev_jax.get_masks(state)
            assert jax.tree.structure(masks) == jax.tree.structure(params)
            assert set(harness.counts(masks)) == set(harness.KERNELS)
            harness.assert_masked(now, masks)
        assert changes(history) == [2, 4]
        assert (history[4][0]["norm"]["bias"] != history[0][0]["norm"]["bias"]).all()


# --- trees --------------------------------------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.Dense(3)(x.mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs)])


def trees():
    """By name: a function that makes the tree, and the paths to be sparse."""

    def linen():
        model = Linen()
        return model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))["params"]

    def equinox():
        key = jax.random.key(0)
        model = eqx.nn.Sequential(
            [eqx.nn.Conv2d(2, 4, 3, key=key), eqx.nn.Linear(4, 6, key=key)]
        )
        return eqx.filter(model, eqx.is_array)

    ones = lambda *shape: jnp.ones(shape)
    return {
        "linen": (linen, {"Conv_0/kernel", "Dense_0/kernel"}),
        "nnx": (
            lambda: nnx.state(Nnx(nnx.Rngs(0)), nnx.Param),
            {"conv/kernel", "layers/0/kernel"},
        ),
        "equinox": (equinox, {"layers/0/weight", "layers/1/weight"}),
        "dict": (
            lambda: {"a": {"kernel": ones(4, 6), "embedding": ones(5, 4)}},
            {"a/kernel"},
        ),
        "list": (lambda: [ones(4, 6), ones(6), ones(6, 3)], {"0", "2"}),
        "tuple": (lambda: (ones(4, 6), (ones(6, 3), ones(3, 1))), {"0", "1/0"}),
        "integers_and_thin": (
            lambda: {
                "w": ones(4, 6),
                "v": ones(1, 6),
                "i": jnp.ones((4, 4), jnp.int32),
            },
            {"w"},
        ),
    }


@pytest.mark.loose_numerics
@pytest.mark.parametrize("name", trees())
def test_trees_of_every_library(name):
    make, expected = trees()[name]
    params, paths = make(), []

    def spy(path, leaf):
        paths.append(path)
        return path in expected

    by_default = sparse().init(params)
    by_path = jax.eval_shape(sparse(where=spy).init, params)
    shapes = lambda masks: [mask.shape for mask in jax.tree.leaves(masks)]
    assert shapes(by_default.masks) == shapes(by_path.masks)
    assert expected <= set(paths)
    rows = neurrev_jax.summarize(params, by_default.masks)
    assert {row.path for row in rows if row.sparsity > 0} == expected
    if name == "integers_and_thin":
        return  # Integers have no gradient, hence no training step.
    tx = sparse()
    history = harness.run(tx, params, 2)
    assert jax.tree.structure(history[-1][0]) == jax.tree.structure(params)
    assert changes(history) == [2]
    harness.assert_masked(
        jax.tree.leaves(history[-1][0]), jax.tree.leaves(history[-1][1].masks)
    )


def test_where_chooses_and_patterns_see_the_same_paths():
    params = harness.net_params()
    tx = sparse(
        where=lambda path, leaf: path == "deep/kernel", sparsity={"deep/*": 0.5}
    )
    assert harness.counts(tx.init(params).masks) == {"deep/kernel": 108}


# --- init, compilation, buffers -----------------------------------------------


def test_init_under_jit_and_eval_shape():
    tx, params = sparse(), harness.net_params()
    state = tx.init(params)
    harness.assert_trees_equal(jax.jit(tx.init)(params), state)
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, leaf in zip(
        jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True
    ):
        assert shape.shape == leaf.shape and shape.dtype == leaf.dtype


def test_inner_state_has_the_structure_of_the_inner_init():
    inner, params = optax.adam(0.1), harness.net_params()
    state = sparse(inner).init(params)
    harness.assert_trees_equal(state.inner_state, inner.init(params))


def test_state_holds_arrays_of_fixed_types_only():
    state = sparse().init(harness.net_params())
    assert isinstance(state, neurrev_jax.SparseState)
    assert state._fields == ("count", "key", "masks", "inner_state", "method_state")
    assert state.count.dtype == jnp.int32 and state.count.shape == ()
    assert state.key.dtype == jnp.uint32 and state.key.shape == (2,)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_no_buffer_occurs_twice_and_donation_works():
    dense, key = harness.net_params(), jax.random.PRNGKey(3)
    masks = sparse().init(dense).masks
    tx = sparse(masks=masks, key=key)
    state = tx.init(dense)
    params = neurrev_jax.sparsify(dense, state)
    everything = jax.tree.leaves((params, state, masks, key))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in everything]
    assert len(set(buffers)) == len(buffers)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    keeping, donating = jax.jit(step), jax.jit(step, donate_argnums=(0, 1))
    for number in range(1, every + 1):
        grads = harness.fake_grads(number, params)
        expected = keeping(params, state, grads)
        given = jax.tree.leaves((params, state))
        params, state = donating(params, state, grads)
        harness.assert_trees_equal((params, state), expected)
        assert all(leaf.is_deleted() for leaf in given), "not every buffer was donated"
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((masks, key)))


def test_a_step_without_update_runs_no_selection():
    """What counts and loops sits inside the one branch that only updates take."""
    tx = sparse(optax.sgd(0.1))
    params, state = harness.start(tx, harness.net_params())
    jaxpr = jax.make_jaxpr(tx.update)(params, state, params).jaxpr

    heavy = {"while", "cond", "scan", "sort", "cumsum", "reduce_sum"}

    def loops(jaxpr, depth=0):
        for eqn in jaxpr.eqns:
            is_heavy = eqn.primitive.name in heavy
            if is_heavy:
                yield depth
            for value in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from loops(inner, depth + is_heavy)

    depths = list(loops(jaxpr))
    assert depths.count(0) == 1, "work outside the branch"
    assert depths.count(1) > 1, "the branch holds no topology update"


# --- keys ---------------------------------------------------------------------


def test_all_forms_of_one_key_give_the_same_masks():
    params = harness.net_params()
    forms = [
        7,
        np.int32(7),
        jax.random.key(7),
        jax.random.PRNGKey(7),
        np.asarray(jax.random.PRNGKey(7)),
    ]
    states = [sparse(key=key).init(params) for key in forms]
    for state in states[1:]:
        harness.assert_trees_equal(state, states[0])
    other = sparse(key=8).init(params)
    assert (other.masks["deep"]["kernel"] != states[0].masks["deep"]["kernel"]).any()


def test_the_same_key_gives_the_same_run():
    first, again = (harness.run(sparse(key=3), harness.net_params(), 4) for _ in "ab")
    harness.assert_trees_equal(first[-1], again[-1])


def test_every_update_draws_anew():
    params = {"kernel": jnp.ones((30, 40))}
    method = neurrev_jax.rigl(0.2, neurrev_jax.periodic(1))
    tx = sparse(optax.sgd(0.0), method)
    params, state = harness.start(tx, params)
    step, moves = harness.stepper(tx), []
    for count in (0, 1):
        at = state._replace(count=jnp.int32(count))
        _, new = step(params, at, jax.tree.map(jnp.ones_like, params))
        moves.append(np.asarray(new.masks["kernel"]))
    assert (moves[0] != moves[1]).any()


# --- masks= -------------------------------------------------------------------


def test_given_masks_are_used_as_they_are():
    params = harness.net_params()
    given = jax.tree.map(
        lambda p: (
            jnp.arange(p.size).reshape(p.shape) % 3 == 0
            if p.ndim > 1
            else jnp.array(True)
        ),
        params,
    )
    tx = sparse(masks=given)
    history = harness.run(tx, params, 4)
    harness.assert_trees_equal(history[0][1].masks, given)
    assert harness.counts(history[-1][1].masks) == harness.counts(given)
    assert changes(history) == [2, 4]


def test_given_masks_may_stand_in_for_any_distribution():
    """Where masks are given, nothing is asked of sparsity or distribution."""
    params = {"left": {"kernel": jnp.ones((3, 3, 2, 4))}, "v": jnp.ones((3, 3, 2, 5))}
    given = {
        "left": {"kernel": jnp.ones((3, 3, 2, 4), bool).at[0].set(False)},
        "v": jnp.ones((3, 3, 2, 5), bool).at[1].set(False),
    }
    state = sparse(masks=given, distribution="uniform").init(params)
    harness.assert_trees_equal(state.masks, given)


# --- errors -------------------------------------------------------------------


def test_update_without_params():
    tx, params = sparse(), harness.net_params()
    with pytest.raises(ValueError, match="params"):
        tx.update(params, tx.init(params))


def test_given_masks_that_do_not_fit():
    params = harness.net_params()
    masks = sparse().init(params).masks
    for wrong in (
        masks["conv"],
        {**masks, "deep": {"kernel": jnp.ones((2, 2), bool)}},
        {**masks, "deep": {"kernel": jnp.ones((3, 3, 4, 6))}},
    ):
        with pytest.raises(ValueError, match="mask"):
            sparse(masks=wrong).init(params)


def test_a_state_of_other_parameters():
    tx = sparse()
    state = tx.init(harness.net_params())
    other = {"kernel": jnp.ones((4, 4))}
    for call in (
        lambda: neurrev_jax.sparsify(other, state),
        lambda: neurrev_jax.effective_params(other, state),
        lambda: tx.update(other, state, other),
    ):
        with pytest.raises(ValueError, match="mask"):
            call()


def test_rewire_that_returns_another_structure():
    broken = dataclasses.replace(
        METHOD, rewire=lambda context: neurrev_jax.Rewired(context.masks, ())
    )
    tx = sparse(method=broken)
    params, state = harness.start(tx, harness.net_params())
    with pytest.raises(ValueError, match="rewire"):
        jax.jit(tx.update)(params, state, params)


# --- sparsify, effective_params -----------------------------------------------


def test_sparsify_masks():
    tx, dense = sparse(), harness.net_params()
    state = tx.init(dense)
    harness.assert_trees_equal(
        neurrev_jax.sparsify(dense, state), neurrev_jax.apply_masks(dense, state.masks)
    )


def test_effective_params_passes_gradients_straight_through():
    tx = sparse(optax.chain(optax.clip(1.0), optax.sgd(0.1)))
    params, state = harness.start(tx, harness.net_params())
    grads = jax.grad(
        lambda p: sum(
            leaf.sum()
            for leaf in jax.tree.leaves(neurrev_jax.effective_params(p, state))
        )
    )(params)
    harness.assert_trees_equal(grads, jax.tree.map(jnp.ones_like, params))


def test_a_key_of_another_implementation_seeds_a_threefry_state():
    params = harness.net_params()
    key = jax.random.key(0, impl="rbg")
    init = lambda k: neurrev_jax.sparse_transform(optax.sgd(0.1), key=k).init(params)
    one, two = init(key), init(key)
    assert one.key.shape == (2,)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = init(jax.random.key(1, impl="rbg"))
    assert (other.key != one.key).any()


def test_raw_key_data_of_another_shape_is_refused():
    raw = jax.random.key_data(jax.random.key(0, impl="rbg"))
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), key=raw)
    with pytest.raises(ValueError, match=r"no threefry key"):
        tx.init(harness.net_params())


@pytest.mark.parametrize("sparsity", [np.float32(0.5), np.array(0.5), jnp.array(0.5)])
def test_sparsity_may_be_any_known_number(sparsity):
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=sparsity)
    state = tx.init({"kernel": jnp.ones((4, 5))})
    assert int(state.masks["kernel"].sum()) == 10


@pytest.mark.parametrize("sparsity", ["0.5", True, None, float("nan")])
def test_what_is_no_sparsity_is_refused(sparsity):
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=sparsity)
    with pytest.raises(ValueError, match=r"sparsity="):
        tx.init({"kernel": jnp.ones((4, 5))})
