# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPO/blob/main/colab/tfx_pipeline.ipynb)
#
# # The TFX components, one by one
#
# In a TFX pipeline three components train on one example in ten:
#
# | component | from | to |
# |---|---|---|
# | `ForwardRecordGen` | what serving or BulkInferrer logged | forward records: id and logit |
# | `OFBSampler` | examples, forward records | a tenth of the examples, with weights |
# | `SamplingValidator` | the sampler's statistics | a blessing, or reasons against it |
#
# This notebook runs them in an `InteractiveContext`, from a CSV file to a model that was trained
# on the sample. It takes about three minutes on a CPU, one of them for the import of TFX.
#
# **Python**: TFX 1.16 runs on Python 3.10 and 3.11. Colab's own Python is newer, so there the
# next cell stops and says so. Run this notebook with a local runtime then
# (`make setup-tfx && .venv-tfx/bin/python -m ipykernel install --user --name ofb-tfx` in a
# checkout), or choose an older runtime version in Colab's menu, if it offers one with Python 3.11.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ofb_tf") is None or importlib.util.find_spec("tfx") is None:
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        raise RuntimeError(f"TFX 1.16 needs Python 3.10 or 3.11. This is {sys.version.split()[0]}.")
    # uv, because pip on Python 3.11 refuses tfx 1.16, which runs there.
    source = "https://github.com/OWNER/REPO"
    lock = "https://raw.githubusercontent.com/OWNER/REPO/main/requirements/tfx.txt"
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], check=True)
    subprocess.run([*uv, "-r", lock], check=True)
    subprocess.run([*uv, "--no-deps", f"ofb-tf @ git+{source}"], check=True)

# %%
import csv
import json
import logging
import os
import pathlib
import tempfile
import warnings

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
warnings.filterwarnings("ignore")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from absl import logging as absl_logging
from tfx import v1 as tfx
from tfx.orchestration.experimental.interactive.interactive_context import InteractiveContext

import ofb_tf
from ofb_tf.datasets import ClickStream
from tfx_components import artifacts
from tfx_components.forward_record_gen import ForwardRecordGen
from tfx_components.ofb_sampler import OFBSampler
from tfx_components.pipelines.comparison import ModelComparison
from tfx_components.sampling_validator import SamplingValidator

absl_logging.set_verbosity(absl_logging.ERROR)
for name in (None, "tensorflow", "apache_beam"):
    logging.getLogger(name).setLevel(logging.ERROR)
ROOT = pathlib.Path(tempfile.mkdtemp())
BEAM = ["--direct_running_mode=in_memory", "--direct_num_workers=1"]
print("TFX", tfx.__version__, "TensorFlow", tf.__version__, "Python", sys.version.split()[0])

# %% [markdown]
# ## 1. A log of impressions
#
# 30,000 impressions as a CSV file: an id, whether it was clicked, thirteen numbers and eight
# categories. About 5% are clicked. For your own, put your files in the directory, and the names of
# your columns in this cell and in the settings below.

# %%
NUM_EXAMPLES = 30_000
stream = ClickStream(num_examples=NUM_EXAMPLES, positive_rate=0.05, drift=0.0, seed=1)
generated = stream.generate(tf.range(NUM_EXAMPLES, dtype=tf.int64))
fields = {name: tensor.numpy() for name, tensor in generated.items()}
NUMBERS = {f"number_{k}": np.log(fields["dense"][:, k]) for k in range(13)}
CATEGORIES = {f"category_{k}": fields["categorical"][:, k] for k in range(8)}
SLICE = "category_0"

(ROOT / "csv").mkdir()
with open(ROOT / "csv" / "impressions.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["example_id", "clicked", *NUMBERS, *CATEGORIES])
    columns = [fields["example_id"], fields["label"], *NUMBERS.values(), *CATEGORIES.values()]
    writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
print(f"{NUM_EXAMPLES:,} rows of", ", ".join(["example_id", "clicked", *NUMBERS, *CATEGORIES]))
print(f"clicked: {fields['label'].mean():.1%}")

# %% [markdown]
# ## 2. Examples and schema
#
# `CsvExampleGen` turns the file into tf.Examples in three splits by a hash: `base` trains the
# model that serves now, `train` is what arrives afterwards, `eval` stays untouched.

# %%
context = InteractiveContext(pipeline_root=str(ROOT / "pipeline"), beam_pipeline_args=BEAM)
Split = tfx.proto.SplitConfig.Split
example_gen = tfx.components.CsvExampleGen(
    input_base=str(ROOT / "csv"),
    output_config=tfx.proto.Output(
        split_config=tfx.proto.SplitConfig(
            splits=[
                Split(name="base", hash_buckets=2),
                Split(name="train", hash_buckets=12),
                Split(name="eval", hash_buckets=6),
            ]
        )
    ),
)
context.run(example_gen)
examples = example_gen.outputs["examples"]

statistics_gen = tfx.components.StatisticsGen(examples=examples)
context.run(statistics_gen)
schema_gen = tfx.components.SchemaGen(
    statistics=statistics_gen.outputs["statistics"], infer_feature_shape=True
)
context.run(schema_gen)
schema = schema_gen.outputs["schema"]
print(examples.get()[0].split_names)

# %% [markdown]
# ## 3. The model that serves
#
# `tfx_components.pipelines.trainer` builds an `OFBModel` from the schema. What it exports answers
# with predictions, logits and the example's id. A model of your own needs only that signature:
# `ofb_tf.serving.export_recording_model` writes it.

# %%
SETTINGS = {
    "task": "binary",
    "label_feature": "clicked",
    "id_feature": "example_id",
    "categorical": list(CATEGORIES),
    "epochs": 4,
}


def trainer(name, examples, split, **more):
    return tfx.components.Trainer(
        run_fn="tfx_components.pipelines.trainer.run_fn",
        examples=examples,
        schema=schema,
        train_args=tfx.proto.TrainArgs(splits=[split]),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
        custom_config=SETTINGS,
        **more,
    ).with_id(name)


base_trainer = trainer("BaseTrainer", examples, "base")
context.run(base_trainer)
base_model = base_trainer.outputs["model"]

# %% [markdown]
# ## 4. Forward records
#
# BulkInferrer stands for the serving job: it runs the model over `train` and logs every answer.
# `ForwardRecordGen` keeps id and logit of each. From a real server it reads prediction logs
# (`prediction_log_pattern=`) or the files of a `ForwardRecordWriter` (`records_pattern=`).

# %%
bulk_inferrer = tfx.components.BulkInferrer(
    examples=examples,
    model=base_model,
    data_spec=tfx.proto.DataSpec(example_splits=["train"]),
    model_spec=tfx.proto.ModelSpec(model_signature_name=["serving_default"]),
)
context.run(bulk_inferrer)
record_gen = ForwardRecordGen(
    inference_result=bulk_inferrer.outputs["inference_result"],
    id_feature="example_id",
    model_version=1,
    num_partitions=2,
)
context.run(record_gen)


def size(directory):
    return sum(path.stat().st_size for path in pathlib.Path(directory).rglob("*") if path.is_file())


records = ofb_tf.ForwardRecords.load(record_gen.outputs["forward_records"].get()[0].uri)
logged = bulk_inferrer.outputs["inference_result"].get()[0].uri
print(f"{len(records):,} records; BulkInferrer's log of them has {size(logged) / 1e6:.1f} MB")
for example_id, logits in list(zip(records.example_ids, records.logits, strict=True))[:3]:
    print(f"example {example_id}: logit {logits[0]:.3f}")

# %% [markdown]
# ## 5. Sample
#
# `OFBSampler` joins the records by id, computes how hard every example would pull on the model,
# and writes one in ten of `train` with a feature `importance_weight`. The other splits pass
# through as they are.

# %%
sampler = OFBSampler(
    examples=examples,
    forward_records=record_gen.outputs["forward_records"],
    task="binary",
    label_feature="clicked",
    id_feature="example_id",
    splits=["train"],
    slice_features=[SLICE],
    rate=0.1,
    seed=17,
)
context.run(sampler)

_, splits = artifacts.read_statistics(sampler.outputs["sampling_statistics"].get()[0].uri)
total = splits["train"].total
print(f"examples               {total.num_examples:,}")
print(f"with a record          {total.coverage:.1%}")
print(f"selected               {total.num_selected:,}, a rate of {total.realized_rate:.4f}")
print(f"weights                mean {total.mean_weight:.3f}, largest {total.max_weight:.2f}")
print(f"effective sample size  {total.effective_sample_size:.2f} of the selected")

# %% [markdown]
# Two of these are worth watching in production. **With a record** falls when serving loses records
# or the ids do not match. The **effective sample size** falls when a few examples carry most of
# the weight.
#
# The weights themselves, by label: clicks are rare and pull hard, so they are likely to be chosen
# and weigh little. The weighted share of clicks is that of the whole split, within chance.

# %%
sampled_uri = sampler.outputs["sampled_examples"].get()[0].uri


def column(uri, split, name, kind):
    files = sorted(str(path) for path in pathlib.Path(uri, f"Split-{split}").iterdir())
    spec = {name: tf.io.FixedLenFeature([], kind)}
    serialized = tf.data.TFRecordDataset(files, "GZIP").batch(100_000).get_single_element()
    return tf.io.parse_example(serialized, spec)[name].numpy()


weights = column(sampled_uri, "train", "importance_weight", tf.float32)
clicked = column(sampled_uri, "train", "clicked", tf.int64)
all_clicked = column(examples.get()[0].uri, "train", "clicked", tf.int64)
weighted_share = (weights * clicked).sum() / weights.sum()
print(f"clicks in the whole split:     {all_clicked.mean():6.2%} ({all_clicked.sum()})")
print(f"clicks in the sample:          {clicked.mean():6.2%} ({clicked.sum()})")
print(f"the same with weights applied: {weighted_share:6.2%}")

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
bins = np.linspace(0, weights.max(), 31)
for value, name, colour in ((0, "not clicked", "#6b6b6b"), (1, "clicked", "#0b6bcb")):
    axis.hist(weights[clicked == value], bins, color=colour, alpha=0.75, label=name)
axis.axvline(1, color="#1c1c1d", linewidth=0.8)
top = axis.get_ylim()[1]
axis.annotate("uniform sampling", (1, top), (4, -12), textcoords="offset points", fontsize=9)
axis.set_xlabel("importance weight")
axis.set_ylabel("selected examples")
axis.set_title("Weights of the sample", loc="left")
axis.legend(frameon=False, loc="upper right")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## 6. Validate
#
# `SamplingValidator` compares the statistics with thresholds, and blesses the sample or says what
# is wrong. In a pipeline the Trainer is put under `tfx.dsl.Cond` on the blessing; an
# InteractiveContext has no conditions, so we look ourselves.

# %%
validator = SamplingValidator(
    sampling_statistics=sampler.outputs["sampling_statistics"], min_coverage=0.95
)
context.run(validator)
blessing = validator.outputs["blessing"].get()[0]
print("blessed:", bool(blessing.get_int_custom_property(artifacts.BLESSED)))

# %% [markdown]
# A threshold that the sample does not meet gives no blessing, and a reason. Here it is one that no
# sample with weights could meet:

# %%
strict = SamplingValidator(
    sampling_statistics=sampler.outputs["sampling_statistics"], min_effective_sample_size=0.99
).with_id("StrictValidator")
context.run(strict)
refused = strict.outputs["blessing"].get()[0]
print((pathlib.Path(refused.uri) / "anomalies.txt").read_text())

# %% [markdown]
# ## 7. Train on the sample
#
# The next model goes on from the one that serves, on a tenth of `train`, with the weights.
# `ModelComparison` measures both on `eval`, which nobody trained on, and blesses the better one
# for Pusher.

# %%
next_trainer = trainer(
    "NextTrainer", sampler.outputs["sampled_examples"], "train", base_model=base_model
)
context.run(next_trainer)
comparison = ModelComparison(
    examples=examples,
    model=next_trainer.outputs["model"],
    baseline=base_model,
    task="binary",
    label_feature="clicked",
    split="eval",
)
context.run(comparison)
uri = comparison.outputs["evaluation"].get()[0].uri
figures = json.loads(pathlib.Path(uri, "comparison.json").read_text())
for model in ("baseline", "candidate"):
    loss, calibration = figures[model]["loss"], figures[model]["calibration"]
    print(f"{model:10} loss {loss:.4f}, calibration {calibration:.2f}")

# %%
assert total.coverage == 1.0, "every example of train must have a record"
assert abs(total.num_selected - total.expected_selected) < 5 * total.variance_selected**0.5
assert weights.max() <= 5, "the uniform mix of 0.2 bounds the weights by 5"
assert clicked.sum() > 0.5 * all_clicked.sum(), "most clicks must be in the sample"
assert abs(weighted_share / all_clicked.mean() - 1) < 0.25, "the weights must undo the selection"
assert blessing.get_int_custom_property(artifacts.BLESSED) == 1
assert refused.get_int_custom_property(artifacts.BLESSED) == 0
assert figures["candidate"]["loss"] < figures["baseline"]["loss"]

# %% [markdown]
# ## Where to go from here
#
# - `tfx_components/pipelines/graph.py` has these nodes as one pipeline, with the condition and a
#   Pusher; `local.py` runs it under LocalDagRunner, `kubeflow.py` compiles it for Kubeflow
#   Pipelines v2.
# - `docs/SCALING.md` says what each component reads, moves and holds, and how to run them on Flink
#   or Dataflow: by `beam_pipeline_args`, as here.
