"""What the library should compute, in plain NumPy and as literally as possible.

Nothing here imports the library (or JAX): an oracle that shares code with what it
checks agrees with its mistakes.
"""

import math

import numpy as np

# --- selection ----------------------------------------------------------------


def order_keys(scores):
    """Float64 sort keys: the numbers themselves, NaN after everything."""
    values = np.asarray(scores).astype(np.float64)
    ranks = np.unique(values[~np.isnan(values)], return_inverse=True)[1]
    keys = np.full(values.shape, np.inf)
    keys[~np.isnan(values)] = ranks
    return keys


def check_selection(chosen, scores, candidates, k):
    """Asserts that `chosen` is one of the right answers of select."""
    chosen, candidates = np.asarray(chosen), np.asarray(candidates)
    assert chosen.dtype == bool and chosen.shape == candidates.shape
    assert not np.any(chosen & ~candidates), "chose an entry that is no candidate"
    expected = min(max(int(k), 0), int(candidates.sum()))
    assert int(chosen.sum()) == expected, (int(chosen.sum()), expected)
    keys = order_keys(scores)
    left = candidates & ~chosen
    if chosen.any() and left.any():
        assert keys[chosen].max() <= keys[left].min(), "left a lower score behind"


def lowest(scores, candidates, k):
    """The k candidates with the lowest scores, which must be distinct."""
    scores = np.asarray(scores)
    indices = np.flatnonzero(np.asarray(candidates).ravel())
    order = indices[np.argsort(scores.ravel()[indices], kind="stable")]
    chosen = np.zeros(scores.size, bool)
    chosen[order[: max(int(k), 0)]] = True
    return chosen.reshape(scores.shape)


def apportion_without_caps(total, weights):
    """Largest remainder; the remainders must be distinct where it matters."""
    shares = total * np.asarray(weights, np.float64) / np.sum(weights)
    counts = np.floor(shares).astype(int)
    for index in np.argsort(-(shares - counts), kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    return counts


# --- distributions ------------------------------------------------------------


def initial_count(size, sparsity):
    """Active entries of a layer: N - floor(s N)."""
    return size - math.floor(sparsity * size)


def update_count(ratio, count):
    """k = floor(float32(r) n), the product in float32."""
    return int(np.floor(np.float32(ratio) * np.float32(count)))


def erdos_renyi(shapes, sparsity, kernel):
    """ER (kernel=False) or ERK densities, and epsilon, by the iterative cap.

    Args:
      shapes: dict from path to HWIO shape.
      sparsity: the global target.
      kernel: whether the spatial dimensions enter the raw score.
    """
    raw = {}
    for path, shape in shapes.items():
        dims = shape if kernel else shape[-2:]
        raw[path] = sum(dims) / math.prod(dims)
    size = {path: math.prod(shape) for path, shape in shapes.items()}
    zeros = {path: math.floor(sparsity * size[path]) for path in shapes}
    dense, epsilon = set(), math.nan
    while len(dense) < len(shapes):
        rest = [path for path in shapes if path not in dense]
        budget = sum(size[p] - zeros[p] for p in rest) - sum(zeros[p] for p in dense)
        epsilon = budget / sum(raw[p] * size[p] for p in rest)
        top = max(raw[p] for p in rest)
        if epsilon * top <= 1:
            break
        dense |= {p for p in rest if raw[p] == top}
    density = {p: 1.0 if p in dense else epsilon * raw[p] for p in shapes}
    return density, epsilon


def resnet50_shapes():
    """The 54 kernels of ResNet-50 (HWIO), by path."""
    shapes = {"conv1/kernel": (7, 7, 3, 64)}
    channels = 64
    for stage, (width, blocks) in enumerate(
        [(64, 3), (128, 4), (256, 6), (512, 3)], start=1
    ):
        for block in range(1, blocks + 1):
            name = f"stage{stage}/block{block}"
            shapes[f"{name}/c1/kernel"] = (1, 1, channels, width)
            shapes[f"{name}/c2/kernel"] = (3, 3, width, width)
            shapes[f"{name}/c3/kernel"] = (1, 1, width, 4 * width)
            if block == 1:
                shapes[f"{name}/projection/kernel"] = (1, 1, channels, 4 * width)
            channels = 4 * width
    shapes["fc/kernel"] = (2048, 1000)
    return shapes


def resnet32_shapes(classes):
    """The 34 kernels of the double-width ResNet-32 of the CIFAR tables."""
    shapes = {"conv1/kernel": (3, 3, 3, 32)}
    channels = 32
    for stage, width in enumerate([32, 64, 128], start=1):
        for block in range(1, 6):
            name = f"stage{stage}/block{block}"
            shapes[f"{name}/c1/kernel"] = (3, 3, channels, width)
            shapes[f"{name}/c2/kernel"] = (3, 3, width, width)
            if channels != width:
                shapes[f"{name}/shortcut/kernel"] = (1, 1, channels, width)
            channels = width
    shapes["fc/kernel"] = (128, classes)
    return shapes


def vgg19_shapes(classes):
    """The 17 kernels of VGG-19 with one linear layer."""
    widths = [64, 64, 128, 128] + [256] * 4 + [512] * 8
    shapes, channels = {}, 3
    for index, width in enumerate(widths):
        shapes[f"conv{index}/kernel"] = (3, 3, channels, width)
        channels = width
    shapes["fc/kernel"] = (512, classes)
    return shapes


# --- topology updates ---------------------------------------------------------


def rank_lowest(keys, candidates, count):
    """Flat indices of the `count` candidates that come first under tuple keys."""
    order = sorted(np.flatnonzero(candidates), key=lambda i: tuple(k[i] for k in keys))
    return order[:count]


def neurrev_update(theta, reference, mask, new_mask, ratio):
    """Replays one NeurRev update of one layer, given the mask that came out of it.

    Growth is random, so the grown positions are read off `new_mask` and checked to
    be legal and right in number; everything else is computed here.

    Args:
      theta: float32 [N], the weights after the optimizer's step.
      reference: float32 [N], the weights after the previous update.
      mask: bool [N], before.
      new_mask: bool [N], after, as observed.
      ratio: update ratio, of the nonzero weights.

    Returns:
      (theta, reference, dropped, awakened): the new weights and reference and the
      flat indices that the two pruning steps removed.
    """
    size, active = mask.size, int(mask.sum())
    count = update_count(ratio, active)
    change = np.abs(theta - reference)
    magnitude = np.abs(theta)
    dropped = rank_lowest([magnitude], mask, count)
    survivors = mask.copy()
    survivors[dropped] = False
    negatives = survivors & (theta < 0)
    awake = min(count, int(negatives.sum()), size - active)
    awakened = rank_lowest([change, -magnitude], negatives, awake)
    kept = survivors.copy()
    kept[awakened] = False

    grown = new_mask & ~kept
    assert not np.any(kept & ~new_mask), "a weight that had to stay is gone"
    assert int(grown.sum()) == count + awake, "grew a wrong number of weights"
    assert not np.any(grown & survivors), "a weight was pruned and revived at once"
    # Dropped and regrown within the update: never away, so it keeps its value.
    theta = np.where(new_mask & mask, theta, np.float32(0))
    return theta, theta.copy(), dropped, awakened


def neurrev_run(theta, mask, gradients, masks_seen, *, every, ratio, rate, momentum):
    """A whole NeurRev run of one layer under SGD with momentum.

    `rate` and `momentum` must be powers of two, so that no multiplication rounds
    and fused arithmetic gives the same bits as this.

    Args:
      theta: float32 [N], already masked.
      mask: bool [N].
      gradients: float32 [T, N], dense.
      masks_seen: bool [T, N], the masks after each call, as observed.
      every: update interval in calls.
      ratio: update ratio.
      rate: learning rate.
      momentum: decay of the trace.

    Yields:
      (theta, mask, trace, reference) after each call.
    """
    trace, reference = np.zeros_like(theta), theta.copy()
    for call, (gradient, seen) in enumerate(
        zip(gradients, masks_seen, strict=True), start=1
    ):
        masked = np.where(mask, gradient, np.float32(0))
        trace = masked + np.float32(momentum) * trace
        theta = theta + np.float32(-rate) * trace
        if call % every == 0:
            theta, reference, _, _ = neurrev_update(theta, reference, mask, seen, ratio)
            trace = np.where(mask & seen, trace, np.float32(0))
            mask = seen.copy()
        yield theta, mask, trace, reference


def set_drop(theta, mask, ratio):
    """SET: of each sign, the share `ratio` closest to zero."""
    gone = []
    for sign in (1, -1):
        side = mask & (np.sign(theta) == sign)
        gone += rank_lowest([np.abs(theta)], side, update_count(ratio, side.sum()))
    return sorted(int(i) for i in gone)
