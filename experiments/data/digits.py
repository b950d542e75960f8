"""1,797 real handwritten digits of 8x8 pixels that ship with scikit-learn."""

from typing import Any

import numpy as np
from sklearn import datasets, model_selection

from experiments.data.base import DataInfo, InMemory, Split

# The split is part of the data set, not of the run: seeds are comparable.
_SPLIT_SEED = 0


def load(test_fraction: float) -> InMemory:
    """Reads the digits, divided with equal shares of every class.

    Args:
      test_fraction: part of the examples that form the test set.

    Returns:
      The data set; pixels lie in [0, 16].
    """
    images, labels = datasets.load_digits(return_X_y=True)
    parts: list[Any] = model_selection.train_test_split(
        images.astype(np.uint8).reshape(-1, 8, 8, 1),
        labels.astype(np.int32),
        test_size=test_fraction,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    train_x, test_x, train_y, test_y = parts
    info = DataInfo(
        name="digits",
        num_classes=10,
        image_shape=(8, 8, 1),
        train_examples=len(train_y),
        test_examples=len(test_y),
        mean=(float(train_x.mean()),),
        std=(float(train_x.std()),),
        class_names=tuple("0123456789"),
    )
    return InMemory(info, Split(train_x, train_y), Split(test_x, test_y))
