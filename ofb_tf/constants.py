"""Names that the packages share: fields, tasks, and what `missing` may be. Imports nothing."""

EXAMPLE_ID = "example_id"
LABEL = "label"
LOGITS = "logits"
LOSS = "loss"
MODEL_VERSION = "model_version"
TIMESTAMP = "timestamp"
HAS_RECORD = "has_record"
IMPORTANCE_WEIGHT = "importance_weight"
LOG_INCLUSION = "log_inclusion"
UNIFORM_PROBE = "uniform_probe"
UNIFORM_HOLDOUT = "uniform_holdout"  # deprecated name of the probe
FORWARD_LOGITS = "forward_logits"

# What the top-k form of a record keeps instead of every logit; see docs/METHOD.md, "Scores".
CLASS_IDS = "class_ids"
LOGSUMEXP = "logsumexp"
SUM_SQUARED_PROBABILITIES = "sum_squared_probabilities"
NUM_OUTPUTS = "num_outputs"

# Every field of a record but the id, as the join adds them to an element.
RECORD_FIELDS = (
    HAS_RECORD,
    LOGITS,
    LOSS,
    MODEL_VERSION,
    TIMESTAMP,
    CLASS_IDS,
    LOGSUMEXP,
    SUM_SQUARED_PROBABILITIES,
    NUM_OUTPUTS,
)

MULTICLASS = "multiclass"
BINARY = "binary"
REGRESSION = "regression"
TASKS = (MULTICLASS, BINARY, REGRESSION)

# What becomes of an example without a usable record: `ofb_sample(missing=...)`.
MISSING_UNIFORM = "uniform"
MISSING_KEEP = "keep"
MISSING_DROP = "drop"
MISSING_ERROR = "error"
MISSING = (MISSING_UNIFORM, MISSING_KEEP, MISSING_DROP, MISSING_ERROR)

# How the selected stand for the stream: `ofb_sample(estimator=...)`.
WEIGHTS = "weights"
LOG_ODDS = "log_odds"
ESTIMATORS = (WEIGHTS, LOG_ODDS)

# Over what the rate is kept: `ofb_sample(budget=...)`.
BUDGET_WINDOW = "window"
BUDGET_STREAM = "stream"
BUDGETS = (BUDGET_WINDOW, BUDGET_STREAM)

# What is reported of a selection: `OFBSampler.statistics`, `OFBModel.fit`.
COVERAGE = "coverage"
REALIZED_RATE = "realized_rate"
MEAN_WEIGHT = "mean_weight"
MAX_WEIGHT = "max_weight"
EFFECTIVE_SAMPLE_SIZE = "effective_sample_size"
CONFIDENT_ERROR = "confident_error"
EXPECTED_CONFIDENT_ERROR = "expected_confident_error"

MICROSECONDS = 1_000_000
