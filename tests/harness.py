"""A small network and the drivers that the tests of the transformation share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import neurrev_jax

# Kernels of three different shapes, so that a slot is told by its shape alone.
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "norm": {"scale": (4,), "bias": (4,)},
    "deep": {"kernel": (3, 3, 4, 6)},
    "head": {"kernel": (6, 5), "bias": (5,)},
}
KERNELS = ("conv/kernel", "deep/kernel", "head/kernel")


def even(shapes, sparsity):
    """A distribution that leaves no kernel of the small network dense."""
    return dict.fromkeys(shapes, sparsity)


def net_params(seed=0, dtype=jnp.float32):
    """Parameters of the small network; no entry is zero."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape) * 0.5 + 1e-3, dtype)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def net_loss(params, images, labels):
    """Conv, batch norm, ReLU, conv, mean, dense: mean cross-entropy."""
    conv = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    row = lambda vector: vector[None, None, None, :]
    x = conv(images, params["conv"]["kernel"]) + row(params["conv"]["bias"])
    mean = x.mean((0, 1, 2), keepdims=True)
    variance = x.var((0, 1, 2), keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
    x = jax.nn.relu(x * row(params["norm"]["scale"]) + row(params["norm"]["bias"]))
    x = jax.nn.relu(conv(x, params["deep"]["kernel"])).mean((1, 2))
    logits = x @ params["head"]["kernel"] + params["head"]["bias"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batch(step, size=8):
    """A batch of fake data that depends on the step."""
    rng = np.random.default_rng(1000 + step)
    images = jnp.asarray(rng.normal(size=(size, 6, 6, 2)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 5, size=size), jnp.int32)


def gradients(params, state, images, labels):
    """Gradients as training takes them, through the effective parameters."""
    effective = lambda p: neurrev_jax.effective_params(p, state)
    return jax.grad(lambda p: net_loss(effective(p), images, labels))(params)


net_grads = jax.jit(gradients)


def fake_grads(step, params):
    """Random gradients of the tree's shapes and dtypes; cheap and deterministic."""
    rng = np.random.default_rng(2000 + step)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params
    )


@functools.cache
def stepper(tx):
    """The jitted training step; the same one for the same transformation."""
    return counted_stepper(tx, [])


def counted_stepper(tx, traces):
    """A jitted training step; `traces` collects one entry per compilation."""

    @jax.jit
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def start(tx, params):
    """Masked parameters and the first state."""
    state = tx.init(params)
    return neurrev_jax.sparsify(params, state), state


def run(tx, params, steps, grads=fake_grads):
    """Runs `steps` jitted steps; returns [(params, state), ...], the start first."""
    params, state = start(tx, params)
    step, history = stepper(tx), []
    history.append((params, state))
    for number in range(1, steps + 1):
        params, state = step(params, state, grads(number, params))
        history.append((params, state))
    return history


def leaves(tree):
    """Dict from path ('conv/kernel') to NumPy array."""
    name = lambda path: "/".join(
        str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))
        for entry in path
    )
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {name(path): np.asarray(leaf) for path, leaf in flat}


def counts(masks):
    """Dict from path to the number of active entries of each rewirable leaf."""
    return {p: int(m.sum()) for p, m in leaves(masks).items() if m.shape != ()}


def assert_masked(params, masks):
    """Every inactive parameter is exactly zero."""
    params = leaves(params)
    for path, mask in leaves(masks).items():
        if mask.shape != ():
            assert mask.shape == params[path].shape
            assert not params[path][~mask].astype(np.float32).any(), path


def count_slots(inner_state):
    """How many arrays of a kernel's shape the inner optimizer keeps."""
    kernels = {SHAPES[path.split("/")[0]]["kernel"] for path in KERNELS}
    return sum(np.shape(leaf) in kernels for leaf in jax.tree.leaves(inner_state))


def assert_slots_masked(inner_state, masks):
    """Every inner slot of a kernel's shape is zero on inactive entries.

    Slots are told by their shape, which is why the kernels differ in theirs.

    Returns:
      How many such slots there are.
    """
    by_shape = {m.shape: m for m in leaves(masks).values() if m.ndim > 1}
    found = 0
    for leaf in jax.tree.leaves(inner_state):
        mask = by_shape.get(np.shape(leaf))
        if mask is not None:
            found += 1
            assert not np.asarray(leaf)[~mask].astype(np.float32).any()
    return found


def assert_trees_equal(first, second):
    """Same structure, dtypes, shapes and bits."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def one_layer(tx, theta, grads=None, **method_state):
    """One call of `tx` on a single kernel [1, N].

    Args:
      tx: the transformation, its `masks=` given.
      theta: [N] weights.
      grads: [N], zeros by default.
      **method_state: fields of the method's state to set before the call.

    Returns:
      ([N] new weights, [N] new mask, new state).
    """
    lift = lambda values: {"kernel": jnp.asarray(values, jnp.float32).reshape(2, -1)}
    params = lift(theta)
    state = tx.init(params)
    if method_state:
        lifted = {name: lift(value) for name, value in method_state.items()}
        state = state._replace(method_state=state.method_state._replace(**lifted))
    grads = lift(np.zeros(len(theta)) if grads is None else grads)
    # Not compiled as a whole: one call is all there is.
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    mask = np.asarray(neurrev_jax.get_masks(state)["kernel"]).ravel()
    return np.asarray(params["kernel"]).ravel(), mask, state


def one_layer_by_key(tx, theta, grads=None, keys=20, **method_state):
    """`one_layer` under many keys at once, by vmap: [keys, N] masks."""
    lift = lambda values: {"kernel": jnp.asarray(values, jnp.float32).reshape(2, -1)}
    params = lift(theta)
    state = tx.init(params)
    if method_state:
        lifted = {name: lift(value) for name, value in method_state.items()}
        state = state._replace(method_state=state.method_state._replace(**lifted))
    grads = lift(np.zeros(len(theta)) if grads is None else grads)

    @jax.jit
    @jax.vmap
    def masks(key):
        return tx.update(grads, state._replace(key=key), params)[1].masks["kernel"]

    raw = jax.vmap(lambda seed: jax.random.key_data(jax.random.key(seed)))
    return np.asarray(masks(raw(jnp.arange(keys)))).reshape(keys, -1)


def one_layer_masks(active, size):
    """A mask tree for `one_layer`: the entries of `active` are on."""
    mask = np.zeros(size, bool)
    mask[list(active)] = True
    return {"kernel": jnp.asarray(mask.reshape(2, -1))}
