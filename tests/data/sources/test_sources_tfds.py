"""Prepared TFDS data, written by hand without TensorFlow."""

import io
import json
import sys

import numpy as np
import pytest

import fedjax_lite.data.sources.download as downloads
from fedjax_lite.data.formats.errors import DatasetFormatError, DatasetNotFoundError
from fedjax_lite.data.sources.load import load, source_of

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")
array_record = pytest.importorskip(
    "array_record.python.array_record_module", reason="array-record is not installed"
)
image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

# array_record's and tfds's own, not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    for name in ("FEDJAX_LITE_DATA", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEDJAX_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def refuse(url, timeout):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(downloads, "open_url", refuse)


def png(image):
    file = io.BytesIO()
    image_module.fromarray(image).save(file, "PNG")
    return file.getvalue()


def prepare(root, features, splits, *, name="toy", version="1.0.0", file_format="array_record"):
    """Writes ``root/name/version`` as TFDS lays it out; `splits` are lists of encoded examples."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    folder = root / name / version
    folder.mkdir(parents=True)
    features.save_config(str(folder))
    serializer = ExampleSerializer(features.get_serialized_info())
    described = []
    for split, examples in splits.items():
        records = [serializer.serialize_example(example) for example in examples]
        shard = folder / f"{name.split('/')[0]}-{split}.{file_format}-00000-of-00001"
        writer = array_record.ArrayRecordWriter(str(shard), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        described.append(
            {
                "name": split,
                "shardLengths": [str(len(records))],
                "numBytes": str(sum(map(len, records))),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"name": name.split("/")[0], "version": version, "fileFormat": file_format}
    (folder / "dataset_info.json").write_text(json.dumps({**info, "splits": described}))
    return folder


def image_features(size=4, **more):
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(size, size, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
            **more,
        }
    )


def image_split(split, count, size=4, **more):
    """Examples in a shuffled order, as TFDS stores them; the true order is that of the ids."""
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, count)
    examples = [
        {
            "id": f"{split}_{k}".encode(),
            "image": png(images[k]),
            "label": np.int64(labels[k]),
            **{key: np.int64(value + k) for key, value in more.items()},
        }
        for k in rng.permutation(count)
    ]
    return images, labels, examples


@pytest.mark.parametrize("place", ["data_dir", "FEDJAX_LITE_DATA", "TFDS_DATA_DIR", "home"])
def test_images_and_labels_in_the_order_of_the_ids(tmp_path, monkeypatch, place):
    root = tmp_path / "home" / "tensorflow_datasets" if place == "home" else tmp_path / "prepared"
    # More than ten: train_10 comes after train_9.
    images, labels, train_examples = image_split("train", 12)
    _, test_labels, test_examples = image_split("test", 3)
    prepare(root, image_features(), {"train": train_examples, "test": test_examples})
    arguments = {"data_dir": root} if place == "data_dir" else {}
    if place.isupper():
        monkeypatch.setenv(place, str(root))
    train, test = load("tfds:toy", **arguments)
    assert list(train) == ["x", "y"]
    np.testing.assert_array_equal(train["x"], images)
    np.testing.assert_array_equal(train["y"], labels)
    np.testing.assert_array_equal(test["y"], test_labels)
    assert train["y"].dtype == np.int32
    assert source_of("tfds:toy", **arguments).layout == "tfds"
    assert "tensorflow" not in sys.modules


def test_a_known_name_is_found_among_prepared_data(tmp_path):
    features = image_features(32, coarse_label=tfds.features.ClassLabel(num_classes=20))
    images, labels, train_examples = image_split("train", 3, 32, coarse_label=5)
    _, _, test_examples = image_split("test", 2, 32, coarse_label=5)
    splits = {"train": train_examples, "test": test_examples}
    prepare(tmp_path, features, splits, name="cifar100", version="3.0.2")
    train, test = load("cifar100", data_dir=tmp_path)
    np.testing.assert_array_equal(train["x"], images)
    np.testing.assert_array_equal(train["y"], labels)
    assert train["coarse"].tolist() == [5, 6, 7]
    assert (train["coarse"].dtype, list(test)) == (np.int32, ["x", "y", "coarse"])


def test_other_features_keep_their_names(tmp_path):
    features = tfds.features.FeaturesDict(
        {
            "words": tfds.features.Text(),
            "nested": {"point": tfds.features.Tensor(shape=(2,), dtype=np.float32)},
        }
    )
    examples = [
        {"words": word, "nested": {"point": np.array([k, 0.5], np.float32)}}
        for k, word in enumerate((b"a", b"bcd"))
    ]
    encoded = [
        {"words": example["words"], "nested/point": example["nested"]["point"]}
        for example in examples
    ]
    prepare(tmp_path, features, {"train": encoded, "validation": encoded[:1]})
    train, test = load("tfds:toy", data_dir=tmp_path)
    assert train["words"].tolist() == [b"a", b"bcd"]
    assert train["nested/point"].tolist() == [[0.0, 0.5], [1.0, 0.5]]
    assert len(test["words"]) == 1


def test_versions_and_configurations(tmp_path):
    for version, count in (("1.9.0", 2), ("1.10.0", 3)):
        splits = {name: image_split(name, count)[2] for name in ("train", "test")}
        prepare(tmp_path, image_features(), splits, version=version)
    splits = {name: image_split(name, 4)[2] for name in ("train", "test")}
    prepare(tmp_path, image_features(), splits, name="other/small")

    def size(name):
        return len(load(name, data_dir=tmp_path)[0]["y"])

    # The newest version by number, not by letters.
    assert size("tfds:toy") == 3
    assert size("tfds:toy:1.9.0") == 2
    assert size("tfds:other/small") == size("tfds:other") == 4
    with pytest.raises(DatasetNotFoundError, match=r"no toy:2\.0\.0/\*\*/dataset_info\.json"):
        load("tfds:toy:2.0.0", data_dir=tmp_path)


def test_absent_data_never_ask_the_network(tmp_path):
    with pytest.raises(DatasetNotFoundError) as caught:
        load("tfds:mnist", data_dir=tmp_path)
    assert "tfds build mnist --file_format=array_record" in str(caught.value)


def break_info(folder):
    (folder / "dataset_info.json").write_text("{}")


def break_features(folder):
    (folder / "features.json").write_text("{")


def break_shard(folder):
    (shard,) = folder.glob("*-train.*")
    shard.write_bytes(b"nonsense")


def remove_shard(folder):
    (shard,) = folder.glob("*-train.*")
    shard.unlink()


def only_train(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"] = info["splits"][:1]
    (folder / "dataset_info.json").write_text(json.dumps(info))


def as_tfrecord(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_info, r"dataset_info\.json: expected a TFDS dataset_info\.json with splits"),
        (break_features, "expected a whole prepared TFDS data set"),
        (break_shard, "expected a whole prepared TFDS data set"),
        (remove_shard, "expected a whole prepared TFDS data set"),
        (only_train, "expected the splits train and test"),
        (as_tfrecord, "found the format tfrecord; prepare it anew"),
    ],
)
def test_damaged_data_are_named(tmp_path, damage, message):
    splits = {name: image_split(name, 2)[2] for name in ("train", "test")}
    folder = prepare(tmp_path, image_features(), splits)
    damage(folder)
    with pytest.raises(DatasetFormatError, match=message) as caught:
        load("tfds:toy", data_dir=tmp_path)
    assert str(folder) in str(caught.value)


def test_images_of_differing_shapes_are_refused(tmp_path):
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    examples = [
        {"image": png(np.zeros((side, side, 3), np.uint8)), "label": np.int64(0)} for side in (3, 4)
    ]
    prepare(tmp_path, features, {"train": examples, "test": examples})
    with pytest.raises(DatasetFormatError, match="one shape in the feature 'image'"):
        load("tfds:toy", data_dir=tmp_path)


def test_without_the_packages_the_remedy_is_named(tmp_path, monkeypatch):
    splits = {name: image_split(name, 2)[2] for name in ("train", "test")}
    prepare(tmp_path, image_features(), splits)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        load("tfds:toy", data_dir=tmp_path)
