"""GUDA (arXiv 2601.22651): ELBO(x | full) - ELBO(x | full with group k unlearned), and an offset for every picture.

    score_k(x) = drop_k(x) + offset_k     nats
    offset_k   = w mean of drop_k over held-out pictures of the other groups, empty prompt

The paper's score is the drop alone. A model that is trained again without a group explains pictures of the other groups
worse as well, some groups' loss more than others'. Unlearning is held back from that by its preserve loss: the drop
holds only a part of this cost, though in about the right proportions. The offset adds more of it. It is a correction
learned from a mean, and not a floor: on single pictures the drop may be far from that mean, and one look-alike group
may make most of it. The adapter's health has the mean, and the weight w was fitted to retrained models, for one model
and group set, and for adapters made and measured in one way (`calibration`). Where there is no weight for these
adapters, or the mean was not measured for every one, the score is the drop alone. The intervals hold the offset's own
standard error, w times that of the mean. It counts pictures of these very groups and says nothing of others. The error
of w is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from guda_core.attribution.aggregate import MANY, Z, errors_of_95
from guda_core.attribution.calibration import Calibration, read_calibration
from guda_core.attribution.counterfactual import Counterfactual
from guda_core.attribution.method import Context, Unavailable
from guda_core.diffusion.base_model import BaseModel
from guda_core.errors import CacheError
from guda_core.paths import Folder
from guda_core.records import GroupSet
from guda_core.unlearning import adapters


def offset_of(
    folder: Folder, of: Mapping[str, adapters.Adapter], weight: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Group id -> offset_k, and -> its standard error, in nats, from the health of just these adapters in a folder;
    both {} if one has none, or one of a single picture. A group whose health tells no error has none here either. Of
    few pictures it is as much larger as Student's t is than 1.96, since intervals take it as known."""
    out: dict[str, float] = {}
    errors: dict[str, float] = {}
    for g, adapter in of.items():
        part = adapters.read_health(folder / g, adapter.meta["sha256"]).get(adapters.OFFSET)
        mean, se, n = (part.get(k) if isinstance(part, dict) else None for k in ("mean", "se", "n"))
        if not isinstance(mean, int | float) or not math.isfinite(mean):
            return {}, {}
        n = n if isinstance(n, int) else MANY
        if n < 2:  # nobody knows how far off it is
            return {}, {}
        out[g] = weight * mean
        if isinstance(se, int | float) and math.isfinite(se) and se >= 0:
            errors[g] = abs(weight) * se * errors_of_95(n) / Z
    return out, errors


class Guda(Counterfactual):
    """Scores groups by their unlearning adapters."""

    id = "guda"
    name = "GUDA (unlearning)"
    note = (
        "Influence: how much worse the model explains the picture after it unlearned the group. Where the group's "
        "offset is known, the score includes it: a correction learned from other groups' pictures, the same for every "
        "picture. The interval covers the sampling error of this estimate and of the offset. It does not cover the gap "
        "between unlearning and retraining."
    )
    main = True
    default = True
    model_label = "Adapter"
    figures_title = "What the adapters forgot and damaged"
    figures_note = (
        "What each adapter did to the model, measured once after unlearning, in nats per picture. Forgot: how much "
        "worse the model explains the group's own pictures (large is good). Damage: how much worse it explains other "
        "groups' pictures (near 0 is good). The last column gives the offset of GUDA's scores. With a caption, and "
        "without one. ± is a 95% interval."
    )
    figure_columns: ClassVar = {
        "forgotten_prompt": "Forgot, with caption",
        "others_prompt": "Damage, with caption",
        "forgotten_empty": "Forgot, without",
        "others_empty": "Damage, without",
        "held_out_empty": "Forgot, held-out objects",
        "held_out_others_empty": "Damage, held-out objects",
    }

    def __init__(self, model: BaseModel, group_set: GroupSet, folder: Folder) -> None:
        super().__init__(model, group_set, folder)
        self.no_offset = ""  # why a weight that is there is not used
        self.offset, self.offset_se = dict[str, float](), dict[str, float]()

    def calibrate(self, found: Calibration) -> None:
        """Add the offset to the scores, if its weight is for these adapters."""
        self.no_offset = found.why_not(self.folder, {g: a.meta for g, a in self.adapters.items()})
        if not self.no_offset:
            self.offset, self.offset_se = offset_of(self.folder, self.adapters, found.offset_weight)

    def caveat(self) -> str:
        return " ".join(filter(None, (super().caveat(), self.no_offset)))

    @classmethod
    def load(cls, context: Context) -> Self | Unavailable:
        if context.adapters is None:
            return Unavailable("There are no adapters. Make them with `python -m guda_core unlearn`.")
        try:
            found = read_calibration(
                context.calibration, base_sha256=context.model.sha256, group_set=context.group_set.id
            )
        except CacheError as e:
            return Unavailable(str(e))
        made = cls(context.model, context.group_set, context.adapters)
        if found is not None:
            made.calibrate(found)
        return made

    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "offset": dict(self.offset), "offset_se": dict(self.offset_se)}
