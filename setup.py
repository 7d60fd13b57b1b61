"""Adds what is shipped to the package: in a checkout the included workspace lies beside it, installed it lies in it
(`guda_core.paths`). The retrained models (36 MB) and the arrays of the benchmarks stay in the repository."""

from setuptools import find_packages, setup

ASSETS, SETS = "guda_core.shipped.assets", "guda_core.shipped.style_groups"

setup(
    packages=[*find_packages(include=["guda_core*"]), ASSETS, SETS],
    package_dir={ASSETS: "assets", SETS: "style_groups"},
    package_data={
        "": ["*.yaml", "*.json", "*.css", "*.js", "*.pyi", "py.typed", "configs/**/*.json"],
        ASSETS: [
            "*.md",
            "*.json",
            "model/**/*",
            "clip/*",
            "runs/**/*",
            "benchmarks/*.json",
            "benchmarks/fresh/*.json",
        ],
        SETS: ["**/*"],
    },
    exclude_package_data={
        ASSETS: [f"runs/*/*/{part}" for part in ("oracle/*", "oracle/*/*", "latents/*", "latents/*/*", "*/.claims/*")]
    },
)
