"""Data sets that fit into memory.

Shape letters: N examples, H and W pixels, C channels, D devices, S batches, B
examples of a batch on one device.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets, model_selection

from experiments.config import Config, close_match
from experiments.errors import UsageError

# The split is part of the data set, not of the run: seeds are comparable.
_SPLIT_SEED = 0


class Split(NamedTuple):
    """Examples and their classes.

    Attributes:
      images: [N, H, W, C] float32, standardized; on the host or on devices.
      labels: [N] int32.
    """

    images: Any
    labels: Any


class Dataset(NamedTuple):
    """A training and a test set.

    Attributes:
      train: for training; its first examples also measure dormant neurons.
      test: for evaluation only.
      num_classes: number of classes.
    """

    train: Split
    test: Split
    num_classes: int


class Batches(NamedTuple):
    """A split laid out for a scan on every device, padded to full batches.

    Attributes:
      images: [D, S, B, H, W, C] float32.
      labels: [D, S, B] int32.
      include: [D, S, B] bool, False for padding.
    """

    images: Any
    labels: Any
    include: Any


def load(config: Config) -> Dataset:
    """Reads the data set that the config's ``data`` section names.

    Args:
      config: the ``data`` section.

    Returns:
      The data set.

    Raises:
      UsageError: for an unknown name.
    """
    if config.name not in _LOADERS:
        raise UsageError(
            f"data.name: there is no data set {config.name!r}; "
            f"{close_match(config.name, _LOADERS)}"
        )
    return _LOADERS[config.name](config)


def _digits(config: Config) -> Dataset:
    """1,797 handwritten digits of 8x8 pixels that ship with scikit-learn."""
    images, labels = datasets.load_digits(return_X_y=True)
    parts: list[Any] = model_selection.train_test_split(
        images.astype(np.float32).reshape(-1, 8, 8, 1),
        labels.astype(np.int32),
        test_size=config.test_fraction,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    train_x, test_x, train_y, test_y = parts
    mean, std = train_x.mean(), train_x.std()
    return Dataset(
        train=Split((train_x - mean) / std, train_y),
        test=Split((test_x - mean) / std, test_y),
        num_classes=10,
    )


_LOADERS = {"digits": _digits}


def batches(split: Split, batch_size: int, devices: int) -> Batches:
    """Lays out every example exactly once.

    Args:
      split: N examples, any number of them.
      batch_size: examples of a batch over all devices; rounded up to a multiple of
        the devices and down to what N needs.
      devices: D.

    Returns:
      The examples with as much padding as the layout needs.
    """
    n = len(split.labels)
    per_device = -(-min(batch_size, n) // devices)
    steps = -(-n // (per_device * devices))
    missing = steps * per_device * devices - n

    def lay_out(x: np.ndarray) -> np.ndarray:
        padded = np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
        # Batch after batch, each cut into the devices' parts.
        cut = padded.reshape(steps, devices, per_device, *x.shape[1:])
        return np.ascontiguousarray(np.swapaxes(cut, 0, 1))

    return Batches(
        images=lay_out(split.images),
        labels=lay_out(split.labels),
        include=lay_out(np.ones(n, bool)),
    )


def random_shift(keys: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Translates each image by up to `pixels` in either direction.

    Args:
      keys: one key per image, so that the result does not depend on how a batch is
        divided over devices.
      images: [B, H, W, C].
      pixels: the largest shift; 0 returns the images as they are.

    Returns:
      [B, H, W, C], with zeros moved in.
    """
    if pixels == 0:
        return images

    def shift(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
        row, column = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)

    return jax.vmap(shift)(keys, images)
