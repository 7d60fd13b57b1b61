"""Baselines that need the training pictures, which the app does not have: methods that benchmarks compare with."""

from guda_core.registry import Registry

BASELINES = Registry(
    "baseline",
    "guda_core.baselines",
    {
        "instance": "experiments.baselines.instance:Instance",
        "classifier": "experiments.baselines.classifier_similarity:ClassifierSimilarity",
    },
)
