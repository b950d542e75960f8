"""The trained network for others to use: `network.msgpack`, and `examples.npz`.

A checkpoint holds what training needs and looks different for every method. What an
exporter needs is the same for all: the weights of a forward pass, the running
statistics of batch norm, and what to build around them. `tflite_export.runs` reads
these files.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import serialization

from experiments.config import Config
from experiments.data.base import DataInfo
from experiments.methods import Arm
from experiments.training.feeds import Feed
from experiments.training.metrics import replace_atomically
from experiments.training.state import TrainState

NETWORK = "network.msgpack"
EXAMPLES = "examples.npz"
_FORMAT = 1
# Of the training set for scales of 8-bit numbers, of the test set for accuracy.
_TRAIN_EXAMPLES = 256
_BYTES = 32 * 2**20

# What a network needs in training only, or by itself.
_NOT_OF_THE_NETWORK = ("parent", "name", "axis_name", "convolution", "frozen_blocks")


@dataclasses.dataclass(frozen=True)
class NetworkFile:
    """Writes what a method has trained so far.

    Attributes:
      path: of the file.
      config: the method's config.
      info: facts about the data.
      model: the network.
      arm: the method.
    """

    path: Path
    config: Config
    info: DataInfo
    model: nn.Module
    arm: Arm

    def write(self, state: TrainState) -> None:
        """Replaces the file as a whole or not at all.

        Args:
          state: of NumPy arrays.
        """
        params = self.arm.effective_params(state.params, state.opt_state)
        weights = {"params": params, "batch_stats": state.batch_stats}
        contents = {
            "description": json.dumps(self._describe(state)),
            "weights": jax.tree.map(np.asarray, weights),
        }
        replace_atomically(self.path, serialization.msgpack_serialize(contents))

    def _describe(self, state: TrainState) -> dict[str, Any]:
        info = self.info
        summary = self.arm.summarize(state.params, state.opt_state)
        numbered = map(str, range(info.num_classes))
        return {
            "format": _FORMAT,
            "model": {
                "class": type(self.model).__name__,
                "attributes": _attributes(self.model),
            },
            "input_shape": list(info.image_shape),
            "classes": list(info.class_names or numbered),
            "preprocessing": {
                "crop": info.crop,
                "mean": list(info.mean),
                "std": list(info.std),
                "formula": "(pixel - mean) / std for each channel of stored pixels",
            },
            "training": {
                "data": info.name,
                "method": self.arm.name,
                "sparsity": summary.total.sparsity,
                "seed": self.config.seed,
                "step": int(state.step),
                "test_examples": info.test_examples,
            },
        }


def _attributes(model: nn.Module) -> dict[str, Any]:
    fields = {}
    for field in dataclasses.fields(model):
        if field.name in _NOT_OF_THE_NETWORK or not field.init:
            continue
        value = getattr(model, field.name)
        if field.name == "dtype":
            value = np.dtype(value).name
        fields[field.name] = list(value) if isinstance(value, tuple) else value
    return fields


def read_examples(feed: Feed) -> dict[str, np.ndarray]:
    """Examples as they are stored, for whoever converts or checks the network.

    To be called by all processes together; each gets its own.

    Args:
      feed: the data.

    Returns:
      ``train_images``, a few hundred at most, ``test_images`` and ``test_labels``, the
      test set or as much of it as a small file holds.
    """
    train, _ = _head(feed.observed(), _TRAIN_EXAMPLES, _BYTES // 4)
    test, labels = _head(feed.test(), None, _BYTES)
    return {"train_images": train, "test_images": test, "test_labels": labels}


def write_examples(path: Path, examples: dict[str, np.ndarray]) -> None:
    """Replaces the file as a whole or not at all.

    Args:
      path: of the file.
      examples: from `read_examples`.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **examples)  # pyright: ignore[reportArgumentType]  (its stub has a flag among the names)
    temporary.replace(path)


def _head(batches: Any, most: int | None, bytes_: int) -> tuple[np.ndarray, np.ndarray]:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    count = 0
    for batch in batches:
        x, y, include = (_on_host(part) for part in batch)
        images.append(x[include])
        labels.append(y[include])
        count += len(labels[-1])
        limit = bytes_ // max(1, int(np.prod(x.shape[1:])))
        limit = limit if most is None else min(limit, most)
        if count >= limit:
            return np.concatenate(images)[:limit], np.concatenate(labels)[:limit]
    return np.concatenate(images), np.concatenate(labels)


def _on_host(array: Any) -> np.ndarray:
    """[D, S, B, ...] on the local devices to [S D B, ...], in the order of the data."""
    shards = [np.asarray(shard.data)[0] for shard in array.addressable_shards]
    stacked = np.stack(shards, axis=1)
    return stacked.reshape(-1, *stacked.shape[3:])
