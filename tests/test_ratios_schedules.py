"""When an update happens and how much it changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neurrev_jax


def fired(schedule, calls):
    """The 1-based calls, up to `calls`, at which the schedule fires."""
    flags = jax.jit(jax.vmap(schedule))(jnp.arange(1, calls + 1, dtype=jnp.int32))
    assert flags.dtype == bool
    return (np.flatnonzero(flags) + 1).tolist()


def test_periodic_fires_every_so_many_calls():
    assert fired(neurrev_jax.periodic(3), 10) == [3, 6, 9]


def test_periodic_every_call():
    assert fired(neurrev_jax.periodic(1), 4) == [1, 2, 3, 4]


def test_periodic_includes_its_end():
    assert fired(neurrev_jax.periodic(3, until=6), 12) == [3, 6]
    assert fired(neurrev_jax.periodic(3, until=5), 12) == [3]


def test_periodic_counts_from_its_start():
    assert fired(neurrev_jax.periodic(3, until=11, start=2), 20) == [5, 8, 11]


def test_periodic_with_its_end_before_its_start_never_fires():
    assert fired(neurrev_jax.periodic(2, until=4, start=4), 20) == []


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [3, 6, 9, 11, 15, 19]),  # stages 0 to 7, 7 to 11 and 11 on
        (1, [4, 7, 9, 11, 15, 19]),  # counted from 1 until 7, from 7 on as ever
        (8, [10, 15, 19]),  # past the first boundary
        (16, [20]),
    ],
)
def test_staged_counts_from_its_start(start, expected):
    schedule = neurrev_jax.staged([3, 2, 4], [7, 11], until=21, start=start)
    assert fired(schedule, 30) == expected
    assert schedule.number_of_updates(30) == len(expected)
    assert schedule.last_update() == expected[-1]


def test_staged_with_all_of_its_stages_before_its_start_never_fires():
    schedule = neurrev_jax.staged([3, 2], [7], until=20, start=20)
    assert fired(schedule, 30) == []
    assert schedule.last_update() == 0
    with pytest.raises(ValueError, match="start=-1"):
        neurrev_jax.staged([3, 2], [7], start=-1)


@pytest.mark.parametrize(
    ("every", "until", "updates"),
    [
        (100, 160 * 780, 1248),  # Top-KAST
        (100, 120 * 780, 936),  # RigL
        (780, 160 * 780, 160),  # SET
        (5 * 780, 130 * 780, 26),  # NeurRev
        (10 * 780, 130 * 780, 13),  # NeurRev
        (5 * 780, 120 * 780, 24),  # NeurRev, Table A.1, CIFAR
        (3 * 1251, 75 * 1251, 25),  # NeurRev, Table A.1, ImageNet
    ],
)
def test_update_counts_of_figure_4(every, until, updates):
    schedule = neurrev_jax.periodic(every, until=until)
    assert len(fired(schedule, 160 * 1251)) == updates


@pytest.mark.parametrize("every", [0, -1])
def test_periodic_needs_a_positive_interval(every):
    with pytest.raises(ValueError, match=str(every)):
        neurrev_jax.periodic(every)


def at(ratio, t):
    value = jax.jit(ratio)(jnp.int32(t))
    assert value.dtype == jnp.float32 and value.shape == ()
    return float(value)


def test_constant():
    ratio = neurrev_jax.constant(0.2)
    assert at(ratio, 1) == at(ratio, 10**6) == np.float32(0.2)


def test_cosine_of_rigl():
    ratio = neurrev_jax.cosine(0.3, until=1000)
    assert at(ratio, 0) == pytest.approx(0.3, abs=1e-7)
    assert at(ratio, 250) == pytest.approx(0.15 * (1 + np.cos(np.pi / 4)), abs=1e-6)
    assert at(ratio, 500) == pytest.approx(0.15, abs=1e-7)
    assert at(ratio, 1000) == pytest.approx(0.0, abs=1e-7)
    assert at(ratio, 5000) == at(ratio, 1000)


def test_cosine_ends_at_its_final_value():
    ratio = neurrev_jax.cosine(0.5, until=100, final=0.005)
    assert at(ratio, 0) == pytest.approx(0.5)
    assert at(ratio, 100) == pytest.approx(0.005)
    assert at(ratio, 101) == pytest.approx(0.005)
    values = [at(ratio, t) for t in range(0, 101, 10)]
    assert values == sorted(values, reverse=True) and min(values) >= np.float32(0.005)


def test_cubic_of_granet():
    ratio = neurrev_jax.cubic(0.5, 0.9, begin=100, until=300)
    assert at(ratio, 1) == at(ratio, 100) == pytest.approx(0.5)
    assert at(ratio, 200) == pytest.approx(0.85)  # GraNet's oracle
    assert at(ratio, 150) == pytest.approx(0.9 - 0.4 * 0.75**3)
    assert at(ratio, 300) == at(ratio, 10**6) == pytest.approx(0.9)


def test_piecewise():
    ratio = neurrev_jax.piecewise([0.02, 0.01, 0.0], [90, 120])
    assert [at(ratio, t) for t in (1, 89)] == [np.float32(0.02)] * 2
    assert [at(ratio, t) for t in (90, 119)] == [np.float32(0.01)] * 2
    assert [at(ratio, t) for t in (120, 9999)] == [0.0] * 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: neurrev_jax.constant(1.5),
        lambda: neurrev_jax.constant(-0.1),
        lambda: neurrev_jax.constant(float("nan")),
        lambda: neurrev_jax.cosine(1.5, until=10),
        lambda: neurrev_jax.cosine(0.3, until=0),
        lambda: neurrev_jax.cubic(0.5, 0.9, begin=10, until=10),
        lambda: neurrev_jax.piecewise([0.1, 0.2], [5, 9]),
        lambda: neurrev_jax.piecewise([0.1, 0.2, 0.3], [9, 5]),
    ],
    ids=lambda f: None,
)
def test_ratios_refuse_what_makes_no_sense(build):
    with pytest.raises(ValueError, match=r"\d|nan"):
        build()
