# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/REPO/blob/main/colab/choosing_a_policy.ipynb)
#
# # Choosing a policy on your own data
#
# Which examples should a model train on, and how few are enough? The answer depends on the data.
# `ofb compare` finds it by simulation: a snapshot of a model serves the stream and records its
# outputs, each policy selects examples by these records, a model trains on the selection, and all
# models are evaluated on the same held-out examples.
#
# This notebook runs it on a generated dataset and interprets the result. To use your own data,
# change **one cell**, the one below "The dataset". It runs on a CPU in about two minutes.

# %%
import importlib.util

from IPython import get_ipython

if importlib.util.find_spec("ofb_tf") is None:  # as on a fresh Colab
    get_ipython().run_line_magic(
        "pip", "install --quiet 'ofb-tf[report] @ git+https://github.com/OWNER/REPO'"
    )

# %%
import json
import logging
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from IPython.display import Markdown, display

from ofb_tf import cli
from ofb_tf.datasets import describe_tfds, load_tfds

logging.getLogger("tensorflow").setLevel(logging.ERROR)
absl_logging.set_verbosity(absl_logging.ERROR)
tfds.disable_progress_bar()
DATA_DIR = tempfile.mkdtemp()
OUTPUT_DIR = "compare"  # keep it: finished runs are not repeated

# %% [markdown]
# ## The dataset
#
# Any TFDS dataset with `supervised_keys` works if its inputs are numbers, small categories or
# images and its output is a class or a float. Here we generate click fraud: 30,000 clicks on ads,
# 4% of them fraudulent. The probability of fraud depends on all features together.


# %%
class ClickFraud(tfds.core.GeneratorBasedBuilder):
    """Generated clicks; a hidden network maps the features to the probability of fraud."""

    VERSION = tfds.core.Version("1.0.0")
    SIZES = {"train": 30_000, "test": 10_000}

    def _info(self):
        features = {
            "behaviour": tfds.features.Tensor(shape=(12,), dtype=np.float32),
            "device": tfds.features.ClassLabel(names=["phone", "tablet", "desktop"]),
            "hour": tfds.features.ClassLabel(num_classes=24),
            "fraud": tfds.features.ClassLabel(names=["no", "yes"]),
        }
        inputs = {name: name for name in ("behaviour", "device", "hour")}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=(inputs, "fraud"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(size) for split, size in self.SIZES.items()}

    def _generate_examples(self, size):
        hidden, rng = np.random.default_rng(0), np.random.default_rng(size)
        first, second = hidden.normal(size=(12, 8)), hidden.normal(size=8)
        by_device, by_hour = hidden.normal(size=3), hidden.normal(size=24)
        for number in range(size):
            behaviour = rng.normal(size=12).astype(np.float32)
            device, hour = int(rng.integers(3)), int(rng.integers(24))
            logit = np.tanh(behaviour @ first) @ second + by_device[device] + by_hour[hour]
            fraud = int(rng.random() < 1 / (1 + np.exp(1.5 * (5.3 - logit))))
            example = {"behaviour": behaviour, "device": device, "hour": hour, "fraud": fraud}
            yield number, example


ClickFraud(data_dir=DATA_DIR).download_and_prepare()
DATASET = "click_fraud"

# %% [markdown]
# For your own dataset, set `DATASET` to its TFDS name and `DATA_DIR` to the directory where it is
# prepared, and delete the rest of the cell. `load_tfds` gives every example a stable id, by which
# its record is found.

# %%
print(describe_tfds(DATASET, data_dir=DATA_DIR))
train = load_tfds(DATASET, "train", data_dir=DATA_DIR)
print(next(iter(train.as_numpy_iterator())))
labels = [batch["label"] for batch in train.batch(4096).as_numpy_iterator()]
print(f"fraudulent: {np.concatenate(labels).mean():.1%}")

# %% [markdown]
# ## The comparison
#
# One command compares policies, rates and ages of the serving snapshot, with three seeds each. In a
# shell, run `ofb compare --datasets=click_fraud ...`; here we call the same function.
#
# - `--policies`: the policies to compare. `uniform` and `everything` always run, as the two
#   baselines.
# - `--rates`: the fraction of the stream to train on.
# - `--refresh_intervals`: windows (of 640 examples) between two snapshots of the serving model; 0
#   takes one snapshot per pass. Older snapshots mean older scores.
# - `--passes`: the number of passes over the data.
#
# `OUTPUT_DIR` keeps every finished run, so running the cell again takes no time.

# %%
POLICIES = ("importance", "loss_matching", "selective_backprop", "top_loss")
RATES = (0.05, 0.1, 0.3)
ONCE_A_PASS, OFTEN = 0, 20
arguments = [
    "compare",
    f"--datasets={DATASET}",
    f"--data_dir={DATA_DIR}",
    f"--policies={','.join(POLICIES)}",
    f"--rates={','.join(map(str, RATES))}",
    f"--refresh_intervals={OFTEN},{ONCE_A_PASS}",
    "--passes=3",
    "--seeds=3",
    f"--output_dir={OUTPUT_DIR}",
    f"--markdown={OUTPUT_DIR}/RESULTS.md",
    "--noprogress",
]
assert cli.main(arguments) == 0

# %% [markdown]
# ## The output
#
# `report.html` has charts and tables; `results.json` and `results.csv` have the data. Here is the
# table for rate 0.1 with fresh snapshots.

# %%
content = json.loads(pathlib.Path(OUTPUT_DIR, "results.json").read_text())
by_setting = {
    (one["config"]["rate"], one["config"]["refresh_interval"]): one["policies"]
    for one in content["comparisons"]
}
tables = pathlib.Path(OUTPUT_DIR, "RESULTS.md").read_text().split("\n### ")
table = next(text for text in tables if text.startswith(f"{DATASET}, rate 0.1\n"))
display(Markdown(f"### {table}"))

# %% [markdown]
# Read it from left to right:
#
# 1. **test_loss**: lower is better. Compare `uniform` with `everything` first. If they agree within
#    their errors, stop here: a uniform sample is good enough, and there is nothing to gain.
# 2. **Gap closure**: 0 for `uniform`, 1 for `everything`. Below 0, a policy is worse than uniform
#    sampling.
# 3. **Calibration**: mean confidence over accuracy, which should be near 1 if predictions feed an
#    auction. `top_loss` and `selective_backprop` have no importance weights: they train on far more
#    fraud than there is, and the model's confidence is much too low.
# 4. **ESS**: effective sample size of the weights, as a fraction of the selected examples.
# 5. **Backward**: number of examples in the backward pass, the cost of the policy.
#
# ## Which policy, at which rate

# %%
LOOKS = {
    "importance": ("#0b6bcb", "s"),
    "loss_matching": ("#b35309", "^"),
    "selective_backprop": ("#8b3fb0", "v"),
    "top_loss": ("#c0245a", "P"),
}
LOWEST = -1.0
figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
titles = {
    OFTEN: "snapshot refreshed every 20 windows",
    ONCE_A_PASS: "snapshot refreshed once a pass",
}
for axis, (interval, title) in zip(axes, titles.items(), strict=True):
    for number, (policy, (colour, marker)) in enumerate(LOOKS.items()):
        for position, rate in enumerate(RATES):
            figures = by_setting[rate, interval][policy]
            closure, error = figures["gap_closure"], figures["gap_closure_standard_error"]
            x = position + 0.15 * (number - 1.5)
            if closure < LOWEST:  # below the frame: write the value instead of drawing a marker
                place = (x, LOWEST + 0.15 * (number % 2))
                axis.annotate(f"{closure:.0f} ↓", place, color=colour, ha="center", fontsize=9)
                continue
            axis.errorbar(x, closure, error, color=colour, marker=marker, capsize=2)
    for level in (0, 1):
        axis.axhline(level, color="#9a9a9a", linewidth=0.8, zorder=0)
    axis.set_xticks(range(len(RATES)), [f"rate {rate:g}" for rate in RATES])
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_ylim(LOWEST - 0.1, 2)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("gap closure: 0 uniform, 1 everything")
handles = [plt.Line2D([], [], color=c, marker=m, linestyle="") for c, m in LOOKS.values()]
figure.legend(handles, LOOKS, loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown]
# - `importance` closes most of the gap at every rate while snapshots are fresh, and keeps the model
#   calibrated. If scores are a whole pass old (right), it gains less, because they describe an
#   older model. If your serving model is rarely refreshed, use the right half.
# - `top_loss` and `selective_backprop` depend strongly on the rate. At rate 0.3 they may even win
#   here; at rate 0.1 they are far worse than uniform sampling (an arrow marks a value below the
#   frame).
# - `loss_matching` selects examples whose mean loss equals the window's. Here it gains little.
#
# ## Which rate
#
# Compare the loss with its cost. Each point is one rate.

# %%
figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
for policy, colour, marker in (("uniform", "#6b6b6b", "o"), ("importance", "#0b6bcb", "s")):
    chosen = [by_setting[rate, OFTEN][policy] for rate in RATES]
    axis.errorbar(
        [figures["backward_examples"] for figures in chosen],
        [figures["mean"] for figures in chosen],
        [figures["standard_error"] for figures in chosen],
        color=colour, marker=marker, capsize=2, label=policy,
    )  # fmt: skip
everything = by_setting[RATES[0], OFTEN]["everything"]
axis.errorbar(
    everything["backward_examples"], everything["mean"], everything["standard_error"],
    color="#1d8a4e", marker="D", capsize=2, linestyle="", label="everything",
)  # fmt: skip
axis.set_xscale("log")
total = everything["backward_examples"]
axis.set_xticks(
    [rate * total for rate in (*RATES, 1)],
    [f"{rate * total:,.0f}\nrate {rate:g}" for rate in (*RATES, 1)],
)
axis.minorticks_off()
axis.set_xlabel("examples in the backward pass")
axis.set_ylabel("test loss")
axis.legend(frameon=False)
axis.grid(axis="y", color="#e5e5e5")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
closures = {
    interval: [by_setting[rate, interval]["importance"]["gap_closure"] for rate in RATES]
    for interval in (OFTEN, ONCE_A_PASS)
}
tenth = by_setting[0.1, OFTEN]
assert min(closures[OFTEN]) > 0.5, "importance must close at least half of the gap"
assert np.mean(closures[OFTEN]) > np.mean(closures[ONCE_A_PASS]), "old scores must say less"
assert tenth["top_loss"]["gap_closure"] < 0, "without weights, one in ten misleads"
assert abs(tenth["importance"]["calibration"] - 1) < 0.05
assert by_setting[0.05, OFTEN]["importance"]["mean"] < tenth["uniform"]["mean"]

# %% [markdown]
# Lower the rate until the blue line rises by more than you can afford. Here, `importance` at rate
# 0.05 beats a uniform sample at rate 0.1.
#
# ## Next steps
#
# - More conditions: `--label_noise=0,0.1`, `--missing_records=0,0.2`, `--outliers=0,0.05` (for
#   regression); `ofb compare --help` lists them all. Wrong labels hurt every policy that favours
#   large losses: try that first if your labels are not clean.
# - Use at least five seeds, and all your data, before you decide.
# - `docs/CHOOSING.md` links each recommendation to its table in `docs/RESULTS.md`.
