"""How many entries each layer gets: worked cases, whole networks, errors."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

SMALL = {"a/kernel": (3, 3, 1, 4), "b/kernel": (3, 3, 4, 8), "c/kernel": (8, 10)}


def densities(distribution, shapes, sparsity):
    """Density by path; a leaf that the distribution leaves out has density 1."""
    covered = distribution(shapes, sparsity)
    return {path: 1 - covered.get(path, 0.0) for path in shapes}


@pytest.mark.parametrize("distribution", [neurrev_jax.er(), neurrev_jax.erk()])
def test_leaves_of_one_axis_stay_dense_beside_kernels(distribution):
    shapes = {**SMALL, "norm/scale": (8,), "gain": ()}
    assert distribution(shapes, 0.8) == distribution(SMALL, 0.8)
    alone = distribution({"a": (30,), "b": (50,)}, 0.8)
    assert alone == pytest.approx({"a": 0.8, "b": 0.8})


def nested(shapes):
    """A parameter tree with these leaves."""
    tree = {}
    for path, shape in shapes.items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.ones(shape)
    return tree


def initial_counts(shapes, **options):
    """Active entries by path after init; dense leaves are missing."""
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), **options)
    return harness.counts(neurrev_jax.get_masks(tx.init(nested(shapes))))


# --- worked cases -------------------------------------------------------------


def test_erk_oracle_1():
    got = densities(neurrev_jax.erk(), SMALL, 0.8)
    expected = [0.533097, 0.109043, 0.392553]
    assert list(got.values()) == pytest.approx(expected, abs=1e-6)
    sizes = [math.prod(shape) for shape in SMALL.values()]
    assert np.dot(list(got.values()), sizes) == pytest.approx(82)
    assert initial_counts(SMALL, sparsity=0.8) == {
        "a/kernel": 20,
        "b/kernel": 32,
        "c/kernel": 32,
    }


def test_erk_oracle_1_with_dense_layers():
    got = densities(neurrev_jax.erk(), SMALL, 0.5)
    assert list(got.values()) == pytest.approx([1, 86 / 288, 1])
    counts = initial_counts(SMALL, sparsity=0.5)
    # Dense by the cap, not by exclusion: the mask is there and full.
    assert counts == {"a/kernel": 36, "b/kernel": 86, "c/kernel": 80}


def test_er_oracle_1():
    got = densities(neurrev_jax.er(), SMALL, 0.8)
    expected = [0.599415, 0.179825, 0.107895]
    assert list(got.values()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("sparsity", "dense", "epsilon", "conv1", "fc"),
    [
        (
            0.8,
            {f"stage1/block{b}/{c}/kernel" for b in (1, 2, 3) for c in ("c1", "c3")}
            | {"stage1/block1/projection/kernel", "stage2/block1/c1/kernel"},
            99.5617,
            0.8572,
            0.1482,
        ),
        (0.9, {"stage1/block1/c1/kernel"}, 48.7866, 0.4200, 0.0726),
    ],
)
def test_erk_oracle_2_resnet50(sparsity, dense, epsilon, conv1, fc):
    shapes = oracles.resnet50_shapes()
    assert len(shapes) == 54
    assert sum(map(math.prod, shapes.values())) == 25_502_912
    got = densities(neurrev_jax.erk(), shapes, sparsity)
    assert {path for path, d in got.items() if d == 1} == dense
    assert got["conv1/kernel"] == pytest.approx(conv1, abs=5e-5)
    assert got["fc/kernel"] == pytest.approx(fc, abs=5e-5)
    raw = sum(shapes["fc/kernel"]) / math.prod(shapes["fc/kernel"])
    assert got["fc/kernel"] / raw == pytest.approx(epsilon, abs=5e-5)


@pytest.mark.parametrize(
    ("network", "classes", "sparsity", "dense"),
    [
        ("resnet32", 10, 0.90, {"conv1", "stage2/block1/shortcut", "fc"}),
        ("resnet32", 10, 0.95, {"fc"}),
        ("resnet32", 10, 0.98, set()),
        ("resnet32", 100, 0.90, {"conv1", "stage2/block1/shortcut"}),
        ("resnet32", 100, 0.95, set()),
        ("resnet32", 100, 0.98, set()),
        ("vgg19", 10, 0.90, {"conv0", "fc"}),
        ("vgg19", 10, 0.95, {"conv0", "fc"}),
        ("vgg19", 10, 0.98, {"conv0", "fc"}),
        ("vgg19", 100, 0.90, {"conv0", "fc"}),
        ("vgg19", 100, 0.95, {"conv0", "fc"}),
        ("vgg19", 100, 0.98, {"conv0"}),
    ],
)
def test_erk_oracle_3_cifar_networks(network, classes, sparsity, dense):
    shapes = getattr(oracles, f"{network}_shapes")(classes)
    assert len(shapes) == {"resnet32": 34, "vgg19": 17}[network]
    got = densities(neurrev_jax.erk(), shapes, sparsity)
    assert {p.removesuffix("/kernel") for p, d in got.items() if d == 1} == dense


@pytest.mark.parametrize("name", ["er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.98])
def test_erdos_renyi_equals_the_oracle_on_resnet32(name, sparsity):
    shapes = oracles.resnet32_shapes(10)
    assert sum(map(math.prod, shapes.values())) == 1_855_584
    expected, _ = oracles.erdos_renyi(shapes, sparsity, kernel=name == "erk")
    got = densities(getattr(neurrev_jax, name)(), shapes, sparsity)
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("sparsity", "literal", "mest"),
    [(0.90, 10.10, 10.60), (0.95, 5.11, 5.63), (0.98, 2.11, 2.65)],
)
def test_uniform_densities_of_resnet32(sparsity, literal, mest):
    """Section 1: shortcuts masked (NeurRev) or dense (MEST), over all kernels."""
    shapes = oracles.resnet32_shapes(10)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = sum(sizes.values())

    def percent(distribution):
        got = densities(distribution, shapes, sparsity)
        return 100 * sum(got[path] * sizes[path] for path in shapes) / total

    # The published figures count a dense classifier only in MEST's profile.
    excluded = neurrev_jax.uniform(exclude=("*shortcut*",))
    covered = excluded(shapes, sparsity)
    assert len(covered) == 30 and sum(sizes[p] for p in covered) == 1_843_200
    assert percent(excluded) == pytest.approx(mest, abs=0.006)
    assert percent(neurrev_jax.uniform()) == pytest.approx(literal, abs=0.1)


# --- uniform's rules ----------------------------------------------------------


def test_uniform_leaves_the_first_convolution_and_the_classifier_dense():
    counts = initial_counts(SMALL, sparsity=0.75, distribution="uniform")
    assert counts == {"b/kernel": 72}


def test_uniform_with_options():
    uniform = neurrev_jax.uniform
    covered = lambda **options: set(uniform(**options)(SMALL, 0.5))
    assert covered(classifier=True) == {"b/kernel", "c/kernel"}
    assert covered(first=False) == {"a/kernel", "b/kernel"}
    assert covered(first="b*") == {"a/kernel"}
    assert covered(exclude=("b*",)) == set()


def test_uniform_without_convolutions_covers_everything():
    shapes = {"x/kernel": (8, 6), "y/kernel": (6, 3)}
    counts = initial_counts(shapes, sparsity=0.5, distribution="uniform")
    assert counts == {"x/kernel": 24, "y/kernel": 9}


def test_uniform_vgg19_masks_all_but_the_first_convolution():
    shapes = oracles.vgg19_shapes(10)
    covered = neurrev_jax.uniform()(shapes, 0.9)
    assert set(covered) == {f"conv{i}/kernel" for i in range(1, 16)}
    assert set(covered.values()) == {0.9}


DEPTHWISE = {
    "stem/kernel": (3, 3, 3, 8),
    "depthwise_1/kernel": (3, 3, 1, 8),
    "grouped/kernel": (3, 3, 2, 8),
    "pointwise/kernel": (1, 1, 8, 16),
}


def test_depthwise_is_recognized_by_name_and_stays_dense():
    shapes = {**DEPTHWISE, "grouped/kernel": (3, 3, 4, 8)}
    assert set(neurrev_jax.erk()(shapes, 0.5)) == set(shapes) - {"depthwise_1/kernel"}
    assert set(neurrev_jax.er()(shapes, 0.5)) == set(shapes) - {"depthwise_1/kernel"}
    assert set(neurrev_jax.uniform()(shapes, 0.5)) == {
        "grouped/kernel",
        "pointwise/kernel",
    }
    renamed = {p.replace("depthwise", "plain"): s for p, s in shapes.items()}
    assert "plain_1/kernel" in neurrev_jax.erk()(renamed, 0.5)
    # By shape the renamed one would be the first convolution: one input channel.
    assert "stem/kernel" in neurrev_jax.uniform()(renamed, 0.5)


def test_depthwise_pattern_can_be_changed():
    erk = neurrev_jax.erk(depthwise="grouped*")
    assert set(erk(DEPTHWISE, 0.5)) == set(DEPTHWISE) - {"grouped/kernel"}


def test_uniform_asks_for_first_where_it_is_not_unique():
    shapes = {"left/kernel": (3, 3, 3, 8), "right/kernel": (5, 5, 3, 8)}
    with pytest.raises(ValueError, match="first="):
        neurrev_jax.uniform()(shapes, 0.5)
    chosen = neurrev_jax.uniform(first="left/*")(shapes, 0.5)
    assert set(chosen) == {"right/kernel"}


def test_layout_says_where_the_channels_stand():
    oihw = {"in/weight": (16, 3, 3, 3), "next/weight": (2, 16, 3, 3)}
    hwio = {"in/weight": (3, 3, 3, 16), "next/weight": (3, 3, 16, 2)}
    for name in ("uniform", "er", "erk"):
        build = getattr(neurrev_jax, name)
        assert build(layout="OIHW")(oihw, 0.7) == pytest.approx(build()(hwio, 0.7))
    assert neurrev_jax.er()(oihw, 0.7) != pytest.approx(neurrev_jax.er()(hwio, 0.7))
    assert set(neurrev_jax.uniform(layout="OIHW")(oihw, 0.7)) == {"next/weight"}


def test_exclude_leaves_dense_and_out_of_the_budget():
    shapes = oracles.resnet32_shapes(10)
    rest = {p: s for p, s in shapes.items() if "shortcut" not in p}
    got = neurrev_jax.erk(exclude=("*shortcut*",))(shapes, 0.9)
    assert got == pytest.approx(neurrev_jax.erk()(rest, 0.9))


# --- by pattern, by function --------------------------------------------------


def test_sparsity_by_pattern_first_match_wins():
    counts = initial_counts(
        SMALL, sparsity={"a/*": 0.5, "a/kernel": 0.9, "*": 0.8}, distribution="erk"
    )
    rest = {p: s for p, s in SMALL.items() if p != "a/kernel"}
    expected, _ = oracles.erdos_renyi(rest, 0.8, kernel=True)
    assert counts["a/kernel"] == 18
    for path, shape in rest.items():
        size = math.prod(shape)
        assert counts[path] == oracles.initial_count(size, 1 - expected[path])


def test_sparsity_by_pattern_leaves_the_unmatched_dense():
    assert initial_counts(SMALL, sparsity={"b/*": 0.5}) == {"b/kernel": 144}


def test_uniform_keeps_the_networks_first_convolution_when_it_is_fixed():
    counts = initial_counts(
        SMALL, sparsity={"a/*": 0.5, "*": 0.75}, distribution="uniform"
    )
    assert counts == {"a/kernel": 18, "b/kernel": 72}


def test_distribution_by_pattern():
    counts = initial_counts(SMALL, distribution={"b/*": 0.5, "*/kernel": 0.25})
    assert counts == {"a/kernel": 27, "b/kernel": 144, "c/kernel": 60}
    assert initial_counts(SMALL, distribution={"c/*": 0.5}) == {"c/kernel": 40}


def test_distribution_by_function():
    def of_shapes(shapes):
        return {
            path: 1 / len(shape) for path, shape in shapes.items() if "a" not in path
        }

    counts = initial_counts(SMALL, distribution=of_shapes)
    assert counts == {"b/kernel": 216, "c/kernel": 40}

    def of_both(shapes, sparsity):
        return dict.fromkeys(shapes, sparsity / 2)

    counts = initial_counts(SMALL, sparsity=0.5, distribution=of_both)
    assert counts == {"a/kernel": 27, "b/kernel": 216, "c/kernel": 60}


def test_counts_round_the_zeros_down():
    shapes = {"a/kernel": (7, 3)}
    for sparsity in (0.1, 0.5, 0.9, 0.99):
        counts = initial_counts(shapes, sparsity=sparsity, distribution="uniform")
        assert counts["a/kernel"] == oracles.initial_count(21, sparsity)


# --- errors -------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [float("nan"), 1.0, 1.5, -0.1, float("inf")])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_sparsity_outside_its_range(sparsity, distribution):
    with pytest.raises(ValueError, match=str(sparsity)):
        initial_counts(SMALL, sparsity=sparsity, distribution=distribution)


def test_sparsity_outside_its_range_by_pattern():
    with pytest.raises(ValueError, match=r"1\.0"):
        initial_counts(SMALL, sparsity={"a/*": 1.0, "*": 0.9})
    with pytest.raises(ValueError, match=r"-0\.5"):
        initial_counts(SMALL, distribution={"a/*": -0.5})
    with pytest.raises(ValueError, match="2"):
        initial_counts(SMALL, distribution=lambda shapes: dict.fromkeys(shapes, 2.0))


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"distribution": "ekr"}, "'ekr'"),
        ({"distribution": 3}, "3"),
        ({"distribution": {"nowhere/*": 0.5}}, "nowhere"),
        ({"distribution": lambda shapes: {"nowhere": 0.5}}, "nowhere"),
        ({"sparsity": {"nowhere/*": 0.5, "*": 0.9}}, "nowhere"),
        ({"distribution": neurrev_jax.erk(exclude=("nowhere",))}, "nowhere"),
        ({"distribution": neurrev_jax.uniform(first="nowhere")}, "nowhere"),
    ],
)
def test_what_does_not_exist_is_an_error(options, fragment):
    with pytest.raises(ValueError, match=fragment):
        initial_counts(SMALL, **options)


def test_unknown_layout():
    with pytest.raises(ValueError, match="HW"):
        neurrev_jax.er(layout="HW")


def test_tree_without_a_sparsifiable_leaf():
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1))
    with pytest.raises(ValueError, match="where"):
        tx.init({"bias": jnp.ones(4), "scale": jnp.ones(())})


# --- invariants ---------------------------------------------------------------

dims = st.integers(1, 24)
shapes_of_layers = st.lists(
    st.one_of(
        st.tuples(dims, dims),
        st.tuples(st.integers(1, 5), st.integers(1, 5), dims, dims),
    ),
    min_size=1,
    max_size=6,
)


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    layers=shapes_of_layers,
    sparsity=st.floats(0, 0.999),
    kernel=st.booleans(),
)
def test_erdos_renyi_spends_the_budget_and_respects_the_cap(layers, sparsity, kernel):
    shapes = {f"l{i}/kernel": shape for i, shape in enumerate(layers)}
    got = densities(neurrev_jax.erk() if kernel else neurrev_jax.er(), shapes, sparsity)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    assert all(0 <= d <= 1 + 1e-12 for d in got.values())
    spent = sum(got[path] * sizes[path] for path in shapes)
    budget = sum(n - math.floor(sparsity * n) for n in sizes.values())
    assert spent == pytest.approx(budget, rel=1e-9)
    raw = lambda shape: (
        sum(shape if kernel else shape[-2:])
        / math.prod(shape if kernel else shape[-2:])
    )
    order = sorted(shapes, key=lambda path: raw(shapes[path]))
    for low, high in itertools.pairwise(order):
        assert got[low] <= got[high] + 1e-12, "a larger raw score got less"
    expected, _ = oracles.erdos_renyi(shapes, sparsity, kernel)
    assert got == pytest.approx(expected, rel=1e-9)


@hypothesis.given(
    layers=shapes_of_layers, low=st.floats(0, 0.99), high=st.floats(0, 0.99)
)
def test_more_sparsity_means_no_more_active_entries(layers, low, high):
    low, high = sorted((low, high))
    shapes = {f"l{i}/kernel": shape for i, shape in enumerate(layers)}
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}

    def total(sparsity):
        covered = neurrev_jax.erk()(shapes, sparsity)
        return sum(oracles.initial_count(sizes[p], s) for p, s in covered.items())

    # Rounding may move each layer by one entry.
    assert total(high) <= total(low) + len(layers)


def test_masks_have_exactly_the_counts_and_no_pattern():
    shapes = {"a/kernel": (40, 30), "b/kernel": (30, 20)}
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=0.7, key=3)
    masks = harness.leaves(neurrev_jax.get_masks(tx.init(nested(shapes))))
    counts = initial_counts(shapes, sparsity=0.7, key=3)
    rows = masks["a/kernel"].sum(1)
    assert masks["a/kernel"].sum() == counts["a/kernel"]
    assert rows.std() > 0.5 and rows.min() >= 1, "the rows look arranged"
    assert jax.tree.all(jax.tree.map(lambda m: m.dtype == bool, masks))
