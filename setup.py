"""The distribution `lm`: the library, the experiments and the `lm` command.

The runtime requirements are those of requirements.txt, the versions that were tested; what they bring along is pinned
in constraints.txt. The extras put JAX on other hardware: `pip install -e ".[tpu]"` or `".[cuda]"`; ".[gcs]" and
".[s3]" are for runs in a bucket, ".[sweep]" for the sweeps by TPE, ".[datasets]" for Parquet files and TFDS data sets,
".[serve]" for `lm serve`, ".[harness]" for `lm evaluate --tasks`, ".[wandb]" for `WandB()`, ".[digits]" for
experiments/vision/digits.py.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The requirements in the file `name`, without comments and empty lines."""
    lines = (line.partition("#")[0].strip() for line in (HERE / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


RUNTIME = requirements("requirements.txt")
DEV = requirements("requirements-dev.txt")
SERVE = "llguidance==", "prometheus_client==", "starlette==", "uvicorn=="
JAX = next(line for line in RUNTIME if line.startswith("jax=="))

setup(
    name="lm",
    version="0.1.0",
    description="A transformer language-model laboratory in JAX: an experiment is one page of Python",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_namespace_packages(include=["lm", "lm.*", "experiments", "experiments.*", "launch", "launch.*"]),
    package_data={"lm.model": ["*.c"], "lm.page": ["*.css", "*.js"]},
    install_requires=RUNTIME,
    extras_require={
        "tpu": [JAX.replace("jax", "jax[tpu]", 1)],
        "cuda": [JAX.replace("jax", "jax[cuda12]", 1)],
        "gcs": ["gcsfs"],
        "s3": ["s3fs"],
        "sweep": [line for line in DEV if line.startswith("optuna==")],
        "datasets": [line for line in DEV if line.startswith(("importlib_resources==", "pyarrow==", "tensorflow-"))],
        "serve": [line for line in DEV if line.startswith(SERVE)],
        "digits": ["scikit-learn==1.9.1"],
        "harness": ["lm_eval==0.4.13"],
        "wandb": ["wandb==0.31.0"],
        "dev": DEV,
    },
    entry_points={"console_scripts": ["lm = launch.__main__:main"]},
)
