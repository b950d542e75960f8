"""Images made up on the spot, for trying an experiment without its data.

Every class has a pattern of its own, the same in training and test set, under noise
that differs from image to image. Shape letters: N examples, H and W pixels, C channels,
K classes, G cells of a pattern along each side.
"""

from typing import Any

import numpy as np

from experiments.data import statistics
from experiments.data.base import NUM_CLASSES, DataInfo, InMemory, Split
from experiments.errors import UsageError

# The images are part of the data set, not of the run: seeds are comparable.
_SEED = 0
# A pattern coarse enough to survive that crops move it by a few pixels.
_CELLS = 4
_DARKEST, _BRIGHTEST = 64, 192
_NOISE = 32.0  # standard deviation, in pixel values
_SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32, "imagenet2012": 224}
_CHUNK = 64  # images that are floating point numbers at a time


def load(data: Any) -> InMemory:
    """Makes a data set of the form of a real one.

    Args:
      data: the config's ``data`` section, of which it reads the name, how many
        examples to make and, if set, the image size.

    Returns:
      The data set, always the same for the same fields; the first examples are the
      same whatever their number. Classes are equally frequent.

    Raises:
      UsageError: if there would be no examples.
    """
    for field in ("generated_train", "generated_test"):
        if data[field] < 1:
            raise UsageError(
                f"data.{field}={data[field]} must be at least 1, or there is nothing "
                "to see; raise it."
            )
    classes = NUM_CLASSES[data.name]
    side = data.image_size or _SIDES[data.name]
    shape = (side, side, 1 if data.name == "digits" else 3)
    patterns = np.random.default_rng((_SEED, 0)).uniform(
        _DARKEST, _BRIGHTEST, (classes, _CELLS, _CELLS, shape[-1])
    )
    train = _draw(patterns, data.generated_train, shape, (_SEED, 1))
    test = _draw(patterns, data.generated_test, shape, (_SEED, 2))
    mean, std = statistics.of_images(data.name, train.images)
    info = DataInfo(
        name=data.name,
        num_classes=classes,
        image_shape=shape,
        train_examples=data.generated_train,
        test_examples=data.generated_test,
        mean=mean,
        std=std,
    )
    return InMemory(info, train, test)


def _draw(
    patterns: np.ndarray, n: int, shape: tuple[int, int, int], seed: tuple[int, int]
) -> Split:
    """N images of the given patterns, [K, G, G, C]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int32) % len(patterns)
    rows = np.arange(shape[0]) * _CELLS // shape[0]
    columns = np.arange(shape[1]) * _CELLS // shape[1]
    images = np.empty((n, *shape), np.uint8)
    for start in range(0, n, _CHUNK):
        chunk = labels[start : start + _CHUNK]
        clean = patterns[chunk][:, rows][:, :, columns]
        noisy = clean + _NOISE * rng.standard_normal(clean.shape, np.float32)
        images[start : start + _CHUNK] = np.clip(np.round(noisy), 0, 255)
    return Split(images, labels)
