"""Late decode: serialized tf.Examples of which only one in ten is parsed in full."""

import functools
from collections.abc import Callable

import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.parts import Part, Row, Run, Settings, added, of, ratio
from ofb_tf import constants
from ofb_tf.datasets import ClickStream

_PARALLEL = tf.data.AUTOTUNE


def _decode_images(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    examples = tf.io.parse_example(serialized, inputs.IMAGE_SPEC)
    pixels = tf.map_fn(
        lambda image: tf.io.decode_png(image, channels=1),
        examples["image"],
        fn_output_signature=tf.TensorSpec([None, None, 1], tf.uint8),
    )
    return examples | {"image": tf.ensure_shape(pixels, [None, 28, 28, 1])}


def _decode_image(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    example = tf.io.parse_single_example(serialized, inputs.IMAGE_SPEC)
    return example | {"image": tf.io.decode_png(example["image"], channels=1)}


@functools.cache
def _image_records(path: str) -> ofb_tf.ForwardRecords:
    """Records with ten logits for every image."""
    serialized = next(tf.data.TFRecordDataset(path).batch(inputs.NUM_IMAGES).as_numpy_iterator())
    ids = tf.io.parse_example(serialized, inputs.ID_AND_LABEL)[constants.EXAMPLE_ID].numpy()
    logits = tf.random.stateless_normal([len(ids), 10], seed=[5, 6])
    return ofb_tf.ForwardRecords.from_columns(ids, logits.numpy())


def _clicks(read: Callable[[tf.data.Dataset], tf.data.Dataset]) -> Callable[[Settings], Run]:
    def build(settings: Settings) -> Run:
        passes = 1 if settings.quick else 3
        return _reading(inputs.click_files(settings), read, inputs.NUM_CLICKS, passes)

    return build


def _images(read: Callable[[tf.data.Dataset, str], tf.data.Dataset]) -> Callable[[Settings], Run]:
    def build(settings: Settings) -> Run:
        path, passes = inputs.image_file(settings), 1 if settings.quick else 4
        return _reading(path, lambda files: read(files, path), inputs.NUM_IMAGES, passes)

    return build


def _reading(
    paths: str | list[str],
    read: Callable[[tf.data.Dataset], tf.data.Dataset],
    num_examples: int,
    passes: int,
) -> Run:
    files = tf.data.TFRecordDataset(paths)
    return lambda: inputs.steady(lambda times: read(files.repeat(times)), num_examples, passes)


def _raw(files: tf.data.Dataset, batch: int = inputs.BATCH) -> tf.data.Dataset:
    return files.batch(batch).map(lambda serialized: {constants.EXAMPLE_ID: serialized})


def _id_and_label(files: tf.data.Dataset) -> tf.data.Dataset:
    return files.batch(inputs.WINDOW).map(
        lambda serialized: tf.io.parse_example(serialized, inputs.ID_AND_LABEL),
        num_parallel_calls=_PARALLEL,
    )


def _with_logits(parsed: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Logits without a join: a cheap function of the id."""
    spread = tf.math.floormod(parsed[constants.EXAMPLE_ID] * 7919, 4096)
    return parsed | {constants.LOGITS: tf.cast(spread, tf.float32)[:, None] / 512.0 - 8.0}


def _keys_with_logits(files: tf.data.Dataset) -> tf.data.Dataset:
    return _id_and_label(files).map(_with_logits, num_parallel_calls=_PARALLEL)


def _selected_keys(files: tf.data.Dataset) -> tf.data.Dataset:
    return _keys_with_logits(files).apply(inputs.sample(batched_input=True))


@functools.cache
def _click_records() -> ofb_tf.ForwardRecords:
    return inputs.click_records()


def _joined_keys(files: tf.data.Dataset) -> tf.data.Dataset:
    sample = inputs.sample(records=_click_records(), batched_input=True)
    return _id_and_label(files).apply(sample)


def _all_features(files: tf.data.Dataset) -> tf.data.Dataset:
    return files.batch(inputs.BATCH).map(ClickStream.parse_fn, num_parallel_calls=_PARALLEL)


def _late_features(files: tf.data.Dataset) -> tf.data.Dataset:
    return _late(files, _click_records(), ClickStream.parse_fn)


def _all_images(files: tf.data.Dataset, path: str) -> tf.data.Dataset:
    return files.map(_decode_image, num_parallel_calls=_PARALLEL).batch(inputs.BATCH)


def _all_images_batched(files: tf.data.Dataset, path: str) -> tf.data.Dataset:
    return files.batch(inputs.BATCH).map(_decode_images, num_parallel_calls=_PARALLEL)


def _late_images(files: tf.data.Dataset, path: str) -> tf.data.Dataset:
    return _late(files, _image_records(path), _decode_images)


def _late(
    files: tf.data.Dataset, records: ofb_tf.ForwardRecords, parse_fn: Callable
) -> tf.data.Dataset:
    sample = inputs.sample(records=records, parse_fn=parse_fn, batched_input=True)
    return files.batch(inputs.WINDOW).apply(sample)


def _against_the_faster(medians: dict) -> float:
    names = ("decode everything", "decode everything, batched")
    return medians["late decode"]["cpu_us"] / min(medians[name]["cpu_us"] for name in names)


PARTS = (
    Part(
        name="late_decode",
        title="39-feature TFRecords: reading, parsing, selecting one in ten",
        item="input example",
        prepare=inputs.click_files,
        peers={
            "raw read": _clicks(_raw),
            "id and label": _clicks(_id_and_label),
            "parse everything": _clicks(_all_features),
            "late decode": _clicks(_late_features),
            "id and label, logits": _clicks(_keys_with_logits),
            "id and label, logits, selection": _clicks(_selected_keys),
            "id and label, join and selection": _clicks(_joined_keys),
        },
        rows=(
            Row(
                "late decode of 39 features against parsing everything, CPU per example (×)",
                ratio("cpu_us", "late decode", "parse everything"),
                at_most=0.8,
            ),
            Row(
                "CPU µs per example that selection adds to reading, id and label",
                added("cpu_us", "id and label, logits, selection", "id and label, logits"),
                at_most=1.0,
            ),
            Row(
                "CPU µs per example that join and selection add to reading, id and label",
                added("cpu_us", "id and label, join and selection", "id and label"),
            ),
            Row("raw read, CPU µs per example", of("raw read", "cpu_us")),
            Row("late decode, CPU µs per example", of("late decode", "cpu_us")),
        ),
    ),
    Part(
        name="late_images",
        title="PNG images of 28 by 28, all decoded, or only the selected ones",
        item="input example",
        prepare=inputs.image_file,
        peers={
            "decode everything": _images(_all_images),
            "decode everything, batched": _images(_all_images_batched),
            "late decode": _images(_late_images),
        },
        rows=(
            Row(
                "late decode of PNG images against decoding everything, CPU per example (×)",
                _against_the_faster,
                at_most=0.35,
            ),
        ),
    ),
)
