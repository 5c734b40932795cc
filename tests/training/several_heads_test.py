"""Models with several heads, labels that are vectors, and losses of tokens: record, sample, fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import ofb_tf
from ofb_tf.selection import get_policy, window
from ofb_tf.selection.heads import Heads, combine
from ofb_tf.serving import RecordPredictions
from ofb_tf.training import callbacks, step
from tests import reference
from tests.training.models import assert_same_weights

N = 96
RNG = np.random.default_rng(7)
IDS = np.arange(N) * 31 + 5
X = RNG.normal(size=(N, 3)).astype(np.float32)
CLICK = (X[:, 0] > 0).astype(np.int64)
CONVERSION = np.where(CLICK == 1, RNG.integers(0, 2, N), -1)  # known only after a click
TASKS = {"conversion": "binary", "click": "binary"}
FACTORS = {"click": 1.0, "conversion": 3.0}
LOSSES = {name: keras.losses.BinaryCrossentropy(from_logits=True) for name in FACTORS}


def two_heads(cls=keras.Model, *, as_list=False, jit_compile=False, **settings):
    keras.utils.set_random_seed(1)
    x = keras.Input((3,), name="x")
    hidden = keras.layers.Dense(4, activation="tanh")(x)
    outputs = {name: keras.layers.Dense(1, name=name)(hidden) for name in FACTORS}
    losses, factors = LOSSES, FACTORS
    if as_list:
        outputs, losses, factors = (list(each.values()) for each in (outputs, LOSSES, FACTORS))
    model = cls(x, outputs, **settings)
    optimizer = keras.optimizers.SGD(0.5)
    model.compile(optimizer, losses, loss_weights=factors, jit_compile=jit_compile)
    return model


@pytest.fixture(name="records", scope="module")
def _records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    with ofb_tf.ForwardRecordWriter(directory) as writer:
        recorder = RecordPredictions(writer, IDS, logits_output=["conversion", "click"])
        outputs = two_heads().predict(X, callbacks=[recorder], verbose=0)
    records = ofb_tf.ForwardRecords.load(directory)
    side_by_side = np.concatenate([outputs["click"], outputs["conversion"]], axis=1)
    np.testing.assert_array_equal(records.logits, side_by_side)  # in the order of names
    return records


def sampled(elements, records, **settings):
    sampler = ofb_tf.ofb_sample(
        **{"records": records, "task": TASKS, "loss_weights": FACTORS, "rate": 0.25, "seed": 3}
        | {"window_size": N, "batch_size": 8, "redraw_each_iteration": False}
        | settings
    )
    return tf.data.Dataset.from_tensor_slices(elements).apply(sampler)


TUPLES = ({"example_id": IDS, "x": X}, {"click": CLICK, "conversion": CONVERSION})
DICTS = {"example_id": IDS, "x": X, "click": CLICK, "conversion": CONVERSION}


def test_one_selection_and_a_weight_for_each_head(records):
    seen = 0
    for x, y, weights in sampled(TUPLES, records):
        rows = [np.flatnonzero(i == IDS)[0] for i in x["example_id"].numpy()]
        known = CONVERSION[rows] >= 0
        np.testing.assert_array_equal(y["conversion"], np.where(known, CONVERSION[rows], 0))
        np.testing.assert_array_equal(weights["conversion"], weights["click"] * known)
        seen += len(rows)
    assert seen == N // 4


def joint_scores(logits):
    """By the formula, float64 `[n]`; click and conversion are the columns of logits."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    g = np.stack([p[:, 0] - CLICK, np.where(CONVERSION < 0, 0, 3 * (p[:, 1] - CONVERSION))])
    return np.sqrt((g**2).sum(0))


def test_the_score_is_the_joint_one(records):
    scores = joint_scores(records.logits)
    inclusion = reference.capped_pps(0.8 * scores / scores.sum() + 0.2 / N, N / 4)
    expected = dict(zip(IDS.tolist(), 0.25 / inclusion, strict=True))
    for x, _, weights in sampled(TUPLES, records):
        by_id = [expected[i] for i in x["example_id"].numpy().tolist()]
        np.testing.assert_allclose(weights["click"], by_id, rtol=1e-4)


def test_stock_keras_and_ofb_model_train_alike_by_the_losses_of_known_labels(records):
    tuples = sampled(TUPLES, records)
    dicts = sampled(DICTS, records, keep_record=True)
    stock = two_heads()
    before = two_heads()
    ours = two_heads(ofb_tf.OFBModel, label_key={"click": "click", "conversion": "conversion"})
    stock.fit(tuples.map(lambda x, y, w: (x["x"], y, w)), verbose=0)
    history = ours.fit(dicts, verbose=0).history
    assert_same_weights(stock, ours, atol=1e-6)
    # The same from its parts: one step after another by hand.
    by_hand = before
    optimizer = keras.optimizers.SGD(0.5)
    for e in dicts:
        known = tf.cast(e["conversion"] >= 0, tf.float32)
        with tf.GradientTape() as tape:
            outputs = by_hand(e["x"])
            click, conversion = (
                tf.nn.sigmoid_cross_entropy_with_logits(
                    tf.cast(tf.maximum(e[name], 0), tf.float32), outputs[name][:, 0]
                )
                for name in ("click", "conversion")
            )
            losses = click + 3.0 * known * conversion
            loss = tf.reduce_mean(e["importance_weight"] * losses)
        gradients = tape.gradient(loss, by_hand.trainable_weights)
        optimizer.apply_gradients(zip(gradients, by_hand.trainable_weights, strict=True))
    assert_same_weights(by_hand, ours, atol=1e-5)
    weights = np.concatenate([e["importance_weight"] for e in dicts])
    assert history["mean_weight"][0] == pytest.approx(weights.mean(), rel=1e-5)
    assert history["record_coverage"] == [pytest.approx(1.0)]
    assert history["score_correlation"][0] > 0.5  # recorded by the same weights


def test_labels_that_are_missing_are_never_nan(records):
    unknown = np.where(CONVERSION < 0, np.nan, CONVERSION).astype(np.float32)
    dataset = sampled((TUPLES[0], {"click": CLICK, "conversion": unknown}), records)
    model = two_heads()
    history = model.fit(dataset.map(lambda x, y, w: (x["x"], y, w)), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for (_, y, w), (_, y_int, w_int) in zip(dataset, sampled(TUPLES, records), strict=True):
        np.testing.assert_array_equal(y["conversion"], y_int["conversion"])
        np.testing.assert_array_equal(w["conversion"], w_int["conversion"])


def test_serialized_examples_may_lack_the_label_of_a_head(records):
    from tests.streams import serialized_example

    serialized = [
        serialized_example(example_id=IDS[i], x=X[i], click=CLICK[i])
        if CONVERSION[i] < 0
        else serialized_example(example_id=IDS[i], x=X[i], click=CLICK[i], conversion=CONVERSION[i])
        for i in range(N)
    ]
    spec = {
        "x": tf.io.FixedLenFeature([3], tf.float32),
        "click": tf.io.FixedLenFeature([], tf.int64),
        "conversion": tf.io.FixedLenFeature([], tf.int64, -1),
    }

    def parse(examples):
        parsed = tf.io.parse_example(examples, spec)
        return parsed["x"], {name: parsed[name] for name in TASKS}

    got = list(sampled(serialized, records, parse_fn=parse))
    expected = list(sampled(TUPLES, records))
    for (x, _, weights), (fields, _, same) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x, fields["x"])
        for name in TASKS:
            np.testing.assert_array_equal(weights[name], same[name])


def test_records_that_do_not_fit_the_heads(records):
    with pytest.raises(ValueError, match=r"must be \[3\] for the heads .*order of their names"):
        sampled(TUPLES, records, task=TASKS | {"third": "binary"}, label_key={
            "click": "click", "conversion": "conversion", "third": "click"})  # fmt: skip
    with pytest.raises(ValueError, match="label_key must name a field for each of the heads"):
        sampled(TUPLES, records, label_key={"click": "click"})
    with pytest.raises(ValueError, match="field 'conversion' is missing"):
        sampled((TUPLES[0], {"click": CLICK}), records)
    with pytest.raises(ValueError, match="loss_weights is for several heads"):
        sampled(TUPLES, records, task="binary")


@pytest.mark.parametrize("budget", ["window", "stream"])
def test_a_budget_over_heads_is_that_of_records_of_the_joint_score(records, budget):
    """Independent draws select by id and probability alone, so ids and weights are the same."""
    settings = {"budget": budget, "policy": ofb_tf.Importance(design="poisson")}
    settings |= {"window_size": N // 4, "batch_size": None}

    def weights(dataset):
        return {int(x["example_id"]): float(tf.nest.flatten(w)[0]) for x, _, w in dataset}

    of_heads = weights(sampled(TUPLES, records, **settings))
    scores = ofb_tf.ForwardRecords.from_columns(IDS, losses=joint_scores(records.logits))
    settings |= {"task": None, "loss_weights": None, "label_key": None}
    assert of_heads == pytest.approx(weights(sampled((TUPLES[0], CLICK), scores, **settings)))
    assert len(of_heads) > N // 8


def tensors(data):
    return tf.data.Dataset.from_tensor_slices(data).batch(N)


Y = {"click": CLICK, "conversion": CONVERSION}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("form", ["fields", "tuples", "list of outputs"])
def test_the_step_selects_by_the_joint_score(form, jit_compile, tmp_path):
    settings = {"backward_rate": 0.25, "jit_compile": jit_compile}
    settings |= {"label_key": {"click": "click", "conversion": "conversion"}}
    model = two_heads(ofb_tf.OFBModel, as_list=form == "list of outputs", **settings)
    stock = two_heads(jit_compile=jit_compile)
    outputs = stock.predict(X, verbose=0)
    logits = np.concatenate([outputs[name] for name in FACTORS], axis=1)
    joint = combine(
        Heads.of(TASKS, FACTORS), {"logits": tf.constant(logits)}, tensors(Y).get_single_element()
    )
    np.testing.assert_allclose(joint.record["loss"], joint_scores(logits), rtol=1e-5)
    key = ofb_tf.hashing.fold_in(tf.constant(0, tf.int64), tf.constant(0, tf.int64))
    indices, weights = window.select_count(
        get_policy("importance"), N // 4, "multiclass", joint.strata, joint.record, key
    )
    y = {name: np.maximum(label, 0)[indices] for name, label in Y.items()}
    known = {name: (label >= 0)[indices] * weights.numpy() for name, label in Y.items()}
    stock.train_on_batch(X[indices], y, sample_weight=known)
    recorder = callbacks.RecordForwardPasses(tmp_path, batch_size=N)
    data = (
        {"example_id": IDS, "x": X, **Y} if form == "fields" else ({"example_id": IDS, "x": X}, Y)
    )
    history = model.fit(tensors(data), callbacks=[recorder], verbose=0).history
    assert_same_weights(model, stock, atol=1e-6)
    assert history["realized_rate"] == [0.25]
    assert history["max_weight"] == [pytest.approx(weights.numpy().max())]
    # What the step leaves is what `ofb_sample` takes.
    left = ofb_tf.ForwardRecords.load(tmp_path)
    np.testing.assert_allclose(left.logits, logits, atol=1e-6)
    assert len(list(sampled(TUPLES, left, batch_size=None))) == N // 4


def test_a_step_over_heads_corrects_no_log_odds():
    model = two_heads(ofb_tf.OFBModel, backward_rate=0.25, estimator="log_odds")
    with pytest.raises(ValueError, match="corrects the logits of one head"):
        model.fit(tensors((X, Y)), verbose=0)


def test_models_with_a_list_of_outputs_train_alike(records):
    dataset = sampled(TUPLES, records, keep_record=True)
    of_dict, of_list = (two_heads(ofb_tf.OFBModel, as_list=each) for each in (False, True))
    of_dict.fit(dataset, verbose=0)
    of_list.fit(dataset, verbose=0)
    for name, (value,) in of_dict.history.history.items():
        assert of_list.history.history[name] == [pytest.approx(value, rel=1e-5)]
    assert_same_weights(of_dict, of_list, atol=1e-6)
    stock = two_heads(as_list=True)
    stock.fit(
        dataset.map(lambda x, y, w: (x["x"], tuple(y.values()), tuple(w.values()))), verbose=0
    )
    assert_same_weights(stock, of_list, atol=1e-6)


def test_a_list_of_outputs_is_recorded_by_the_names_of_layers(tmp_path, records):
    with ofb_tf.ForwardRecordWriter(tmp_path) as writer:
        recorder = RecordPredictions(writer, IDS, logits_output=["conversion", "click"])
        two_heads(as_list=True).predict(X, callbacks=[recorder], verbose=0)
    np.testing.assert_array_equal(ofb_tf.ForwardRecords.load(tmp_path).logits, records.logits)


@pytest.mark.parametrize(
    ("loss", "factors"),
    [(LOSSES, FACTORS), (LOSSES["click"], None), ([*LOSSES.values()], [*FACTORS.values()])],
    ids=["of each", "one for all", "list"],
)
def test_unknown_labels_count_nothing_without_a_selection_too(loss, factors):
    """`evaluate` and `fit` of `(x, y)` as they come, where a label of -1 would do as a class."""
    model = two_heads(ofb_tf.OFBModel)
    model.compile(keras.optimizers.SGD(0.0), loss, loss_weights=factors)
    outputs = {name: z[:, 0].astype(np.float64) for name, z in model.predict(X, verbose=0).items()}
    losses = {name: np.logaddexp(0, z) - z * Y[name] for name, z in outputs.items()}
    conversion = np.where(CONVERSION < 0, 0, losses["conversion"])
    expected = np.mean(losses["click"] + (1.0 if factors is None else 3.0) * conversion)
    figures = model.evaluate(tensors((X, Y)), verbose=0, return_dict=True)
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    history = model.fit(tensors((X, Y)), verbose=0).history
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert history["mean_weight"] == [1.0]


def test_tokens_are_no_labels_that_may_be_unknown():
    """A head of tokens whose padding is -1 keeps its weight."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    x = keras.Input((4, 2), name="x")
    outputs = {"tokens": keras.layers.Dense(3, name="tokens")(x)}
    model = ofb_tf.OFBModel(x, outputs)
    model.compile("sgd", {"tokens": loss})
    tokens = tf.constant([[0, 1, -1, -1], [2, -1, -1, -1]])
    _, y, weight = model.unpack((tf.zeros([2, 4, 2]), {"tokens": tokens}))
    np.testing.assert_array_equal(y["tokens"], tokens)
    np.testing.assert_array_equal(weight["tokens"], [1.0, 1.0])


def test_figures_of_heads_are_weighted_as_the_loss():
    logits = RNG.normal(size=(N, 2)).astype(np.float32)
    outputs = {name: tf.constant(logits[:, i : i + 1]) for i, name in enumerate(FACTORS)}
    weights = {name: tf.cast(label >= 0, tf.float32) for name, label in Y.items()}
    y = {name: tf.constant(np.maximum(label, 0)) for name, label in Y.items()}
    reading = step.read_step(LOSSES, None, FACTORS, y, outputs, weights)
    recorded, losses, norms = step.figures(reading, {"logits": tf.constant(logits)})
    np.testing.assert_allclose(norms, joint_scores(logits), rtol=1e-5)
    of_heads = np.logaddexp(0, logits) - logits * np.stack([CLICK, CONVERSION], axis=1)
    expected = of_heads[:, 0] + np.where(CONVERSION < 0, 0, 3 * of_heads[:, 1])
    for got in (recorded, losses):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_class_weights_are_refused_for_heads():
    with pytest.raises(
        ValueError, match=r"class_weight is for one label.*\['click', 'conversion'\]"
    ):
        two_heads(ofb_tf.OFBModel).fit(tensors((X, Y)), class_weight={0: 2.0}, verbose=0)


def test_records_of_the_largest_logits_are_refused_with_a_remedy(tmp_path):
    with ofb_tf.ForwardRecordWriter(tmp_path, top_k=1) as writer:
        recorder = RecordPredictions(writer, IDS, logits_output=["click", "conversion"])
        with pytest.raises(
            ValueError, match="not those of each head: make the writer without top_k"
        ):
            two_heads().predict(X, callbacks=[recorder], verbose=0)
        writer.write(IDS, np.zeros([N, 2], np.float32))
    with pytest.raises(ValueError, match="not those of each head. Write them without top_k"):
        sampled(TUPLES, str(tmp_path))


def test_labels_of_a_head_that_are_out_of_range_are_warned_of(records, capfd):
    list(sampled((TUPLES[0], Y | {"click": CLICK + 1}), records))
    error = capfd.readouterr().err
    assert (
        f"{CLICK.sum()} of {2 * N} labels of this window are out of range for task={{'click'"
        in error
    )
    list(sampled(TUPLES, records))
    assert "out of range" not in capfd.readouterr().err


def test_a_vector_of_labels_has_no_unknown_ones(records, capfd):
    """Keras takes no weight for a single label of a vector."""
    labels = np.stack([CLICK, CONVERSION], axis=1)
    settings = {"task": "binary", "loss_weights": None}
    for _, y, weight in sampled((TUPLES[0], labels), records, **settings):
        unknown = y.numpy()[:, 1] < 0  # as without a record: uniform, with weight 1
        np.testing.assert_array_equal(weight.numpy()[unknown], 1.0)
        assert (weight.numpy()[~unknown] != 1.0).all()
    assert "out of range for task='binary', among them [-1" in capfd.readouterr().err


def test_several_binary_labels_are_heads():
    labels = (X[:, :2] > 0).astype(np.int64)
    logits = RNG.normal(size=(N, 2)).astype(np.float32)
    records = ofb_tf.ForwardRecords.from_columns(IDS, logits)
    settings = {"task": "binary", "loss_weights": None}
    elements = {"example_id": IDS, "x": X, "label": labels}
    dataset = sampled(elements, records, keep_record=True, **settings)
    scores = np.linalg.norm(1 / (1 + np.exp(-logits)) - labels, axis=1)
    inclusion = reference.capped_pps(0.8 * scores / scores.sum() + 0.2 / N, N / 4)
    expected = dict(zip(IDS.tolist(), 0.25 / inclusion, strict=True))
    for e in dataset:
        by_id = [expected[i] for i in e["example_id"].numpy().tolist()]
        np.testing.assert_allclose(e["importance_weight"], by_id, rtol=1e-4)
    x = keras.Input((3,), name="x")
    model = ofb_tf.OFBModel(x, keras.layers.Dense(2)(x))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    assert model.fit(dataset, verbose=0).history["record_coverage"] == [pytest.approx(1.0)]


@pytest.mark.slow
@pytest.mark.parametrize("cls", [keras.Model, ofb_tf.OFBModel])
def test_a_language_model_records_samples_and_fits(cls, tmp_path):
    """Sequences of a random walk over eight tokens; the last tokens of some are padding."""
    keras.utils.set_random_seed(2)
    steps = RNG.integers(0, 2, (N, 12))
    text = np.cumsum(np.concatenate([RNG.integers(0, 8, (N, 1)), steps], axis=1), axis=1) % 8
    x, y = text[:, :-1], text[:, 1:]
    mask = np.arange(12) < RNG.integers(6, 13, (N, 1))
    tokens = keras.Input((12,), name="x", dtype="int64")
    hidden = keras.layers.GRU(16, return_sequences=True)(keras.layers.Embedding(8, 8)(tokens))
    model = cls(tokens, keras.layers.Dense(8)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    losses = []
    for version in range(2):
        directory = tmp_path / str(version)
        token_losses = loss.call(y, model.predict(x, verbose=0))
        per_sequence = ofb_tf.sequence_loss(token_losses, mask)
        losses.append(float(tf.reduce_mean(per_sequence)))
        with ofb_tf.ForwardRecordWriter(directory) as writer:
            writer.write(IDS, loss=per_sequence.numpy())
        # Keras's mean runs over all tokens, so what counts of a token is its share.
        share = (mask / mask.mean(1, keepdims=True)).astype(np.float32)
        elements = ({"example_id": IDS, "x": x}, y, share)
        dataset = tf.data.Dataset.from_tensor_slices(elements).apply(
            ofb_tf.ofb_sample(
                records=str(directory), label_key=None, rate=0.5, window_size=N, batch_size=16,
                seed=4, keep_record=cls is ofb_tf.OFBModel,
            )
        )  # fmt: skip
        if cls is keras.Model:
            dataset = dataset.map(lambda x, y, w: (x["x"], y, w))
        history = model.fit(dataset, epochs=5, verbose=0).history
    assert losses[1] < losses[0]
    if cls is ofb_tf.OFBModel:
        assert history["record_coverage"][-1] == pytest.approx(1.0)


def test_the_loss_of_a_sequence():
    losses = np.array([[1.0, 3.0, np.nan], [2.0, 5.0, 6.0]])
    mask = [[1, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(ofb_tf.sequence_loss(losses, mask), [2.0, 0.0])
    np.testing.assert_array_equal(ofb_tf.sequence_loss(losses[1:], reduction="sum"), [13.0])
    with pytest.raises(ValueError, match="reduction must be"):
        ofb_tf.sequence_loss(losses, reduction="max")


def test_probabilities_of_a_head_recorded_as_logits_are_warned_of(records):
    logits = records.logits.numpy()
    logits = np.stack([logits[:, 0], 1 / (1 + np.exp(-logits[:, 1]))], axis=1)
    with pytest.warns(UserWarning, match="as probabilities do"):
        sampled(TUPLES, ofb_tf.ForwardRecords.from_columns(IDS, logits))
