"""Ids that mean nothing without a secret.

A record holds an id, numbers that the model computed, a version and a time: no features. Where
the id itself must not be readable, hash it with a secret on both sides, serving and training.
"""

import os

import tensorflow as tf

_MIN_SECRET_BYTES = 16


def read_secret(path: str | os.PathLike) -> tuple[int, int]:
    """Reads the key of `keyed_ids` from a file.

    Args:
      path: file of at least 16 bytes, of which surrounding white space does not count:
        `head -c 32 /dev/urandom | base64 > secret`.

    Raises:
      ValueError: it is shorter.
      tf.errors.NotFoundError: there is no such file.

    Returns:
      Two halves of the key, each in [0, 2^63 - 1).
    """
    with tf.io.gfile.GFile(os.fspath(path), "rb") as file:
        secret = file.read().strip()
    if len(secret) < _MIN_SECRET_BYTES:
        raise ValueError(
            f"The secret in {os.fspath(path)!r} must have at least {_MIN_SECRET_BYTES} bytes. "
            f"Received: {len(secret)}. Make one: head -c 32 /dev/urandom | base64 > FILE"
        )
    # Two hashes under fixed, different keys stretch or shrink any secret to SipHash's 128 bits.
    halves = [tf.strings.to_hash_bucket_strong(secret, 2**63 - 1, [0, i]) for i in (1, 2)]
    return int(halves[0]), int(halves[1])


def keyed_ids(example_ids: tf.Tensor, secret: tuple[int, int]) -> tf.Tensor:
    """SipHash of each id under a secret; the same in the graph and in Python.

    ```python
    import pathlib

    from ofb_tf.records.privacy import keyed_ids, read_secret
    from ofb_tf.testing import tiny_dataset

    pathlib.Path("secret").write_text("thirty-two bytes from /dev/urandom")
    secret = read_secret("secret")
    hidden = tiny_dataset(3).map(lambda x: x | {"example_id": keyed_ids(x["example_id"], secret)})
    assert next(iter(hidden))["example_id"] == keyed_ids([1000], secret)[0]
    ```

    Args:
      example_ids: int64 or string, any shape.
      secret: from `read_secret`.

    Returns:
      int64 in [0, 2^63 - 1) of the same shape.
    """
    ids = tf.convert_to_tensor(example_ids)
    ids = ids if ids.dtype == tf.string else tf.strings.as_string(tf.cast(ids, tf.int64))
    return tf.strings.to_hash_bucket_strong(ids, 2**63 - 1, list(secret))
