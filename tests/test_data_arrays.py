"""Data sets in memory, and what is done to their pixels."""

import io
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import augment, batches, digits, generated, load, npz, statistics
from experiments.data.base import Split
from experiments.errors import UsageError
from tests import data_files
from tests.data_files import data_config

# NumPy archives.


def arrays(n=6, shape=(32, 32, 3), classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "labels": rng.integers(0, classes, n),
    }


def save(directory, train=None, test=None):
    np.savez(directory / "train.npz", **(train or arrays()))
    np.savez(directory / "test.npz", **(test or arrays(4, seed=1)))


def load_npz(directory, name="cifar10", **fields):
    return npz.load(data_config(name=name, source="npz", dir=str(directory), **fields))


@pytest.mark.parametrize("save_with", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_archives_are_read_as_they_are(tmp_path, save_with, dtype):
    train, test = arrays(6), arrays(4, seed=1)
    for file, split in (("train", train), ("test", test)):
        split["labels"] = split["labels"].astype(dtype)
        save_with(tmp_path / f"{file}.npz", **split)
    got = load_npz(tmp_path)
    for split, expected in ((got.train, train), (got.test, test)):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(split.images, expected["images"])
        np.testing.assert_array_equal(split.labels, expected["labels"])
    assert (got.info.train_examples, got.info.test_examples) == (6, 4)


@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [
        ("digits", 10, (8, 8, 1)),
        ("cifar10", 10, (32, 32, 3)),
        ("cifar100", 100, (32, 32, 3)),
        ("imagenet2012", 1000, (20, 30, 3)),
    ],
)
def test_archives_serve_every_experiment(tmp_path, name, classes, shape):
    save(tmp_path, arrays(50, shape, classes), arrays(4, shape, classes, seed=1))
    config = data_config(name=name, source="npz", dir=str(tmp_path))
    info = load.load(config, 0, 1).info
    assert (info.name, info.num_classes, info.image_shape) == (name, classes, shape)


def wrong(change, **kind):
    """Arrays of which one has been changed."""
    return {**arrays(**kind), **change}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (wrong({"images": np.zeros((6, 32, 32, 3))}), "float64 of shape .6, 32, 32, 3"),
        (wrong({"images": np.zeros((6, 32, 32), np.uint8)}), "C = 1"),
        (wrong({"images": np.zeros((0, 32, 32, 3), np.uint8)}), "axis of length 0"),
        (wrong({"labels": np.zeros(6)}), "labels in .* is float64"),
        (wrong({"labels": np.zeros(6, bool)}), "labels in .* is bool"),
        (wrong({"labels": np.zeros(5, int)}), "one for each of the 6 images"),
        (wrong({"labels": np.zeros((6, 1), int)}), "one for each of the 6 images"),
        (
            wrong({"labels": np.array([0, 9, 10, 0, 0, 0])}),
            r"label 2 in .* is 10; labels of cifar10 must lie in \[0, 10\)",
        ),
        (wrong({"labels": np.array([0, -1, 0, 0, 0, 0])}), "label 1 in .* is -1"),
        ({"x": np.zeros(3)}, "no array 'images', only x"),
        ({"images": arrays()["images"]}, "no array 'labels', only images"),
        (wrong({"labels": np.array([None] * 6)}), "cannot be read .*pickle"),
        (arrays(shape=(32, 32, 1)), "must have 3 channels, and these have 1"),
    ],
)
def test_archives_of_another_form_are_refused(tmp_path, train, message):
    test = arrays(4, train["images"].shape[1:], seed=1) if "images" in train else None
    if test is not None and test["images"].ndim != 4:
        test = None
    save(tmp_path, train, test)
    with pytest.raises(UsageError, match=message):
        load_npz(tmp_path)


def test_training_and_test_images_must_have_one_shape(tmp_path):
    save(tmp_path, test=arrays(4, (16, 32, 3)))
    with pytest.raises(UsageError, match=r"\(32, 32, 3\) .*\(16, 32, 3\); bring"):
        load_npz(tmp_path)


def test_a_missing_archive_is_an_error_that_says_what_it_holds(tmp_path):
    save(tmp_path)
    (tmp_path / "test.npz").unlink()
    with pytest.raises(
        UsageError, match=r"no file .*test.npz; .*images \[N, H, W, C\]"
    ):
        load_npz(tmp_path)


@pytest.mark.parametrize("directory", [None, ""])
def test_a_directory_has_to_be_named(directory):
    config = data_config(name="cifar10", source="npz", dir=directory)
    with pytest.raises(UsageError, match=r"--config.data.dir=DIR"):
        npz.load(config)


@pytest.mark.parametrize("length", [0, 10, 2000, -1])
def test_a_truncated_archive_is_an_error(tmp_path, length):
    save(tmp_path)
    path = tmp_path / "train.npz"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"train.npz is damaged or no archive"):
        load_npz(tmp_path)


def test_an_archive_with_a_damaged_array_is_an_error(tmp_path):
    save(tmp_path)
    path = tmp_path / "train.npz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"train.npz cannot be read .*CRC"):
        load_npz(tmp_path)


def test_an_archive_whose_arrays_end_early_is_an_error(tmp_path):
    save(tmp_path)
    array = io.BytesIO()
    np.save(array, arrays()["images"])
    with zipfile.ZipFile(tmp_path / "train.npz", "w") as archive:
        archive.writestr("images.npy", array.getvalue()[:-1])
        archive.writestr("labels.npy", b"")
    with pytest.raises(UsageError, match=r"train.npz cannot be read"):
        load_npz(tmp_path)


def test_a_single_array_is_no_archive(tmp_path):
    save(tmp_path)
    with open(tmp_path / "train.npz", "wb") as file:
        np.save(file, arrays()["images"])
    with pytest.raises(UsageError, match=r"train.npz is damaged or no archive"):
        load_npz(tmp_path)


# Statistics.


def test_the_statistics_of_images_are_those_of_numpy():
    images = arrays(7, (5, 4, 2))["images"]
    mean, std = statistics.of_images("digits", images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-12)


def test_a_channel_without_contrast_is_refused():
    images = arrays(7, (5, 4, 2))["images"]
    images[..., 1] = 3
    with pytest.raises(UsageError, match="channel 1 has the same value"):
        statistics.of_images("digits", images)


# As published, in units of 0 to 1.
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("imagenet2012", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_known_data_sets_have_the_statistics_of_the_literature(name, mean, std):
    got = statistics.of_images(name, arrays()["images"])
    np.testing.assert_allclose(got, [np.array(mean) * 255, np.array(std) * 255])


# Made up data.


def made(name, train=40, test=20, **fields):
    return generated.load(
        data_config(
            name=name,
            source="generated",
            generated_train=train,
            generated_test=test,
            **fields,
        )
    )


@pytest.mark.parametrize(
    ("name", "fields", "classes", "shape"),
    [
        ("digits", {}, 10, (8, 8, 1)),
        ("cifar10", {}, 10, (32, 32, 3)),
        ("cifar100", {}, 100, (32, 32, 3)),
        ("imagenet2012", {"image_size": 64}, 1000, (64, 64, 3)),
        ("imagenet2012", {"image_size": None}, 1000, (224, 224, 3)),
        ("imagenet2012", {"image_size": 3}, 1000, (3, 3, 3)),
    ],
)
def test_made_up_data_has_the_form_of_the_real(name, fields, classes, shape):
    info, train, test = made(name, **fields)
    assert (info.name, info.num_classes, info.image_shape) == (name, classes, shape)
    assert (info.train_examples, info.test_examples) == (40, 20)
    assert len(info.mean) == len(info.std) == shape[-1]
    assert (train.images.shape, test.images.shape) == ((40, *shape), (20, *shape))
    assert (train.labels.shape, test.labels.shape) == ((40,), (20,))
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "size"), [("digits", 500), ("cifar10", 500), ("cifar100", 1000)]
)
def test_made_up_data_can_be_learned(name, size):
    info, train, test = made(name, train=size, test=200)
    x, y = (split.images.reshape(len(split.labels), -1) for split in (train, test))
    classes = range(info.num_classes)
    means = np.stack([x[train.labels == c].mean(0) for c in classes])
    distances = ((y[:, None].astype(np.float32) - means[None]) ** 2).sum(-1)
    assert (distances.argmin(1) == test.labels).mean() > 0.9
    assert np.bincount(test.labels).tolist() == [200 // len(classes)] * len(classes)


def test_made_up_data_is_always_the_same_and_longer_sets_begin_with_it():
    first, again, longer = made("cifar10"), made("cifar10"), made("cifar10", train=150)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(longer.train.images[:40], first.train.images)
    np.testing.assert_array_equal(longer.test.images, first.test.images)


def test_no_two_made_up_images_are_the_same():
    _, train, test = made("cifar10")
    images = {x.tobytes() for split in (train, test) for x in split.images}
    assert len(images) == 60


@pytest.mark.parametrize("field", ["train", "test"])
def test_no_examples_are_refused(field):
    with pytest.raises(UsageError, match=rf"data.generated_{field}=0 must be at least"):
        made("cifar10", **{field: 0})


# Digits.


def test_the_digits_are_divided_alike_every_time():
    first, again = (load.load(data_config(), 0, 1) for _ in range(2))
    assert first.info.train_examples + first.info.test_examples == 1797
    np.testing.assert_array_equal(first.train.images, again.train.images)
    everything = np.concatenate([first.train.images, first.test.images])
    assert everything.max() == 16
    halves = digits.load(0.5)
    assert halves.info.test_examples == 899
    np.testing.assert_allclose(halves.info.mean, [halves.train.images.mean()])
    np.testing.assert_allclose(halves.info.std, [halves.train.images.std()])


# Without TensorFlow.

WITHOUT = """
import sys
from experiments.config import default_config
from experiments.data.load import load

data = default_config().data
with data.unlocked():
    data.update({fields!r})
print(load(data, 0, 1).info.train_examples)
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"tensorflow", "tensorflow_datasets", "keras"}}
"""


@pytest.mark.parametrize(
    ("fields", "examples"),
    [
        ({"name": "digits"}, 1347),
        (
            {
                "name": "imagenet2012",
                "source": "generated",
                "image_size": 16,
                "generated_train": 30,
            },
            30,
        ),
        ({"name": "cifar100", "source": "npz"}, 6),
    ],
)
def test_arrays_are_loaded_without_tensorflow(tmp_path, fields, examples):
    if fields.get("source") == "npz":
        save(tmp_path)
        fields = {**fields, "dir": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(fields=fields)],
        cwd=data_files.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{examples}\n"


# What happens to the pixels.


def test_normalized_images_are_those_of_numpy():
    info = made("cifar10").info
    images = arrays()["images"]
    expected = (images - np.array(info.mean)) / np.array(info.std)
    got = augment.normalize(info, jnp.asarray(images))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def windows(image, padding):
    """All crops of the padded image and their mirror images, as bytes."""
    h, w, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    crops = {}
    for i in range(2 * padding + 1):
        for j in range(2 * padding + 1):
            crop = padded[i : i + h, j : j + w]
            crops[crop.tobytes()] = (i, j, False)
            crops[np.ascontiguousarray(crop[:, ::-1]).tobytes()] = (i, j, True)
    return crops


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_crops_with_black_borders(padding, flip):
    image = arrays(1, (8, 8, 3))["images"][0]
    n = 400
    keys = jax.random.split(jax.random.key(0), n)
    crop = jax.jit(
        lambda k, x: augment.augment(k, x, padding=padding, flip=flip),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    got = np.asarray(crop(keys, jnp.broadcast_to(image, (n, *image.shape))))
    possible = windows(image, padding)
    rows, columns, mirrored = zip(*(possible[x.tobytes()] for x in got), strict=True)
    # Every place occurs; by chance one of five would be missed once in 10**38.
    assert set(rows) == set(columns) == set(range(2 * padding + 1))
    # Five standard deviations of 400 fair draws.
    assert abs(np.mean(mirrored) - 0.5) < 0.125 if flip else not any(mirrored)
    again = crop(keys[:7], jnp.broadcast_to(image, (7, *image.shape)))
    np.testing.assert_array_equal(again, got[:7])


@pytest.mark.parametrize("n", [1, 7, 64, 65])
@pytest.mark.parametrize("batch_size", [1, 20, 1000])
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_every_example_is_laid_out_once(n, batch_size, devices):
    images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
    labels = np.arange(n, dtype=np.int32)
    laid_out = batches.lay_out(Split(images, labels), batch_size, devices)
    assert laid_out.include.shape[0] == devices
    assert laid_out.include.shape[2] <= -(-batch_size // devices)
    assert laid_out.images.shape[:3] == laid_out.include.shape
    np.testing.assert_array_equal(np.sort(laid_out.labels[laid_out.include]), labels)
    np.testing.assert_array_equal(
        laid_out.images[laid_out.include].ravel(), laid_out.labels[laid_out.include]
    )
    assert not laid_out.images[~laid_out.include].any()
