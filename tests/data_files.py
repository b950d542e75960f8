"""TFDS directories like the real ones, small, written into a temporary directory."""

import importlib.util
import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments.config import default_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
REAL = pathlib.Path(
    os.environ.get("NEURREV_TEST_DATA") or ROOT.parent / "shared" / "data" / "tfds"
)

# Found without being imported, which takes seconds.
NEEDS_TENSORFLOW = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None,
    reason="TensorFlow Datasets is not installed",
)


def needs_real(name):
    """Skips a test where the real data set is not at hand."""
    return pytest.mark.skipif(not (REAL / name).is_dir(), reason=f"no {name}")


def data_config(**fields):
    """A config's data section with some fields changed."""
    data = default_config().data
    data.update(fields)
    return data


def picture(seed, width=50, height=40, mode="RGB", form="JPEG"):
    """The bytes of an image with large and small structure."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.convert(mode).save(file, form, **({"quality": 90} if form == "JPEG" else {}))
    return file.getvalue()


def write_tfds(root, name, features, splits, *, version="1.0.0", per_file=10):
    """Writes a data set as TFDS does.

    Args:
      root: where data sets lie.
      name: of the data set.
      features: a TFDS FeaturesDict.
      splits: for each split the examples, encoded images as bytes.
      version: of the data set.
      per_file: examples of each file.

    Returns:
      The directory of the version.
    """
    import tensorflow_datasets as tfds

    directory = pathlib.Path(root, name, version)
    directory.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version(version),
        data_dir=str(directory),
        module_name="tests",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=per_file)
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        readable = [
            {k: io.BytesIO(v) if isinstance(v, bytes) else v for k, v in e.items()}
            for e in examples
        ]
        writer.add_examples({split: readable})
    writer.close_all()
    return directory


def imagenet_features(classes=1000, shape=(None, None, 3)):
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=classes),
            "file_name": tfds.features.Text(),
        }
    )


def imagenet_examples(encoded):
    """Examples whose label is their number, so that each can be told apart."""
    return [
        {"image": image, "label": i, "file_name": f"{i}.jpeg"}
        for i, image in enumerate(encoded)
    ]
