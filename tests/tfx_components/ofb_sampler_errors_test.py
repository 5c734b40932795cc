"""What OFBSampler refuses: each error names the component and the remedy, and leaves nothing."""

import numpy as np
import pytest
from tfx_testing import serialize, write_tfrecords

from tfx_components.ofb_sampler import OFBSampler


def _no_manifest(data, as_examples, as_records, tmp_path):
    records = as_records(data.ids, data.logits)
    (tmp_path / "records" / "manifest.json").unlink()
    return as_examples(data), records, {}


def _other_width(data, as_examples, as_records, tmp_path):
    return as_examples(data), as_records(data.ids, np.zeros((3000, 3), np.float32)), {}


def _named_width(data, as_examples, as_records, tmp_path):
    return as_examples(data), as_records(data.ids, data.logits), {"num_outputs": 2}


def _corrupt_examples(data, as_examples, as_records, tmp_path):
    path = tmp_path / "examples" / "Split-train" / "data_tfrecord-00001-of-00003.gz"
    examples = as_examples(data)
    path.write_bytes(path.read_bytes()[:-500])
    return examples, as_records(data.ids, data.logits), {}


def _corrupt_records(data, as_examples, as_records, tmp_path):
    records = as_records(data.ids, data.logits)
    path = tmp_path / "records" / "partition-00002-of-00005.ofbr"
    path.write_bytes(path.read_bytes()[:-500])
    return as_examples(data), records, {}


def _empty_split(data, as_examples, as_records, tmp_path):
    examples = as_examples(data)
    for path in (tmp_path / "examples" / "Split-train").iterdir():
        write_tfrecords(path, [])
    return examples, as_records(data.ids, data.logits), {}


def _no_files(data, as_examples, as_records, tmp_path):
    examples = as_examples(data)
    for path in (tmp_path / "examples" / "Split-train").iterdir():
        path.unlink()
    return examples, as_records(data.ids, data.logits), {}


def _no_label(data, as_examples, as_records, tmp_path):
    return as_examples(data), as_records(data.ids, data.logits), {"label_feature": "tips"}


def _some_without_label(data, as_examples, as_records, tmp_path):
    examples = as_examples(data)
    path = tmp_path / "examples" / "Split-train" / "data_tfrecord-00002-of-00003.gz"
    write_tfrecords(path, [serialize({"id": 1, "label": 0}), serialize({"id": 2})])
    return examples, as_records(data.ids, data.logits), {}


def _other_schema(data, as_examples, as_records, tmp_path):
    examples = as_examples(data)
    path = tmp_path / "examples" / "Split-train" / "data_tfrecord-00002-of-00003.gz"
    write_tfrecords(path, [serialize({"id": 1, "label": 0.5})])
    return examples, as_records(data.ids, data.logits), {}


def _unknown_split(data, as_examples, as_records, tmp_path):
    return as_examples(data), as_records(data.ids, data.logits), {"splits": ["test"]}


def _payload(data, as_examples, as_records, tmp_path):
    examples = as_examples(data)
    examples.set_string_custom_property("payload_format", "FORMAT_PARQUET")
    return examples, as_records(data.ids, data.logits), {}


def _sampled_already(data, as_examples, as_records, tmp_path):
    return as_examples(data, importance_weight=1.0), as_records(data.ids, data.logits), {}


def _missing_error(data, as_examples, as_records, tmp_path):
    return as_examples(data), as_records(data.ids[1:], data.logits[1:]), {"missing": "error"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_no_manifest, "is not an ofb.ForwardRecords artifact.*Make one with ForwardRecordGen"),
        (_other_width, "1 output for task='binary', got 3.*model that serves"),
        (_named_width, "num_outputs=2, got 1.*model that serves"),
        (_corrupt_examples, "data_tfrecord-00001-of-00003.gz is damaged after.*Write it again"),
        (_corrupt_records, "partition-00002-of-00005.ofbr"),
        (_empty_split, "split 'train'.*split is empty"),
        (_no_files, "holds no data files"),
        (_no_label, "split 'train'.*no label feature 'tips'.*'label'.*Set label_feature"),
        (_some_without_label, "00002-of-00003.gz.*1 of 2 have no 'label'.*Fill the feature"),
        (_other_schema, "00002-of-00003.gz.*do not have the types.*schema of all files the same"),
        (_unknown_split, r"splits must be among \['train', 'eval'\]. Received: \['test'\]"),
        (_payload, "FORMAT_TF_EXAMPLE. Received: FORMAT_PARQUET.*payload_format"),
        (_sampled_already, "'importance_weight' already.*that ExampleGen made"),
        (_missing_error, "1 of .* have no usable forward record.*Set missing='uniform'"),
    ],
)
def test_bad_input_names_component_and_remedy_and_leaves_nothing(
    data, as_examples, as_records, sample, tmp_path, make, message
):
    examples, records, kwargs = make(data, as_examples, as_records, tmp_path)
    with pytest.raises(ValueError, match=f"(?s)^OFBSampler: .*{message}"):
        sample(examples, records, **kwargs)
    for name in ("sampled", "sampled-statistics"):
        directory = tmp_path / name
        assert not directory.exists() or not list(directory.iterdir())


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
        ({"max_age": -1.0}, "max_age must be seconds.* Received: -1.0"),
        ({"as_of": -1}, "as_of must be microseconds.* Received: -1"),
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
