"""What holds for every method around every inner optimizer, on every device layout."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import neurrev_jax
from tests import harness

EVERY = 3
PERIODIC = neurrev_jax.periodic(EVERY)
# Every topology update changes the masks of the small network, unless said otherwise.
ON_SCHEDULE = (3, 6)


@dataclasses.dataclass(frozen=True)
class Case:
    """A method, and what the contract checks of it.

    Attributes:
      method: makes it; called with no arguments.
      counts: what stays exact: the number of active entries `"per leaf"`, or in
        `"total"`; or, by schedule, a function of the call number (0 = the start) and
        of the sizes by leaf that returns the number in total, or a dict by leaf.
      changes: which of the first seven calls change masks.
      inactive: inactive parameters are `"zero"`, or `"held"`: the effective ones are
        zero, and those outside the gradient masks do not move.
      slots: slots are `"masked"` to what the optimizer may move, or `"kept"`.
      grown: |value| of a newly active entry; None where it has one of its own.
      own_updates: kept weights are bit for bit the inner optimizer's (there is no
        penalty, noise or slot that the method resets).
      also_sparse: rewirable leaves of the small network besides its kernels.
      sparsity: of the small network.
      everyday: the inner optimizers that every run of the tests tries it with; all
        others run with the `full` marker.
    """

    method: Callable[[], neurrev_jax.Method]
    counts: (
        Literal["per leaf", "total"]
        | Callable[[int, dict[str, int]], int | dict[str, int]]
    ) = "per leaf"
    changes: tuple[int, ...] = ON_SCHEDULE
    inactive: Literal["zero", "held"] = "zero"
    slots: Literal["masked", "kept"] = "masked"
    grown: float | None = 0.0
    own_updates: bool = True
    also_sparse: tuple[str, ...] = ()
    sparsity: float = 0.6
    everyday: tuple[str, ...] = ("momentum",)


# Active entries of the small network at sparsity 0.6, and the share of what gradual
# methods have to prune that is left after each call, in a window of six.
FINAL = {"conv/kernel": 29, "deep/kernel": 87, "head/kernel": 12}


# What a channel of the small network is made of.
CHANNELS = (
    {"conv/kernel": 3},
    {"conv/bias": 0, "norm/scale": 0, "norm/bias": 0, "deep/kernel": 2},
)


def cubic_left(call):
    return 1.0 if call < EVERY else (0.5**3 if call < 2 * EVERY else 0.0)


INNERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "lion": lambda: optax.lion(1e-2, weight_decay=0.1),
    "rmsprop": lambda: optax.rmsprop(1e-2, momentum=0.9, centered=True),
    "adafactor": lambda: optax.adafactor(1e-2, momentum=0.9),
    "factored": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "lamb": lambda: optax.lamb(1e-2, weight_decay=0.1),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(1e-3),
        optax.sgd(0.1, momentum=0.9),
    ),
}
# How many slots of a kernel's shape each keeps, by kernel.
SLOTS = {
    "sgd": 0,
    "momentum": 1,
    "nesterov": 1,
    "adam": 2,
    "adamw": 2,
    "lion": 1,
    "rmsprop": 3,
    "adafactor": 2,
    "factored": 0,
    "lamb": 2,
    "clipped": 1,
}
BOTH = ("momentum", "adamw")

# One line (or a few) for every method; all tests below read this table.
CASES = {
    "neurrev": Case(lambda: neurrev_jax.neurrev(0.2, PERIODIC), everyday=tuple(INNERS)),
    "set_": Case(lambda: neurrev_jax.set_(0.3, PERIODIC), everyday=BOTH),
    "rigl": Case(lambda: neurrev_jax.rigl(0.3, PERIODIC), everyday=BOTH),
    "static": Case(lambda: neurrev_jax.static(), changes=()),
    # Layer-wise dynamic methods go here.
    "itop": Case(lambda: neurrev_jax.itop(0.3, PERIODIC)),
    "itop_random": Case(
        lambda: neurrev_jax.itop(0.3, PERIODIC, growth="random", prefer_new=True),
        everyday=(),
    ),
    "mest": Case(lambda: neurrev_jax.mest(0.1, PERIODIC), slots="kept"),
    "mest_soft": Case(
        lambda: neurrev_jax.mest(
            neurrev_jax.piecewise([0.1, 0.0], [6]), PERIODIC, memory="soft"
        ),
        counts=lambda call, sizes: {
            path: size - int(0.6 * size) + (int(0.1 * size) if 3 <= call < 6 else 0)
            for path, size in sizes.items()
        },
        slots="kept",
    ),
    "top_kast": Case(
        lambda: neurrev_jax.top_kast(0.2, PERIODIC),
        inactive="held",
        own_updates=False,
        everyday=BOTH,
    ),
    "top_kast_plain": Case(
        lambda: neurrev_jax.top_kast(0.2, PERIODIC, penalty=0.0),
        inactive="held",
        everyday=(),
    ),
    "powerprop": Case(
        lambda: neurrev_jax.powerprop(
            neurrev_jax.set_(0.3, PERIODIC, drop="magnitude"), growth_start=0.01
        ),
        grown=None,
    ),
    "powerprop_top_kast": Case(
        lambda: neurrev_jax.powerprop(neurrev_jax.top_kast(0.2, PERIODIC)),
        inactive="held",
        own_updates=False,
        everyday=(),
    ),
    "snfs": Case(lambda: neurrev_jax.snfs(0.3, PERIODIC), counts="total", slots="kept"),
    "dsr": Case(lambda: neurrev_jax.dsr(0.2, PERIODIC, threshold=0.1), counts="total"),
    "deep_r": Case(
        lambda: neurrev_jax.deep_r(step_size=0.1, temperature=0.1),
        changes=(1, 2, 3, 4, 5, 6, 7),
        grown=None,
        own_updates=False,
    ),
    # Global methods go here.
    "gradual_magnitude": Case(
        lambda: neurrev_jax.gradual_magnitude(PERIODIC, window=(0, 6)),
        counts=lambda call, sizes: {
            path: FINAL[path] + int(cubic_left(call) * (size - FINAL[path]))
            for path, size in sizes.items()
        },
    ),
    "ac_dc": Case(
        lambda: neurrev_jax.ac_dc(neurrev_jax.phases([2, 4, 6])),
        counts=lambda call, sizes: sum(
            (FINAL if call in (2, 3, 6, 7) else sizes).values()
        ),
        changes=(2, 4, 6),
        own_updates=False,
    ),
    "granet": Case(
        lambda: neurrev_jax.granet(0.3, PERIODIC, window=(0, 6)),
        # From 318 - floor(0.5 * 318) = 159 to 128.
        counts=lambda call, sizes: 128 + int(cubic_left(call) * 31),
    ),
    "chase": Case(
        lambda: neurrev_jax.chase(
            0.1,
            PERIODIC,
            soft_until=EVERY,
            groups=[neurrev_jax.channel_group(harness.net_params(), *CHANNELS)],
            channel_sparsity=0.5,
            channel_window=(0, 6),
        ),
        # 31 above the budget while it is soft, and the three entries of each of the
        # four channels' norm and bias, of which one and then two go.
        counts=lambda call, sizes: {0: 128 + 12, 1: 159 + 9, 2: 128 + 6}[call // EVERY],
        also_sparse=("conv/bias", "norm/bias", "norm/scale"),
    ),
}
METHODS = tuple(CASES)
PAIRS = [(m, i) for m in METHODS for i in CASES[m].everyday]
REST = [(m, i) for m in METHODS for i in INNERS if (m, i) not in PAIRS]


def every_method(*default: str):
    """All methods as test parameters; those not named run with the `full` marker."""
    return [
        pytest.param(m, marks=() if m in default else pytest.mark.full) for m in METHODS
    ]


# Optax's adaptive optimizers raise Python floats to integer arrays.
pytestmark = pytest.mark.loose_numerics


@functools.cache
def build(method="neurrev", inner="momentum", **options):
    """One transformation per choice, so that tests share its compiled step."""
    case = CASES[method]
    defaults = {"sparsity": case.sparsity, "distribution": harness.even, "key": 1}
    return neurrev_jax.sparse_transform(
        INNERS[inner](), case.method(), **(defaults | options)
    )


def assert_counts(case, call, masks, first):
    """The numbers of active entries are exactly what the method declares."""
    found = harness.counts(masks)
    assert set(found) == {*harness.KERNELS, *case.also_sparse}
    if case.counts == "per leaf":
        assert found == first
    elif case.counts == "total":
        assert sum(found.values()) == sum(first.values())
    else:
        sizes = {path: harness.leaves(masks)[path].size for path in found}
        expected = case.counts(call, sizes)
        by_leaf = isinstance(expected, dict)
        assert (found if by_leaf else sum(found.values())) == expected


def assert_inactive(case, params, state, old_params, old_state):
    """Inactive entries are exactly zero, or held where they were."""
    if case.inactive == "zero":
        harness.assert_masked(params, state.masks)
        return
    effective = neurrev_jax.effective_params(params, state)
    harness.assert_masked(effective, state.masks)
    before, after = harness.leaves(old_params), harness.leaves(params)
    for path, moves in harness.leaves(neurrev_jax.gradient_masks(old_state)).items():
        held = np.broadcast_to(~moves, after[path].shape)
        np.testing.assert_array_equal(after[path][held], before[path][held])


def movable(case, state):
    """The entries whose slots may be nonzero."""
    held = case.inactive == "held"
    return neurrev_jax.gradient_masks(state) if held else state.masks


def check_contract(method, inner):
    case, tx, traces = CASES[method], build(method, inner), []
    params, state = harness.start(tx, harness.net_params())
    step = harness.counted_stepper(tx, traces)
    first, changed = harness.counts(state.masks), []
    assert_counts(case, 0, state.masks, first)
    for number in range(1, 8):
        # The gradient that training takes: through the effective parameters.
        grads = harness.net_grads(params, state, *harness.batch(number))
        before, old = params, state
        params, state = step(params, state, grads)
        assert_inactive(case, params, state, before, old)
        assert_counts(case, number, state.masks, first)
        slots = harness.count_slots(state.inner_state)
        assert slots == SLOTS[inner] * len(harness.KERNELS)
        if case.slots == "masked":
            harness.assert_slots_masked(state.inner_state, movable(case, state))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
        assert jax.tree.structure(state) == jax.tree.structure(old)
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        was, now = harness.leaves(old.masks), harness.leaves(state.masks)
        if any((was[path] != now[path]).any() for path in was):
            changed.append(number)
    if case.inactive == "zero":
        assert tuple(changed) == case.changes
    else:  # where a held weight overtakes an active one, which it need not
        assert set(changed) <= set(case.changes)
    assert len(traces) == 1, "compiled more than once"


@pytest.mark.parametrize(("method", "inner"), PAIRS)
def test_contract(method, inner):
    check_contract(method, inner)


@pytest.mark.full
@pytest.mark.parametrize(("method", "inner"), REST)
def test_contract_full_product(method, inner):
    check_contract(method, inner)


def check_kept_weights(method, inner):
    """Bit for bit the inner optimizer's, compared outside jit on both sides."""
    case, optimizer, tx = CASES[method], INNERS[inner](), build(method, inner)
    needs = case.method().inner_gradients
    params, state = harness.start(tx, harness.net_params())
    state = state._replace(count=jnp.int32(EVERY - 2))
    for number in range(EVERY - 1, EVERY + 1):
        grads = harness.fake_grads(number, params)
        seen = grads
        if needs != "dense":
            seen = neurrev_jax.apply_masks(grads, movable(case, state))
        updates, slots = optimizer.update(seen, state.inner_state, params)
        expected = harness.leaves(optax.apply_updates(params, updates))
        before, was = harness.leaves(params), harness.leaves(movable(case, state))
        active = harness.leaves(state.masks)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        got, now = harness.leaves(params), harness.leaves(movable(case, state))
        for path, new in harness.leaves(state.masks).items():
            old, whole = active[path], got[path].shape
            if case.inactive == "held":
                moved = np.where(was[path], expected[path], before[path])
                np.testing.assert_array_equal(got[path], moved)
                continue
            kept = np.broadcast_to(old & new, whole)
            np.testing.assert_array_equal(got[path][kept], expected[path][kept])
            if case.grown is not None:
                grown = np.abs(got[path][np.broadcast_to(new & ~old, whole)])
                np.testing.assert_array_equal(grown, np.float32(case.grown))
        # Kept entries keep their slots too; all others' are zero, or kept as well.
        by_shape = {now[path].shape: path for path in harness.KERNELS}
        for mine, theirs in zip(
            jax.tree.leaves(state.inner_state), jax.tree.leaves(slots), strict=True
        ):
            path = by_shape.get(mine.shape)
            if case.also_sparse and mine.ndim == 1:
                # Leaves that share a shape: some entries went with their channel.
                np.testing.assert_array_equal(mine, np.where(mine == 0, 0, theirs))
            elif path is None or case.slots == "kept":
                np.testing.assert_array_equal(mine, theirs)
            else:
                kept = was[path] & now[path]
                np.testing.assert_array_equal(mine, np.where(kept, theirs, 0))


@pytest.mark.parametrize(
    ("method", "inner"),
    [("neurrev", "clipped"), ("neurrev", "adamw"), ("rigl", "lamb"), ("set_", "lion")],
)
def test_kept_weights_and_slots_are_the_inner_optimizers(method, inner):
    check_kept_weights(method, inner)


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "inner"), [(m, i) for m, i in PAIRS + REST if CASES[m].own_updates]
)
def test_kept_weights_full_product(method, inner):
    check_kept_weights(method, inner)


@pytest.mark.parametrize("inner", ["clipped", "adamw", "lamb"])
def test_jitted_steps_agree_with_the_inner_optimizer(inner):
    """Under jit too, up to the rounding of fused arithmetic."""
    optimizer, tx = INNERS[inner](), build("neurrev", inner)
    params, state = harness.start(tx, harness.net_params())
    step, reference = harness.stepper(tx), jax.jit(optimizer.update)
    for number in range(1, EVERY + 2):
        grads = harness.fake_grads(number, params)
        masked = neurrev_jax.apply_masks(grads, state.masks)
        updates, _ = reference(masked, state.inner_state, params)
        expected = harness.leaves(optax.apply_updates(params, updates))
        old = harness.leaves(state.masks)
        params, state = step(params, state, grads)
        for path, new in harness.leaves(state.masks).items():
            got = harness.leaves(params)[path]
            kept = np.broadcast_to(old[path] & new, got.shape)
            np.testing.assert_allclose(
                got[kept], expected[path][kept], rtol=1e-5, atol=1e-6
            )


def test_decay_does_not_revive_inactive_weights():
    """Decoupled decay acts on parameters, and those of inactive entries are zero."""
    tx = neurrev_jax.sparse_transform(
        optax.adamw(0.1, weight_decay=0.5), neurrev_jax.static(), sparsity=0.6
    )
    for params, state in harness.run(tx, harness.net_params(), 3):
        harness.assert_masked(params, state.masks)


# --- bfloat16 -----------------------------------------------------------------


@pytest.mark.parametrize("inner", ["momentum", "adamw"])
def test_contract_in_bfloat16(inner):
    tx, traces = build("neurrev", inner), []
    params, state = harness.start(tx, harness.net_params(dtype=jnp.bfloat16))
    step, first = harness.counted_stepper(tx, traces), harness.counts(state.masks)
    for number in range(1, 5):
        params, state = step(params, state, harness.fake_grads(number, params))
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
        harness.assert_masked(params, state.masks)
        harness.assert_slots_masked(state.inner_state, state.masks)
        assert harness.counts(state.masks) == first
    assert len(traces) == 1


# --- devices ------------------------------------------------------------------


@functools.cache
def single_device_run(method, steps=EVERY):
    """A run on replicated gradients, for comparison with many devices."""
    return harness.run(build(method), harness.net_params(), steps)


def test_there_are_eight_devices():
    assert jax.local_device_count() == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", every_method("neurrev"))
def test_pmap_gives_every_device_the_same_masks(method):
    tx = build(method)
    history = single_device_run(method)
    spread = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * 8), tree)
    params, state = spread(history[0])

    @jax.pmap
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for number in range(1, EVERY + 1):
        grads = spread(harness.fake_grads(number, history[0][0]))
        params, state = step(params, state, grads)
        expected = history[number][1].masks
        for device in range(8):
            masks = jax.tree.map(lambda x, d=device: x[d], state.masks)
            harness.assert_trees_equal(masks, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_data_parallel_training_keeps_the_devices_together():
    """Each device sees other data; averaged gradients keep the replicas equal."""
    tx = build("rigl")
    params, state = harness.start(tx, harness.net_params())
    spread = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * 8), tree)
    params, state = spread((params, state))

    def step(params, state, images, labels):
        grads = harness.gradients(params, state, images, labels)
        grads = jax.lax.pmean(grads, "devices")
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.pmap(step, axis_name="devices")
    for number in range(1, EVERY + 2):
        images, labels = harness.batch(number, size=16)
        images, labels = images.reshape(8, 2, 6, 6, 2), labels.reshape(8, 2)
        params, state = step(params, state, images, labels)
        for leaf in jax.tree.leaves((params, state)):
            leaf = np.asarray(leaf)
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


@pytest.mark.parametrize("method", ["neurrev"])
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_sharded_jit_gives_the_same_masks(method, sharded):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    history = single_device_run(method)
    tx = build(method)

    def place(leaf):
        spec = [None] * leaf.ndim
        if sharded and leaf.ndim and leaf.shape[-1] == 8:
            spec[-1] = "x"
        return jax.device_put(
            leaf, jax.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        )

    if sharded:  # a tree whose kernel divides by the devices
        rng = np.random.default_rng(0)
        tree = {"kernel": jnp.asarray(rng.normal(size=(9, 8)), jnp.float32)}
        history = harness.run(tx, tree, EVERY)
    params, state = jax.tree.map(place, history[0])
    step = harness.stepper(tx)
    for number in range(1, EVERY + 1):
        grads = jax.tree.map(place, harness.fake_grads(number, history[0][0]))
        params, state = step(params, state, grads)
        for leaf in jax.tree.leaves(state.masks):
            if leaf.sharding.is_fully_replicated:
                for shard in leaf.addressable_shards:
                    np.testing.assert_array_equal(shard.data, leaf)
        masks = jax.tree.map(np.asarray, state.masks)
        harness.assert_trees_equal(masks, history[number][1].masks)


def test_shard_map_gives_every_device_the_same_masks():
    mesh = jax.make_mesh((8,), ("x",))
    tx, history = build("rigl"), single_device_run("rigl")
    replicated = jax.sharding.PartitionSpec()

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        every = jax.tree.map(lambda m: m[None], state.masks)
        return params, state, every

    step = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=replicated,
            out_specs=(replicated, replicated, jax.sharding.PartitionSpec("x")),
            check_vma=False,
        )
    )
    params, state = history[0]
    for number in range(1, EVERY + 1):
        grads = harness.fake_grads(number, history[0][0])
        params, state, every = step(params, state, grads)
        for leaf, expected in zip(
            jax.tree.leaves(every),
            jax.tree.leaves(history[number][1].masks),
            strict=True,
        ):
            leaf = np.asarray(leaf)
            np.testing.assert_array_equal(leaf, np.stack([expected] * 8))


# --- vmap over seeds ----------------------------------------------------------


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize("method", every_method("neurrev"))
def test_vmap_over_seeds_equals_separate_runs(method):
    """Each replica keeps its own count, so they update in different calls."""
    seeds, txs = range(3), [build(method, key=seed) for seed in range(3)]
    starts = [
        harness.start(tx, harness.net_params(seed)) for seed, tx in enumerate(txs)
    ]
    starts = [
        (p, s._replace(count=jnp.int32(seed))) for seed, (p, s) in enumerate(starts)
    ]
    step = harness.stepper(txs[0])
    together = jax.jit(jax.vmap(lambda p, s, g: step(p, s, g)))
    params, state = stack(starts)
    alone = list(starts)
    for number in range(1, EVERY + 2):
        grads = [
            harness.fake_grads(10 * number + seed, alone[seed][0]) for seed in seeds
        ]
        params, state = together(params, state, stack(grads))
        alone = [step(*alone[seed], grads[seed]) for seed in seeds]
        expected = stack([s.masks for _, s in alone])
        harness.assert_trees_equal(state.masks, expected)
        for a, b in zip(
            jax.tree.leaves(params),
            jax.tree.leaves(stack([p for p, _ in alone])),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_seeds_may_be_traced():
    def masks(seed):
        tx = build.__wrapped__(key=jax.random.key(seed))
        return tx.init(harness.net_params()).masks

    together = jax.vmap(masks)(jnp.arange(3))
    for seed in range(3):
        expected = build(key=seed).init(harness.net_params()).masks
        got = jax.tree.map(lambda x, s=seed: x[s], together)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def counting_method(calls):
    """NeurRev that reports every execution of its topology update."""
    method = CASES["neurrev"].method()

    def rewire(context):
        jax.debug.callback(lambda t: calls.append(int(t)), context.t)
        return method.rewire(context)

    return dataclasses.replace(method, rewire=rewire)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("transform", ["jit", "vmap", "pmap_of_vmap"])
def test_the_topology_update_runs_only_when_it_is_due(transform):
    calls = []
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.1), counting_method(calls), sparsity=0.5
    )
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)))}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    params, state = harness.start(tx, params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    wrapped, copies = jax.jit(step), 0
    if transform != "jit":
        wrapped, copies = jax.jit(jax.vmap(step)), 1
    if transform == "pmap_of_vmap":
        wrapped, copies = jax.pmap(jax.vmap(step)), 2
    for _ in range(copies):
        params, state = jax.tree.map(lambda x: jnp.stack([x] * 2), (params, state))
    executed = []
    for _ in range(2 * EVERY):
        calls.clear()
        params, state = wrapped(params, state, params)
        jax.effects_barrier()
        executed.append(len(calls) > 0)
    assert executed == [False, False, True] * 2


# --- checkpoints --------------------------------------------------------------


def continues(first_half, restored, tx):
    """Two runs of the rest, from the state itself and from what was restored."""
    params, state = first_half
    step = harness.stepper(tx)
    for number in range(4, 8):
        grads = harness.fake_grads(number, params)
        params, state = step(params, state, grads)
        restored = step(*restored, grads)
    harness.assert_trees_equal((params, state), restored)


@pytest.mark.parametrize("inner", ["adamw"])
def test_msgpack_round_trip(inner):
    tx = build("neurrev", inner)
    history = harness.run(tx, harness.net_params(), 4)
    blank = harness.start(tx, harness.net_params(seed=5))
    data = flax.serialization.to_bytes(history[-1])
    restored = flax.serialization.from_bytes(blank, data)
    harness.assert_trees_equal(restored, history[-1])
    continues(history[-1], jax.tree.map(jnp.asarray, restored), tx)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", every_method("neurrev", "rigl"))
def test_orbax_round_trip(method, tmp_path):
    tx = build(method, "adamw" if method == "neurrev" else "momentum")
    history = harness.run(tx, harness.net_params(), 4)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", history[-1])
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: history[0])
        restored = checkpointer.restore(tmp_path / "state", target)
    harness.assert_trees_equal(restored, history[-1])
    continues(history[-1], restored, tx)


def test_an_inner_optimizer_may_mix_leaves():
    """Updates are the inner optimizer's own, even where slots cross leaves."""

    def update(grads, trace, params=None):
        del params
        trace = jax.tree.map(lambda m, g: jnp.float32(0.5) * m + g, trace, grads)
        total = trace["a"]["kernel"] + trace["b"]["kernel"]
        move = jnp.float32(-0.125) * total
        return {"a": {"kernel": move}, "b": {"kernel": move}}, trace

    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)
    inner = optax.GradientTransformation(zeros, update)
    method = neurrev_jax.rigl(0.3, neurrev_jax.periodic(2))
    tx = neurrev_jax.sparse_transform(
        inner, method, sparsity=0.5, distribution=harness.even
    )
    rng = np.random.default_rng(0)
    draw = lambda: {"kernel": jnp.asarray(rng.normal(size=(6, 8)), jnp.float32)}
    params, state = harness.start(tx, {"a": draw(), "b": draw()})
    for number in (1, 2):
        grads = harness.fake_grads(number, params)
        masked = neurrev_jax.apply_masks(grads, state.masks)
        updates, _ = update(masked, state.inner_state)
        expected = harness.leaves(optax.apply_updates(params, updates))
        old = harness.leaves(state.masks)
        params, state = harness.stepper(tx)(params, state, grads)
        for path, new in harness.leaves(state.masks).items():
            kept = old[path] & new
            got = harness.leaves(params)[path]
            np.testing.assert_array_equal(got[kept], expected[path][kept])
