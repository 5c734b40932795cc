"""Inputs of the benchmarks: files that are written once and kept, and arrays in memory."""

import ctypes
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import ofb_tf
from benchmarks.clock import timed
from benchmarks.parts import Settings
from ofb_tf import constants, hashing
from ofb_tf.datasets import ClickStream, load_tfds
from ofb_tf.datasets.click_stream import CLICK_PROBABILITY
from ofb_tf.records import ForwardRecords, ForwardRecordWriter

NUM_CLICKS = 200_000
NUM_IMAGES = 20_000
WINDOW = 4096
BATCH = 256
RATE = 0.1
SEED = 17
ID_AND_LABEL = {
    constants.EXAMPLE_ID: tf.io.FixedLenFeature([], tf.int64),
    constants.LABEL: tf.io.FixedLenFeature([], tf.int64),
}
IMAGE_SPEC = ID_AND_LABEL | {"image": tf.io.FixedLenFeature([], tf.string)}


def sample(**settings: Any) -> ofb_tf.DatasetTransform:
    """The sampler, with the benchmarks' settings where none are given."""
    defaults = {"rate": RATE, "window_size": WINDOW, "batch_size": BATCH, "seed": SEED}
    return ofb_tf.ofb_sample(**(defaults | settings))


def click_stream() -> ClickStream:
    return ClickStream(num_examples=NUM_CLICKS)


def click_files(settings: Settings) -> list[str]:
    """39-feature TFRecords of the click stream, 200,000 examples in four shards."""
    directory = settings.inputs / "clicks"
    if not directory.is_dir():
        open_directory = _fresh(directory)
        click_stream().write_tfrecords(open_directory, num_shards=4)
        open_directory.rename(directory)
    return sorted(map(str, directory.iterdir()))


def click_records() -> ForwardRecords:
    """What a good model would have recorded of the click stream."""
    ids = np.arange(NUM_CLICKS)
    return ForwardRecords.from_columns(ids, click_logits(click_stream().generate(ids)))


def click_logits(examples: Mapping[str, tf.Tensor]) -> np.ndarray:
    """float64 `[n]`: the true logits of examples of the click stream."""
    probability = examples[CLICK_PROBABILITY].numpy().astype(np.float64)
    return np.log(probability / (1 - probability))


def image_file(settings: Settings) -> str:
    """PNG images and labels as TFDS stores MNIST, with an id added: 20,000 tf.Examples.

    From the prepared TFDS dataset in `OFB_TFDS_DIR` or `../shared/tfds` if there is one; otherwise
    ten smooth shapes with noise, of the same size.
    """
    path = settings.inputs / "images.tfrecord"
    if not path.exists():
        with tf.io.TFRecordWriter(str(path) + ".open") as writer:
            for element in _images().take(NUM_IMAGES).as_numpy_iterator():
                writer.write(_image_example(element))
        pathlib.Path(str(path) + ".open").rename(path)
    return str(path)


def tfds_directory() -> pathlib.Path:
    """Where prepared TFDS datasets are looked for."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "tfds"
    return pathlib.Path(os.environ.get("OFB_TFDS_DIR", default))


def record_files(settings: Settings, count: int) -> pathlib.Path:
    """A directory of one-output records with scattered ids."""
    directory = settings.inputs / f"records-{count}"
    if not directory.is_dir():
        open_directory = _fresh(directory)
        ids = scattered_ids(count)
        logits = logits_of(ids)
        with ForwardRecordWriter(str(open_directory), num_outputs=1) as writer:
            for start in range(0, count, 8192):
                part = slice(start, start + 8192)
                writer.write(ids[part], logits[part], model_version=start * 8 // count)
        open_directory.rename(directory)
    return directory


def scattered_ids(count: int) -> np.ndarray:
    """int64 `[count]`, distinct, over the whole range, unordered."""
    return scattered(np.arange(count, dtype=np.int64))


def scattered(numbers: np.ndarray) -> np.ndarray:
    """An id for each int64 number: a bijection."""
    return hashing.mix64(numbers).view(np.int64)


def logits_of(ids: np.ndarray) -> np.ndarray:
    """float32 `[n]`: a function of the id."""
    return (ids >> 40).astype(np.float32) / np.float32(2**21)


def resident_bytes() -> int:
    """The resident memory of this process now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most resident memory that this process had.

    Not `ru_maxrss`, which begins with that of the process that started this one.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def allocated_bytes() -> int:
    """The memory that the C library's allocator (glibc 2.33 or newer) has given out now."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd


def consume(dataset: tf.data.Dataset, id_key: str = constants.EXAMPLE_ID) -> int:
    """Runs a dataset of batches in the graph; returns the number of examples."""

    def add(total: tf.Tensor, batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return total + tf.size(batch[id_key], tf.int64)

    return int(dataset.reduce(tf.constant(0, tf.int64), add))


def steady(build: Callable[[int], tf.data.Dataset], items: int, passes: int) -> dict[str, float]:
    """Time of a running dataset, without that of starting it.

    Starting an iterator optimises and instantiates its graph, which takes about 0.2 s whatever
    the data. So one pass and `1 + passes` passes are timed, each in one iterator, and subtracted.

    Args:
      build: maps a number of passes over the input to the dataset of batches.
      items: input examples per pass.
      passes: the number of measured passes.
    """
    short, long = build(1), build(1 + passes)
    consume(short.take(1))
    start, _ = timed(lambda: consume(short))
    run, selected = timed(lambda: consume(long))
    figures = {name: run[name] - start[name] for name in run}
    return figures | {"items": items * passes, "out_share": selected / (items * (1 + passes))}


def _fresh(directory: pathlib.Path) -> pathlib.Path:
    """An empty directory to write to, renamed once it is complete."""
    path = directory.with_name(directory.name + ".open")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def _images() -> tf.data.Dataset:
    directory = tfds_directory()
    if (directory / "mnist").is_dir():
        return load_tfds("mnist", "train", data_dir=str(directory), decode_images=False)
    shapes = tf.random.stateless_normal([10, 7, 7, 1], seed=[1, 2])
    shapes = tf.image.resize(shapes, [28, 28], method="bicubic")

    def image(index: tf.Tensor) -> dict[str, tf.Tensor]:
        label = index % 10
        noise = 0.3 * tf.random.stateless_normal([28, 28, 1], seed=[3, index])
        pixels = tf.nn.relu(shapes[label] + noise - 0.5)  # mostly black, as handwriting is
        pixels = tf.image.convert_image_dtype(pixels / 2, tf.uint8, saturate=True)
        return {"example_id": index, "label": label, "image": tf.io.encode_png(pixels)}

    return tf.data.Dataset.range(NUM_IMAGES).map(image, num_parallel_calls=tf.data.AUTOTUNE)


def _image_example(element: dict) -> bytes:
    example = tf.train.Example()
    feature = example.features.feature
    for name in (constants.EXAMPLE_ID, constants.LABEL):
        feature[name].int64_list.value.append(element[name])
    feature["image"].bytes_list.value.append(element["image"])
    return example.SerializeToString()
