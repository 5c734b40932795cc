"""What OFBSampler refuses: each error names the component and the remedy, and leaves nothing."""

import numpy as np
import pytest
from tfx_testing import write_tfrecords

from tests.streams import serialized_example
from tfx_components.ofb_sampler import OFBSampler


def _train(root, number):
    return root / "examples" / "Split-train" / f"data_tfrecord-{number:05d}-of-00003.gz"


def _no_manifest(root):
    (root / "records" / "manifest.json").unlink()


def _corrupt_examples(root):
    _train(root, 1).write_bytes(_train(root, 1).read_bytes()[:-500])


def _corrupt_records(root):
    path = root / "records" / "partition-00002-of-00005.ofbr"
    path.write_bytes(path.read_bytes()[:-500])


def _empty_split(root):
    for number in range(3):
        write_tfrecords(_train(root, number), [])


def _no_files(root):
    for number in range(3):
        _train(root, number).unlink()


def _some_without_label(root):
    write_tfrecords(_train(root, 2), [serialized_example(id=1, label=0), serialized_example(id=2)])


def _other_schema(root):
    write_tfrecords(_train(root, 2), [serialized_example(id=1, label=0.5)])


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (_no_manifest, {}, "manifest.json does not exist.*in TFX: ForwardRecordGen"),
        (None, {"task": "multiclass"}, "at least 2 outputs for task='multiclass', got 1.*model"),
        (None, {"num_outputs": 2}, "num_outputs=2, got 1.*model that serves"),
        (_corrupt_examples, {}, "tfrecord-00001-of-00003.gz is damaged after.*Write it again"),
        (_corrupt_records, {}, "partition-00002-of-00005.ofbr"),
        (_empty_split, {}, "split 'train'.*no example in 3 files"),
        (_no_files, {}, "Split-train.*matches no file"),
        (None, {"label_feature": "tips"}, "split 'train'.*no label feature 'tips'.*Set label_fea"),
        (_some_without_label, {}, "00002-of-00003.gz.*1 of 2 have no 'label'.*Fill the feature"),
        (_other_schema, {}, "00002-of-00003.gz.*do not have the types.*schema of all files the"),
        (None, {"splits": ["test"]}, r"splits must be among \['train', 'eval'\]. .* \['test'\]"),
        (None, {"missing": "error"}, "1 of .* have no usable forward record.*Set missing='unif"),
    ],
)
def test_bad_input_names_component_and_remedy_and_leaves_nothing(
    data, as_examples, as_records, sample, tmp_path, damage, arguments, message
):
    examples, records = as_examples(data), as_records(data.ids[1:], data.logits[1:])
    if damage:
        damage(tmp_path)
    with pytest.raises(ValueError, match=f"(?s)^OFBSampler: .*{message}"):
        sample(examples, records, **arguments)
    for name in ("sampled", "sampled-statistics"):
        directory = tmp_path / name
        assert not directory.exists() or not list(directory.iterdir())


def test_records_of_another_width(data, examples, as_records, sample):
    records = as_records(data.ids, np.zeros((3000, 3), np.float32))
    with pytest.raises(ValueError, match="1 output for task='binary', got 3.*model that serves"):
        sample(examples, records)


def test_examples_that_are_not_raw_tf_examples(data, examples, as_examples, records, sample):
    with pytest.raises(ValueError, match="'importance_weight' already.*it was drawn from"):
        sample(as_examples(data, importance_weight=1.0, name="sampled-before"), records)
    examples.set_string_custom_property("payload_format", "FORMAT_PARQUET")
    with pytest.raises(ValueError, match="TF_EXAMPLE. Received: FORMAT_PARQUET.*payload_format"):
        sample(examples, records)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rate": 0.0}, r"rate must be in \(0, 1\]. Received: 0.0"),
        ({"rate": 1.5}, r"rate must be in \(0, 1\]. Received: 1.5"),
        ({"uniform_mix": -0.1}, r"uniform_mix must be in \[0, 1\]. Received: -0.1"),
        ({"policy": "top_loss"}, "policy must be one of .* Received: 'top_loss'"),
        ({"task": "ranking"}, "task must be one of .* Received: 'ranking'"),
        ({"missing": "skip"}, "missing must be one of .* Received: 'skip'"),
        ({"score": "entropy"}, "score must be one of .* Received: 'entropy'"),
        ({"max_age": -1.0}, "max_age must be at least 0. Received: -1.0"),
        ({"as_of": -1}, "as_of must be at least 0. Received: -1"),
        ({"splits": []}, r"splits must name at least one split. Received: \[\]"),
        ({"num_outputs": -1}, "num_outputs must be at least 0. Received: -1"),
    ],
)
def test_construction_errors(parameters, message):
    from tfx.types import channel_utils, standard_artifacts

    from tfx_components import artifacts

    with pytest.raises(ValueError, match=f"^OFBSampler: {message}"):
        OFBSampler(
            examples=channel_utils.as_channel([standard_artifacts.Examples()]),
            forward_records=channel_utils.as_channel([artifacts.ForwardRecords()]),
            **{"task": "binary"} | parameters,
        )
