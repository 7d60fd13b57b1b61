"""The live oracle (leave one group out): score_k = ELBO(x | full) - ELBO(x | retrained without group k), in nats.

The retrained (LOGO) models are stored with delta compression (`unlearning.delta`). What that loses is measured.
"""

from __future__ import annotations

from typing import ClassVar, Self

from guda_core import paths
from guda_core.attribution.counterfactual import Counterfactual
from guda_core.attribution.method import Context, Unavailable

OWN = "How to make them for a model of your own: docs/how-to/own-oracle.md of the repository."
MAKE = (
    "Make them with `python -m experiments.logo --live`."
    if paths.IN_CHECKOUT
    else "They are not part of the installed package: copy assets/runs/emoji/emoji/oracle of the repository to "
    "runs/emoji/emoji/oracle of your workspace (GUDA_HOME)."
)


class Logo(Counterfactual):
    """Scores groups by their retrained models."""

    id = "logo"
    name = "LOGO (retrained; the oracle)"
    note = (
        "The oracle: how much worse the picture is explained by a model that was trained again without the group. The "
        "interval covers the sampling error of this estimate. It does not cover the gap between one retraining and "
        "another. Pictures that the model drew itself score high for all groups, because any other training explains "
        "them worse."
    )
    oracle = True
    model_label = "Retrained without"
    figures_title = "What the oracle lost by delta compression"
    figures_note = (
        "Each retrained model is stored with delta compression: as its rounded difference from the full model. What "
        "that loses was measured once: both forms scored the same pictures with the same noise. Rank correlation: of "
        "the two forms' scores, over the pictures. Error: root mean square of what compression adds to a score. "
        "Spread: standard deviation of the scores over the pictures."
    )
    figure_columns: ClassVar = {
        "pictures": "Pictures",
        "spearman": "Rank correlation",
        "rms": "Error (nats)",
        "sd": "Spread (nats)",
    }

    @classmethod
    def load(cls, context: Context) -> Self | Unavailable:
        """Not while a group's retrained model is missing: its first place would not be the first."""
        make = MAKE if context.is_shipped else OWN
        if context.oracle is None or not context.oracle.is_dir():
            return Unavailable(f"There are no retrained models. {make}")
        found = cls(context.model, context.group_set, context.oracle)
        if not found.unavailable:
            return found
        return Unavailable(
            f"{len(found.unavailable)} of {len(context.groups)} groups have no retrained model that can be used "
            f"({', '.join(found.unavailable)}). {make}"
        )
