"""Attribution methods, one a file. Each answers a query with `Attribution`s that refine.

METHODS: id -> (name as shown, module): what the app offers, cheapest first (TRAK, D-TRAK and DAS where their features
are shipped with the model, GUDA and DAS combined where DAS is, LOGO where its models are). BASELINES: likewise, what
benchmarks compare with; these need the training pictures, which the app does not have. Modules are imported when used.
"""

METHODS: dict[str, tuple[str, str]] = {
    "clip": ("CLIP similarity", "guda_core.attribution.similarity"),
    "trak": ("TRAK", "guda_core.attribution.gradient.trak"),
    "dtrak": ("D-TRAK", "guda_core.attribution.gradient.dtrak"),
    "das": ("DAS", "guda_core.attribution.gradient.das"),
    "guda": ("GUDA (unlearning)", "guda_core.attribution.guda"),
    "combined": ("GUDA and DAS combined", "guda_core.attribution.ensemble"),
    "logo": ("LOGO (retrained; the oracle)", "guda_core.attribution.logo"),
}

BASELINES: dict[str, tuple[str, str]] = {
    "trak": METHODS["trak"],
    "dtrak": METHODS["dtrak"],
    "das": METHODS["das"],
    "instance": ("Instance unlearning", "experiments.baselines.instance"),
    "classifier": ("Classifier similarity", "experiments.baselines.classifier_similarity"),
}
