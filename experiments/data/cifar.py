"""CIFAR-10 and CIFAR-100, read through TFDS once and then kept as arrays."""

from typing import Any

import numpy as np

from experiments.data import tfds_directory
from experiments.data.base import DataInfo, InMemory, Split
from experiments.data.statistics import STATISTICS


def load(name: str, configured: str | None) -> InMemory:
    """Reads a data set of the CIFAR form into memory.

    Args:
      name: "cifar10" or "cifar100".
      configured: the config's ``data.dir``.

    Returns:
      The data set.

    Raises:
      UsageError: if it is not there.
    """
    builder = tfds_directory.open_builder(name, configured, ("train", "test"))
    train, test = _read(builder, "train"), _read(builder, "test")
    mean, std = STATISTICS[name]
    info = DataInfo(
        name=name,
        num_classes=builder.info.features["label"].num_classes,
        image_shape=train.images.shape[1:],
        train_examples=len(train.labels),
        test_examples=len(test.labels),
        mean=mean,
        std=std,
        class_names=tuple(builder.info.features["label"].names),
    )
    return InMemory(info, train, test)


def _read(builder: Any, split: str) -> Split:
    _, tfds = tfds_directory.import_tensorflow()
    # Without shuffling the order is that of the files, the same every time.
    examples = tfds.as_numpy(
        builder.as_dataset(split=split, batch_size=-1, shuffle_files=False)
    )
    return Split(
        np.ascontiguousarray(examples["image"], np.uint8),
        examples["label"].astype(np.int32),
    )
