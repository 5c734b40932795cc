"""tf.data: `ofb_sample`, the join, and what elements look like."""
