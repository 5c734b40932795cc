"""Two towers for retrieval with a loss of the model's own: the other films of the batch are no."""

import keras
import numpy as np
import tensorflow as tf

import ofb_tf  # ofb

rng = np.random.default_rng(0)
users = rng.integers(0, 40, 4000)
films = (users + rng.integers(0, 4, 4000)) % 40
train = tf.data.Dataset.from_tensor_slices((users, films)).take(3000)


class TwoTowers(keras.Model):
    def __init__(self):
        super().__init__()
        self.users, self.films = keras.layers.Embedding(40, 8), keras.layers.Embedding(40, 8)

    def call(self, users):
        return self.users(users)

    def losses_of(self, films, queries):
        scores = keras.ops.matmul(queries, keras.ops.transpose(self.films(films)))
        own = keras.ops.arange(keras.ops.shape(scores)[0])
        return keras.losses.sparse_categorical_crossentropy(own, scores, from_logits=True)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        losses = self.losses_of(y, y_pred)
        return keras.ops.mean(losses if sample_weight is None else losses * sample_weight)


model = TwoTowers()
model.compile(keras.optimizers.Adam(0.02))
model.fit(train.batch(100), epochs=2, verbose=0)

with ofb_tf.ForwardRecordWriter("records") as writer:  # ofb
    for ids, (x, y) in train.enumerate().batch(100):  # ofb
        writer.write(ids, loss=model.losses_of(y, model(x)))  # ofb
sampler = ofb_tf.ofb_sample(records="records", label_key=None, batch_size=100, seed=0)  # ofb
train = train.enumerate().apply(sampler)  # ofb
model.fit(train, epochs=20, verbose=0)
scores = model.users(users[3000:]) @ keras.ops.transpose(model.films(np.arange(40)))
best = np.argsort(-np.asarray(scores), axis=1)[:, :8]
figures = {"recall_at_8": float((best == films[3000:, None]).any(1).mean())}
