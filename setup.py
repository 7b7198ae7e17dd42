"""Installation of ehrwear_jax: extras gpu, tpu, cluster, axivity, peers, parity, docs, test, dev."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the oldest releases that the package is known to work with. JAX 0.10.2 is the
# last release for Python 3.11; newer Pythons resolve to newer JAX.
INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "chex>=0.1.90",
    "dask[distributed]>=2025.1",
    "flax>=0.12",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "jinja2>=3.1",
    "joblib>=1.4",
    "lightgbm>=4.5",  # needs the system's OpenMP runtime: Debian and Ubuntu's libgomp1, Homebrew's libomp
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12",
    "polars>=1.20",
    "psutil>=6",
    "pyarrow>=18",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "tensorboardX>=2.6.2",
    "threadpoolctl>=3.5",
    "tqdm>=4.66",
]

# The site of docs/.
DOCS_REQUIRES = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"]

# The HTTP service of a trained model, inference/serve.py.
SERVE_REQUIRES = ["starlette>=0.40", "uvicorn>=0.30"]

# Oracles and tools of the test suite; nothing in the package imports them.
TEST_REQUIRES = [
    "dask-jobqueue>=0.9",
    "dcurves>=1.1",
    "hypothesis>=6.100",
    "lifelines>=0.30",
    "meds-evaluation>=0.0.6",
    *DOCS_REQUIRES,
    *SERVE_REQUIRES,
    "mypy>=1.18",
    "neurokit2>=0.2.13",
    "pytest>=8",
    "pytest-xdist>=3.8",
    "pyreadstat>=1.3",
    "pyyaml>=6",
    "ruff>=0.9",
    "scikit-digital-health>=0.17",
    "scikit-survival>=0.25",  # GPL: never imported by the package
    "statsmodels>=0.14.4",
]

setup(
    name="ehrwear_jax",
    version="0.1.0",
    description="Continuous-time representations of linked EHR events and wearable signals, in JAX",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["ehrwear_jax", "ehrwear_jax.*"]), "ehrwear_jax.configs"],
    package_dir={"ehrwear_jax": "ehrwear_jax", "ehrwear_jax.configs": "configs"},  # --config=tiny, without a checkout
    entry_points={"console_scripts": ["ehrwear-jax = ehrwear_jax.main:cli"]},
    package_data={
        "ehrwear_jax": ["py.typed"],
        "ehrwear_jax.report": ["templates/*"],
        "ehrwear_jax.data.prepare": ["*.csv"],
        "ehrwear_jax.inference": ["bundles/*/*"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require={
        # CUDA 13 needs a 580 or newer driver; with an older one install jax[cuda12] instead.
        "gpu": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        # Jobs of a batch system (Slurm, PBS, ...) as workers of prepare.
        "cluster": ["dask-jobqueue>=0.9"],
        # Raw recordings of Axivity loggers (.cwa).
        "axivity": ["scikit-digital-health>=0.17"],
        # What benchmarks.peers measures beside this package: PyTorch comes with it, so in an environment of its own.
        "peers": ["MEDS-transforms>=0.6.7", "meds-torch-data>=0.9"],
        # The second implementation that layers of the baselines are held to; those tests skip without it.
        "parity": ["torch>=2.5"],
        "docs": DOCS_REQUIRES,
        "serve": SERVE_REQUIRES,
        "test": TEST_REQUIRES,
        "dev": [*TEST_REQUIRES, "ipykernel>=6.29", "pre-commit>=4", "py-spy>=0.4", "xprof>=2.20"],
    },
)
