"""The stream of ImageNet: who reads what, in which order, and what of each image."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from experiments.data import imagenet, pixels, records, tfds_directory
from experiments.errors import UsageError
from tests import data_files
from tests.data_files import data_config, picture

pytestmark = data_files.NEEDS_TENSORFLOW

TRAIN, TEST, SHARES, SIDE = 52, 23, 4, 12
# Gray images, images for print, another format and narrow ones are among the real ones.
FORMS = (
    {},
    {"mode": "L"},
    {"mode": "CMYK"},
    {"form": "PNG"},
    {"width": 17, "height": 90},
    {"form": "PNG", "mode": "L"},
)


def pictures(n, first_seed):
    forms = itertools.islice(itertools.cycle(FORMS), n)
    return [picture(first_seed + i, **form) for i, form in enumerate(forms)]


@pytest.fixture(scope="module")
def encoded():
    return {"train": pictures(TRAIN, 0), "validation": pictures(TEST, 1000)}


@pytest.fixture(scope="module")
def root(tmp_path_factory, encoded):
    path = tmp_path_factory.mktemp("tfds")
    splits = {k: data_files.imagenet_examples(v) for k, v in encoded.items()}
    features = data_files.imagenet_features()
    data_files.write_tfds(path, "imagenet2012", features, splits, per_file=7)
    return path


def open_stream(root, process=0, processes=1, **fields):
    fields = {
        "name": "imagenet2012",
        "source": "tfds",
        "dir": str(root),
        "image_size": SIDE,
        "stream_shares": SHARES,
        "shuffle_buffer": 3,
        **fields,
    }
    return imagenet.open_stream(data_config(**fields), process, processes)


def train(stream, steps, *, seed=0, first_step=0, steps_per_epoch=13, batch_size=4):
    batches = stream.train_batches(
        seed=seed,
        first_step=first_step,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
    )
    got = list(itertools.islice(batches, steps))
    return np.stack([x for x, _ in got]), np.stack([y for _, y in got])


def test_the_facts_are_those_of_the_directory(root):
    info = open_stream(root).info
    assert (info.num_classes, info.image_shape) == (1000, (SIDE, SIDE, 3))
    assert (info.train_examples, info.test_examples) == (TRAIN, TEST)
    # As published for torchvision's and most other networks.
    np.testing.assert_allclose(info.mean, [123.675, 116.28, 103.53])
    np.testing.assert_allclose(info.std, [58.395, 57.12, 57.375])


# The order of training.


@pytest.mark.parametrize("buffer", [1, 3, 1000])
def test_an_epoch_has_every_example_once_and_each_share_its_own(root, buffer):
    stream = open_stream(root, shuffle_buffer=buffer)
    images, labels = train(stream, 26)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert images.shape == (26, 4, SIDE, SIDE, 3) and labels.shape == (26, 4)
    for epoch in (labels[:13], labels[13:]):
        np.testing.assert_array_equal(np.sort(epoch, axis=None), np.arange(TRAIN))
        for share in range(SHARES):
            own = np.arange(13 * share, 13 * (share + 1))
            np.testing.assert_array_equal(np.sort(epoch[:, share]), own)


@pytest.mark.parametrize(("examples", "shares"), [(52, 8), (10, 4), (7, 7), (3, 1)])
def test_shares_are_disjoint_complete_and_even(examples, shares):
    ends = records.bounds(examples, shares)
    assert (ends[0], ends[-1], len(ends)) == (0, examples, shares + 1)
    assert set(np.diff(ends)) <= {examples // shares, -(-examples // shares)}


def test_a_batch_is_made_of_equal_parts_of_the_shares_in_order(root):
    _, labels = train(open_stream(root), 6, batch_size=8, steps_per_epoch=6)
    shares = labels // 13
    np.testing.assert_array_equal(shares, np.tile(np.repeat(np.arange(4), 2), (6, 1)))


def test_the_end_of_an_epoch_that_fills_no_batch_is_another_each_time(root):
    _, labels = train(open_stream(root), 24, steps_per_epoch=12)
    left_out = [
        frozenset(range(TRAIN)) - set(epoch.ravel().tolist())
        for epoch in labels.reshape(2, -1)
    ]
    assert [len(x) for x in left_out] == [4, 4]
    assert left_out[0] != left_out[1]


def test_every_epoch_and_every_seed_has_another_order_and_other_crops(root):
    stream = open_stream(root)
    images, labels = train(stream, 26)
    other_images, other_labels = train(stream, 13, seed=1)
    epochs = (
        (images[:13], labels[:13]),
        (images[13:], labels[13:]),
        (other_images, other_labels),
    )
    for (x, y), (u, v) in itertools.combinations(epochs, 2):
        # In no share the same order, nor in two shares the same.
        for share in range(SHARES):
            assert (y[:, share] != v[:, share]).any()
        x = x.reshape(TRAIN, -1)[np.argsort(y, axis=None)]
        u = u.reshape(TRAIN, -1)[np.argsort(v, axis=None)]
        assert (x != u).any(axis=1).all(), "the same crop of an image"
    orders = labels[:13] % 13
    assert len({tuple(order) for order in orders.T}) == SHARES


@pytest.fixture(scope="module")
def uninterrupted(root):
    """One process, from the start, three epochs and a bit."""
    return train(open_stream(root), 20, batch_size=8, steps_per_epoch=6)


@pytest.mark.parametrize("processes", [2, 4])
def test_batches_are_the_same_with_any_number_of_processes(
    root, uninterrupted, processes
):
    images, labels = (x[:9] for x in uninterrupted)
    parts = [
        train(open_stream(root, p, processes), 9, batch_size=8, steps_per_epoch=6)
        for p in range(processes)
    ]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts], 1), images)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts], 1), labels)


@pytest.mark.parametrize("step", [0, 5, 6, 15])
def test_a_stream_resumed_is_the_stream_that_went_on(root, uninterrupted, step):
    arguments = {"batch_size": 8, "steps_per_epoch": 6, "first_step": step}
    again = train(open_stream(root), 20 - step, **arguments)
    for x, y in zip(again, uninterrupted, strict=True):
        np.testing.assert_array_equal(x, y[step:])


# What is seen of an image in training.


@pytest.fixture(scope="module")
def drawn():
    """Windows of 300 crops of one image, read off the pixels: red is x, green is y."""
    tf, _ = tfds_directory.import_tensorflow()
    width, height, side, n = 200, 150, 16, 300
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    data = file.getvalue()

    @tf.autograph.experimental.do_not_convert
    def crop(index):
        return pixels.random_crop(data, side, tf.constant(5, tf.int64), index)

    crops = tf.data.Dataset.range(n).map(crop).batch(n).get_single_element().numpy()
    # Away from the border, where the filter has its full width, the ramps are exact.
    inner = crops[:, 3:-3, 3:-3].astype(float)
    x, y = inner[..., 0].mean(1), inner[..., 1].mean(2)
    x_slope, y_slope = ((a[:, -1] - a[:, 0]) / (a.shape[1] - 1) for a in (x, y))
    return {
        "mirrored": x_slope < 0,
        "width": np.abs(x_slope) * side,
        "height": y_slope * side,
        "x": x.mean(1),
        "y": y.mean(1),
        "whole": (width, height),
    }


def test_crops_have_the_areas_and_shapes_of_the_literature(drawn):
    width, height = drawn["whole"]
    area = drawn["width"] * drawn["height"] / (width * height)
    aspect = drawn["width"] / drawn["height"]
    # A slope is known to half a pixel value in nine pixels.
    assert area.min() > 0.07 and area.max() < 1.03
    assert area.min() < 0.15 and area.max() > 0.85
    assert aspect.min() > 0.75 * 0.95 and aspect.max() < 4 / 3 * 1.05
    assert aspect.min() < 0.8 and aspect.max() > 1.25


def test_crops_lie_anywhere_within_the_image(drawn):
    width, height = drawn["whole"]
    for middle, extent, whole in (
        (drawn["x"], drawn["width"], width),
        (drawn["y"], drawn["height"], height),
    ):
        assert (middle - extent / 2 > -2.5).all()
        assert (middle + extent / 2 < whole + 2.5).all()
        room = whole - extent
        small = room > 0.2 * whole
        place = (middle - extent / 2)[small] / room[small]
        assert abs(place.mean() - 0.5) < 0.1 and place.std() > 0.2


def test_half_of_the_crops_are_mirrored_whatever_they_show(drawn):
    mirrored = drawn["mirrored"]
    # Five standard deviations of 300 fair draws.
    assert abs(mirrored.mean() - 0.5) < 0.145
    assert abs(np.corrcoef(mirrored, drawn["x"])[0, 1]) < 0.29
    assert abs(np.corrcoef(mirrored, drawn["width"])[0, 1]) < 0.29


# Evaluation.


def central(data, size):
    """The same image by Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = round(0.875 * min(image.size))
    left, top = ((whole - side) // 2 for whole in image.size)
    middle = image.crop((left, top, left + side, top + side))
    return np.asarray(middle.resize((size, size), Image.Resampling.BILINEAR), int)


def gather(streams, method, *arguments):
    """All processes' batches, of which there have to be equally many."""
    per_process = [list(getattr(s, method)(*arguments)) for s in streams]
    assert len({len(batches) for batches in per_process}) == 1
    return per_process


@pytest.mark.parametrize("size", [SIDE, 35])
def test_an_image_is_evaluated_as_pillow_computes_it(root, encoded, size):
    stream = open_stream(root, image_size=size)
    ((images, labels, include),) = stream.test_batches(TEST)
    assert include.all() and images.dtype == np.uint8
    for image, label in zip(images, labels, strict=True):
        expected = central(encoded["validation"][label], size)
        assert np.abs(image - expected).max() <= 2


@pytest.mark.parametrize(
    ("processes", "batch_size"),
    [(1, 1), (1, 8), (1, 23), (1, 64), (2, 8), (4, 4), (4, 20), (4, 64)],
)
def test_every_test_example_is_evaluated_once(root, processes, batch_size):
    streams = [open_stream(root, p, processes) for p in range(processes)]
    seen = []
    for batches in gather(streams, "test_batches", batch_size):
        for images, labels, include in batches:
            local = batch_size // processes
            assert images.shape == (local, SIDE, SIDE, 3)
            assert (labels.shape, labels.dtype) == ((local,), np.int32)
            assert (include.shape, include.dtype) == ((local,), np.bool_)
            assert not images[~include].any()
            seen.extend(labels[include].tolist())
    assert seen == list(range(TEST))


@pytest.mark.parametrize(
    ("processes", "examples"), [(1, 1), (1, 9), (1, 1000), (4, 3), (4, 9), (4, 52)]
)
def test_the_observed_examples_are_the_first_each_once(root, processes, examples):
    streams = [open_stream(root, p, processes) for p in range(processes)]
    per_process = gather(streams, "observed_batches", examples, 8)
    needed = {1: 1, 3: 1, 9: 2, 52: 7, 1000: 7}
    assert len(per_process[0]) == needed[examples]
    seen = [y[i] for batches in per_process for _, y, i in batches]
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(min(examples, TRAIN)))


def test_the_observed_examples_are_not_augmented(root, encoded):
    ((images, labels, _),) = open_stream(root).observed_batches(6, 6)
    for image, label in zip(images, labels, strict=True):
        assert np.abs(image - central(encoded["train"][label], SIDE)).max() <= 2


# What cannot be done.


def test_shares_must_be_divisible_among_the_processes(root):
    with pytest.raises(
        UsageError, match=r"stream_shares=4 must be a multiple of the 3"
    ):
        open_stream(root, 0, 3)


def test_a_batch_must_be_divisible_among_the_shares(root):
    with pytest.raises(UsageError, match=r"batch_size=6 must be a multiple .*=4"):
        open_stream(root).train_batches(
            seed=0, first_step=0, steps_per_epoch=2, batch_size=6
        )


def test_an_epoch_cannot_be_longer_than_a_share(root):
    with pytest.raises(UsageError, match=r"14 examples .* smallest share has 13"):
        open_stream(root).train_batches(
            seed=0, first_step=0, steps_per_epoch=14, batch_size=4
        )


@pytest.mark.parametrize("batch_size", [0, 5])
def test_an_evaluation_batch_must_be_divisible_among_the_processes(root, batch_size):
    with pytest.raises(UsageError, match=r"eval_batch_size"):
        open_stream(root, 0, 4).test_batches(batch_size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream_shares": 64}, r"stream_shares=64 must not exceed the 52"),
        ({"shuffle_buffer": 0}, r"shuffle_buffer=0 must be at least 1"),
        ({"image_size": None}, r"--config.data.image_size=224"),
    ],
)
def test_what_does_not_fit_is_refused(root, fields, message):
    with pytest.raises(UsageError, match=message):
        open_stream(root, **fields)


def test_images_that_are_all_one_square_size_may_keep_it(tmp_path):
    features = data_files.imagenet_features(10, (24, 24, 3))
    examples = data_files.imagenet_examples(
        [picture(i, width=24, height=24) for i in range(4)]
    )
    data_files.write_tfds(
        tmp_path, "imagenet2012", features, {"train": examples, "validation": examples}
    )
    stream = open_stream(tmp_path, image_size=None)
    assert stream.info.image_shape == (24, 24, 3)
    assert stream.info.num_classes == 10
    assert train(stream, 2, steps_per_epoch=1)[0].shape == (2, 4, 24, 24, 3)


def test_a_data_set_of_another_kind_is_refused(tmp_path):
    _, tfds = tfds_directory.import_tensorflow()
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.Text()}
    )
    examples = [{"image": picture(0), "label": "cat"}]
    data_files.write_tfds(
        tmp_path, "imagenet2012", features, {"train": examples, "validation": examples}
    )
    with pytest.raises(UsageError, match=r"feature 'label' of the type ClassLabel"):
        open_stream(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "no image"])
def test_damaged_data_is_an_error_that_names_the_directory(tmp_path, damage):
    image = b"this is no image" if damage == "no image" else picture(0)
    examples = data_files.imagenet_examples([image] * 4)
    directory = data_files.write_tfds(
        tmp_path,
        "imagenet2012",
        data_files.imagenet_features(),
        {"train": examples, "validation": examples},
    )
    if damage == "truncated":
        (file,) = directory.glob("*-validation*")
        file.write_bytes(file.read_bytes()[:-10])
    batches = open_stream(tmp_path).test_batches(4)
    with pytest.raises(UsageError, match=r"imagenet2012/1.0.0 cannot be read"):
        list(batches)


# The real data.


@data_files.needs_real("imagenet2012")
def test_the_real_images_are_evaluated_as_pillow_computes_them():
    stream = open_stream(data_files.REAL, image_size=64, stream_shares=8)
    assert stream.info.num_classes == 1000
    found = records.find_range(stream.builder, "validation", 0, 12)
    _, tfds = tfds_directory.import_tensorflow()
    decoders = {"image": tfds.decode.SkipDecoding()}
    parse = stream.builder.info.features.deserialize_example
    examples = [parse(r, decoders=decoders) for r in records.in_order(found)]
    images, labels, _ = next(stream.test_batches(12))
    for image, label, example in zip(images, labels, examples, strict=True):
        assert label == example["label"]
        expected = central(example["image"].numpy(), 64)
        # Pillow rounds between its two passes.
        assert np.abs(image - expected).max() <= 2


@data_files.needs_real("imagenet2012")
def test_the_real_data_set_is_read_in_full():
    stream = open_stream(data_files.REAL, image_size=32, stream_shares=8)
    steps = stream.info.train_examples // 80
    _, labels = train(stream, 2 * steps, batch_size=80, steps_per_epoch=steps)
    first, second = labels.reshape(2, -1)
    np.testing.assert_array_equal(np.sort(first), np.sort(second))
    assert (first != second).any()
    included = sum(i.sum() for _, _, i in stream.test_batches(48))
    assert included == stream.info.test_examples
