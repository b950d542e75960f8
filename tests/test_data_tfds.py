"""Finding TFDS directories, and CIFAR read from them."""

import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.data import cifar, load, tfds_directory
from experiments.errors import UsageError
from tests import data_files
from tests.data_files import data_config, picture

pytestmark = data_files.NEEDS_TENSORFLOW


def cifar_features(classes, *, coarse):
    """The features of CIFAR-10, or with ``coarse`` those of CIFAR-100."""
    _, tfds = tfds_directory.import_tensorflow()
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=classes),
    }
    if coarse:
        features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
    return tfds.features.FeaturesDict(features)


def cifar_examples(n, seed, classes, *, coarse):
    rng = np.random.default_rng(seed)
    examples = [
        {
            "id": f"{i}",
            "image": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
            "label": int(rng.integers(classes)),
        }
        for i in range(n)
    ]
    for example in examples if coarse else ():
        example["coarse_label"] = example["label"] // 5
    return examples


def write_cifar(root, name, n=(31, 12), **options):
    classes = {"cifar10": 10, "cifar100": 100}[name]
    coarse = name == "cifar100"
    splits = {
        split: cifar_examples(size, seed, classes, coarse=coarse)
        for seed, (split, size) in enumerate(zip(("train", "test"), n, strict=True))
    }
    features = cifar_features(classes, coarse=coarse)
    return data_files.write_tfds(root, name, features, splits, **options), splits


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_in_full_in_the_order_of_its_file(tmp_path, name, classes):
    _, splits = write_cifar(tmp_path, name, per_file=100)
    config = data_config(name=name, source="tfds", dir=str(tmp_path))
    info, train, test = load.load(config, 0, 1)
    assert (info.name, info.num_classes) == (name, classes)
    assert info.image_shape == (32, 32, 3)
    assert (info.train_examples, info.test_examples) == (31, 12)
    for got, examples in ((train, splits["train"]), (test, splits["test"])):
        assert (got.images.dtype, got.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(got.images, [x["image"] for x in examples])
        np.testing.assert_array_equal(got.labels, [x["label"] for x in examples])


def test_cifar_in_several_files_comes_in_the_same_order_every_time(tmp_path):
    _, splits = write_cifar(tmp_path, "cifar100", per_file=7)
    first, again = (cifar.load("cifar100", str(tmp_path)).train for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    expected = sorted((x["image"].tobytes(), x["label"]) for x in splits["train"])
    got = zip(first.images, first.labels.tolist(), strict=True)
    assert sorted((x.tobytes(), y) for x, y in got) == expected


def test_cifar_kept_as_jpeg_is_decoded(tmp_path):
    encoded = picture(0, width=32, height=32)
    examples = [{"id": "0", "image": encoded, "label": 3}]
    features = cifar_features(10, coarse=False)
    data_files.write_tfds(
        tmp_path, "cifar10", features, {"train": examples, "test": examples}
    )
    image = cifar.load("cifar10", str(tmp_path)).train.images[0]
    expected = np.asarray(Image.open(io.BytesIO(encoded)), int)
    # TensorFlow's fast decoder takes liberties.
    assert np.abs(image - expected).max() <= 8


@data_files.needs_real("cifar10")
def test_the_real_cifar10():
    info, train, test = cifar.load("cifar10", str(data_files.REAL))
    assert (info.train_examples, info.test_examples) == (50000, 5000)
    assert train.images.shape == (50000, 32, 32, 3) and test.labels.shape == (5000,)
    np.testing.assert_array_equal(np.bincount(train.labels), np.full(10, 5000))
    # The published statistics are those of these images, but for the decoder.
    mean = train.images.mean((0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(mean, info.mean, atol=1.5)


# Where data sets lie.


def test_the_config_comes_before_the_environment_and_that_before_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
    assert tfds_directory.data_dir("~/data") == "/home/someone/data"
    assert tfds_directory.data_dir("gs://bucket/tfds") == "gs://bucket/tfds"
    assert tfds_directory.data_dir(None) == "/from/environment"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert tfds_directory.data_dir(None) == "/home/someone/tensorflow_datasets"


def test_the_newest_version_is_taken(tmp_path):
    for n, version in ((3, "3.0.2"), (4, "10.0.0"), (5, "9.9.9")):
        write_cifar(tmp_path, "cifar10", n=(n, 1), version=version)
    # Begun and not finished, and something else: no versions.
    (tmp_path / "cifar10" / "11.0.0.incompleteABC").mkdir()
    (tmp_path / "cifar10" / "12.0.0").mkdir()
    assert cifar.load("cifar10", str(tmp_path)).info.train_examples == 4


# What is missing.


def message_of(name, directory, splits=("train", "test")):
    with pytest.raises(UsageError) as raised:
        tfds_directory.open_builder(name, str(directory), splits)
    return str(raised.value)


def test_a_missing_data_set_is_an_error_with_the_command_that_prepares_it(tmp_path):
    message = message_of("cifar10", tmp_path)
    assert f"no data set 'cifar10' in {tmp_path}" in message
    assert f"tfds build cifar10 --data_dir={tmp_path}" in message
    assert "--config.data.source=generated" in message
    assert "tar" not in message


def test_missing_imagenet_says_where_its_files_go(tmp_path):
    message = message_of("imagenet2012", tmp_path / "none")
    assert "ILSVRC2012_img_train.tar" in message
    assert "ILSVRC2012_img_val.tar" in message
    assert f"{tmp_path}/none/downloads/manual" in message


def test_a_missing_split_is_an_error_that_names_those_there_are(tmp_path):
    write_cifar(tmp_path, "cifar10")
    message = message_of("cifar10", tmp_path, ("train", "validation"))
    assert "no split 'validation', only" in message
    assert "train" in message and "test" in message and "--overwrite" in message


def test_missing_files_are_counted_and_named(tmp_path):
    directory, _ = write_cifar(tmp_path, "cifar10", n=(40, 10), per_file=10)
    files = sorted(directory.glob("*-train.tfrecord*"))
    assert len(files) == 4
    for file in files[1:3]:
        file.unlink()
    message = message_of("cifar10", tmp_path)
    assert "lacks 2 of the 4 files of its split 'train'" in message
    assert f" {files[1].name} for one" in message


@pytest.mark.parametrize("damage", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_an_error_that_names_the_directory(tmp_path, damage):
    directory, _ = write_cifar(tmp_path, "cifar10")
    (directory / damage).write_text("{")
    message = message_of("cifar10", tmp_path)
    assert f"{directory} cannot be opened" in message and "--overwrite" in message


def test_without_features_it_cannot_be_opened(tmp_path):
    directory, _ = write_cifar(tmp_path, "cifar10")
    (directory / "features.json").unlink()
    assert f"{directory} cannot be opened" in message_of("cifar10", tmp_path)


@pytest.mark.parametrize("package", ["tensorflow", "tensorflow_datasets"])
def test_without_tensorflow_the_error_says_what_to_install(
    monkeypatch, tmp_path, package
):
    monkeypatch.setitem(sys.modules, package, None)
    message = message_of("cifar10", tmp_path)
    assert "pip install 'neurrev_jax[data]'" in message and package in message


def test_a_data_set_may_be_moved(tmp_path):
    write_cifar(tmp_path / "here", "cifar10")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert cifar.load("cifar10", str(tmp_path / "there")).info.test_examples == 12


# What importing TensorFlow does.

IMPORTS = """
import os
import jax  # As in a run: it has a say in what TensorFlow logs.
from experiments.data import tfds_directory
tf, _ = tfds_directory.import_tensorflow()
assert not tf.config.get_visible_devices("GPU")
os.write(2, b"this is seen")
"""


def test_tensorflow_is_quiet_and_takes_no_accelerator():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTS],
        cwd=data_files.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "this is seen")


def test_what_is_no_notice_is_seen(capfd):
    with tfds_directory._without_notices():
        os.write(2, b"I0000 00:00:1 1 stub.cc:31] Could not find drivers\n")
        os.write(2, b"E0000 00:00:1 1 stub.cc:31] Something is wrong\n")
    expected = "E0000 00:00:1 1 stub.cc:31] Something is wrong\n"
    assert capfd.readouterr().err == expected


def test_nothing_is_held_back_when_the_import_fails(capfd):
    with pytest.raises(ImportError), tfds_directory._without_notices():
        os.write(2, b"libcudart.so: cannot open\n")
        raise ImportError
    assert capfd.readouterr().err == "libcudart.so: cannot open\n"
