"""Data of one's own, or converted by hand: two NumPy archives.

``data.dir`` holds train.npz and test.npz, each with ``images`` [N, H, W, C] uint8 and
``labels`` [N] of any integer type. No TensorFlow is needed to read them. To write one:
``numpy.savez("train.npz", images=images, labels=labels)``.
"""

import os
import zipfile
import zlib
from typing import Any

import numpy as np

from experiments.data import statistics
from experiments.data.base import NUM_CLASSES, DataInfo, InMemory, Split
from experiments.errors import UsageError

_LAYOUT = (
    "it has to be an archive written by numpy.savez, with images [N, H, W, C] uint8 "
    "and labels [N] of integers"
)


def load(data: Any) -> InMemory:
    """Reads train.npz and test.npz.

    Args:
      data: the config's ``data`` section, of which it reads the name and the
        directory. The images keep the size they have.

    Returns:
      The data set, normalized like the one of that name.

    Raises:
      UsageError: if a file is missing, damaged or of another form, if a label is not
        one of the data set's classes, or if images differ in shape.
    """
    if not data.dir:
        raise UsageError(
            "data.source='npz' reads train.npz and test.npz from the directory "
            "data.dir, which is not set; add --config.data.dir=DIR."
        )
    directory = os.path.expanduser(data.dir)
    classes = NUM_CLASSES[data.name]
    train_path, test_path = (
        os.path.join(directory, file) for file in ("train.npz", "test.npz")
    )
    train = _read(train_path, data.name, classes)
    test = _read(test_path, data.name, classes)
    shape = train.images.shape[1:]
    if test.images.shape[1:] != shape:
        raise UsageError(
            f"the images in {train_path} have the shape {shape} and those in "
            f"{test_path} {test.images.shape[1:]}; bring them to one shape."
        )
    mean, std = statistics.of_images(data.name, train.images)
    info = DataInfo(
        name=data.name,
        num_classes=classes,
        image_shape=shape,
        train_examples=len(train.labels),
        test_examples=len(test.labels),
        mean=mean,
        std=std,
    )
    return InMemory(info, train, test)


def _read(path: str, name: str, classes: int) -> Split:
    images, labels = _arrays(path)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise UsageError(
            f"images in {path} is {images.dtype} of shape {images.shape}; it must be "
            "uint8 of shape [N, H, W, C] without an axis of length 0. Gray images have "
            "C = 1."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UsageError(
            f"labels in {path} is {labels.dtype} of shape {labels.shape}; it must hold "
            f"integers, one for each of the {len(images)} images."
        )
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UsageError(
            f"label {at} in {path} is {labels[at]}; labels of {name} must lie in "
            f"[0, {classes})."
        )
    return Split(np.ascontiguousarray(images), labels.astype(np.int32))


def _arrays(path: str) -> list[np.ndarray]:
    try:
        with open(path, "rb") as file:
            # Before anything else: numpy.load also opens what is no archive.
            if not zipfile.is_zipfile(file):
                raise UsageError(f"{path} is damaged or no archive; {_LAYOUT}.")
            file.seek(0)
            # A pickle could run anything while it is read.
            with np.load(file, allow_pickle=False) as archive:
                for key in ("images", "labels"):
                    if key not in archive:
                        found = ", ".join(archive.files) or "nothing"
                        raise UsageError(
                            f"{path} has no array {key!r}, only {found}; {_LAYOUT}."
                        )
                return [archive["images"], archive["labels"]]
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no file {path}; {_LAYOUT}, or choose another "
            "--config.data.source."
        ) from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} cannot be read ({error}); {_LAYOUT}.") from error
