"""A finished run's directory: the network in it, its weights, examples of its data.

`python -m experiments.main --workdir=RUN` leaves in RUN/<method> the file
``network.msgpack``, which says what was trained and holds its weights, and in RUN
``examples.npz``, some of its data. Both are written at every checkpoint, so that a run
that is still training can be exported as well.

Shape letters: N examples, H and W pixels, C channels, K classes.
"""

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import serialization

from neurrev_jax import models
from tflite_export.errors import ExportError

_NETWORK, _EXAMPLES, _CONFIG = "network.msgpack", "examples.npz", "config.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a run has trained.

    Attributes:
      directory: of the method.
      description: what was trained on which data: classes, preprocessing and so on.
      network: the Flax module.
      params: the weights of a forward pass, zero where a weight is inactive.
      batch_stats: running statistics of batch norm.
      train_images: [N, H, W, C] uint8, some training images.
      test_images: [N, H, W, C] uint8, the test set or the beginning of it.
      test_labels: [N] int32.
    """

    directory: Path
    description: dict[str, Any]
    network: nn.Module
    params: Any
    batch_stats: Any
    train_images: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def apply(self, params: Any, images: jax.Array) -> jax.Array:
        """Classifies images.

        Args:
          params: like `params`.
          images: [N, H, W, C] float32, normalized.

        Returns:
          [N, K] logits.
        """
        variables = {"params": params, "batch_stats": self.batch_stats}
        logits: Any = self.network.apply(variables, images, train=False)
        return logits

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.description["input_shape"]
        return height, width, channels

    @property
    def has_whole_test_set(self) -> bool:
        """Whether the test images are all there are."""
        return len(self.test_labels) == self.description["training"]["test_examples"]

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """What the network sees of stored images.

        Args:
          images: [N, H, W, C] uint8.

        Returns:
          [N, H, W, C] float32.
        """
        rules = self.description["preprocessing"]
        mean = np.asarray(rules["mean"], np.float32)
        std = np.asarray(rules["std"], np.float32)
        return (images.astype(np.float32) - mean) / std

    def batches(self, images: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Normalized images in full batches.

        Args:
          images: [N, H, W, C] uint8.
          size: of a batch; what fills none at the end is left out.

        Yields:
          [size, H, W, C] float32.
        """
        for start in range(0, len(images) - size + 1, size):
            yield self.normalize(images[start : start + size])


def open_run(workdir: Path, method: str | None = None) -> Run:
    """Reads what a run has trained.

    Args:
      workdir: the directory given to ``experiments.main``, or that of a method in it.
      method: which method's network; the one that ``method.name`` of the run's config
        names by default.

    Returns:
      The run.

    Raises:
      ExportError: if there is no trained network, or a file is damaged.
    """
    directory = _directory(workdir, method)
    path = directory / _NETWORK
    try:
        contents: Any = serialization.msgpack_restore(path.read_bytes())
        description = json.loads(contents["description"])
        weights = contents["weights"]
        written_as = description["format"]
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}).") from error
    # Damage shows in as many ways as there are bytes.
    except Exception as error:
        raise ExportError(
            f"{path} is damaged ({error}); continue the run for another epoch, which "
            "writes it anew."
        ) from error
    if written_as != _FORMAT:
        raise ExportError(
            f"{path} has format {written_as}, and this version reads format {_FORMAT}; "
            "export it with the version of neurrev_jax that trained it."
        )
    network = _build(description["model"], path)
    examples = _read_examples(directory)
    return Run(
        directory=directory,
        description=description,
        network=network,
        params=weights["params"],
        batch_stats=weights["batch_stats"],
        **examples,
    )


def _directory(workdir: Path, method: str | None) -> Path:
    if not workdir.is_dir():
        raise ExportError(
            f"--workdir={workdir} is not a directory; give the --workdir of a run of "
            "experiments.main."
        )
    if (workdir / _NETWORK).exists():
        if method not in (None, workdir.name):
            raise ExportError(
                f"--workdir={workdir} is the directory of the method {workdir.name!r}, "
                f"not of {method!r}; give the directory above it."
            )
        return workdir
    trained = sorted(path.parent.name for path in workdir.glob(f"*/{_NETWORK}"))
    if not trained:
        raise ExportError(
            f"--workdir={workdir} holds no {_NETWORK}: no run has reached its first "
            "checkpoint there. Train with `python -m experiments.main "
            f"--workdir={workdir} --config=...` first."
        )
    if method is None:
        method = _main_method(workdir) or trained[0]
    if method not in trained:
        raise ExportError(
            f"--workdir={workdir} holds no network trained by {method!r}; there "
            f"{'are' if len(trained) > 1 else 'is'} {', '.join(map(repr, trained))}. "
            "Choose with --method."
        )
    return workdir / method


def _main_method(workdir: Path) -> str | None:
    try:
        config = json.loads((workdir / _CONFIG).read_text(encoding="utf-8"))
        return config["method"]["name"]
    except (OSError, ValueError, KeyError):
        return None


def _build(model: dict[str, Any], path: Path) -> nn.Module:
    network = getattr(models, model["class"], None)
    if network is None:
        raise ExportError(
            f"{path} holds a network {model['class']!r}, which neurrev_jax.models does "
            "not have; convert it with tflite_export.convert instead."
        )
    attributes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in model["attributes"].items()
    }
    # Phones compute in float32 or in float16 of their own; bfloat16 is for training.
    attributes["dtype"] = np.float32
    try:
        return network(**attributes)
    except TypeError as error:
        raise ExportError(
            f"{path} holds a network that this version cannot build ({error}); export "
            "it with the version of neurrev_jax that trained it."
        ) from error


def _read_examples(directory: Path) -> dict[str, np.ndarray]:
    for place in (directory, directory.parent):
        path = place / _EXAMPLES
        if path.exists():
            break
    else:
        raise ExportError(
            f"there is no {_EXAMPLES} in {directory} or above it, and without examples "
            "a model cannot be checked; give the command of the run once more, which "
            "writes the file."
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = ("train_images", "test_images", "test_labels")
            return {name: archive[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"{path} is damaged ({error}); delete it and give the command of the run "
            "once more, which writes it anew."
        ) from error
