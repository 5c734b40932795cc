"""Late decode: serialized tf.Examples of which one in ten is ever parsed in full."""

import functools
from collections.abc import Callable

import tensorflow as tf

import ofb_tf
from benchmarks import inputs
from benchmarks.parts import Part, Row, Run, Settings, of, ratio
from ofb_tf import constants
from ofb_tf.datasets import ClickStream

_PARALLEL = tf.data.AUTOTUNE


def _sampled(records: ofb_tf.ForwardRecords, parse_fn: Callable) -> ofb_tf.DatasetTransform:
    return ofb_tf.ofb_sample(
        records=records,
        rate=inputs.RATE,
        window_size=inputs.WINDOW,
        batch_size=inputs.BATCH,
        parse_fn=parse_fn,
        batched_input=True,
        seed=17,
    )


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
        files = tf.data.TFRecordDataset(inputs.click_files(settings))
        passes = 1 if settings.quick else 3
        return lambda: inputs.steady(
            lambda times: read(files.repeat(times)), inputs.NUM_CLICKS, passes
        )

    return build


def _images(read: Callable[[tf.data.Dataset, str], tf.data.Dataset]) -> Callable[[Settings], Run]:
    def build(settings: Settings) -> Run:
        path = inputs.image_file(settings)
        files = tf.data.TFRecordDataset(path)
        passes = 1 if settings.quick else 4
        return lambda: inputs.steady(
            lambda times: read(files.repeat(times), path), inputs.NUM_IMAGES, passes
        )

    return build


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
    return _keys_with_logits(files).apply(
        ofb_tf.ofb_sample(
            rate=inputs.RATE,
            window_size=inputs.WINDOW,
            batch_size=inputs.BATCH,
            batched_input=True,
            seed=17,
        )
    )


@functools.cache
def _click_records() -> ofb_tf.ForwardRecords:
    return inputs.click_records()


def _joined_keys(files: tf.data.Dataset) -> tf.data.Dataset:
    return _id_and_label(files).apply(
        ofb_tf.ofb_sample(
            records=_click_records(),
            rate=inputs.RATE,
            window_size=inputs.WINDOW,
            batch_size=inputs.BATCH,
            batched_input=True,
            seed=17,
        )
    )


def _all_features(files: tf.data.Dataset) -> tf.data.Dataset:
    return files.batch(inputs.BATCH).map(ClickStream.parse_fn, num_parallel_calls=_PARALLEL)


def _late_features(files: tf.data.Dataset) -> tf.data.Dataset:
    windows = files.batch(inputs.WINDOW)
    return windows.apply(_sampled(_click_records(), ClickStream.parse_fn))


def _all_images(files: tf.data.Dataset, path: str) -> tf.data.Dataset:
    return files.map(_decode_image, num_parallel_calls=_PARALLEL).batch(inputs.BATCH)


def _all_images_batched(files: tf.data.Dataset, path: str) -> tf.data.Dataset:
    return files.batch(inputs.BATCH).map(_decode_images, num_parallel_calls=_PARALLEL)


def _late_images(files: tf.data.Dataset, path: str) -> tf.data.Dataset:
    return files.batch(inputs.WINDOW).apply(_sampled(_image_records(path), _decode_images))


def _added(peer: str, base: str) -> Callable[..., float]:
    return lambda medians: medians[peer]["cpu_us"] - medians[base]["cpu_us"]


def _against_the_faster(medians: dict) -> float:
    names = ("decode everything", "decode everything, batched")
    return medians["late decode"]["cpu_us"] / min(medians[name]["cpu_us"] for name in names)


PARTS = (
    Part(
        name="late_decode",
        title="39-feature TFRecords: reading, parsing, selecting one in ten",
        item="example in",
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
                "late decode of 39 features against parsing everything, CPU an example (×)",
                ratio("cpu_us", "late decode", "parse everything"),
                at_most=0.8,
            ),
            Row(
                "CPU µs an example that selection adds to reading, id and label",
                _added("id and label, logits, selection", "id and label, logits"),
                at_most=1.0,
            ),
            Row(
                "CPU µs an example that join and selection add to reading, id and label",
                _added("id and label, join and selection", "id and label"),
            ),
            Row("raw read, CPU µs an example", of("raw read", "cpu_us")),
            Row("late decode, CPU µs an example", of("late decode", "cpu_us")),
        ),
    ),
    Part(
        name="late_images",
        title="PNG images of 28 by 28, decoded for all or for the selected alone",
        item="example in",
        prepare=inputs.image_file,
        peers={
            "decode everything": _images(_all_images),
            "decode everything, batched": _images(_all_images_batched),
            "late decode": _images(_late_images),
        },
        rows=(
            Row(
                "late decode of PNG images against decoding everything, CPU an example (×)",
                _against_the_faster,
                at_most=0.35,
            ),
        ),
    ),
)
