"""Drafts: adapters of a whole group set in seconds, by UCE (`uce`) in place of unlearning.

A draft is stored as a LoRA, as what unlearning writes is, and can be used at once. Its metadata says that it is one,
and so do the app and reports. It is made from captions alone, and edits only how cross-attention reads the prompt.
`guda unlearn` puts real adapters in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from guda_core.data.dataset import Item, described
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.finite import is_finite
from guda_core.errors import AdapterError, OptionError
from guda_core.unlearning import adapters, uce
from guda_core.unlearning.adapter_files import is_draft, meta_file, read_meta
from guda_core.unlearning.config import UnlearnConfig
from guda_core.unlearning.guda_c import anchor_odds
from guda_core.unlearning.lora import LoraSpec
from guda_core.unlearning.run import Forgetting
from guda_core.unlearning.uce import UceConfig
from guda_core.versions import versions

BY = "UCE"  # under `draft` of an adapter's metadata
READERS = ("attn2.to_k", "attn2.to_v")  # layers of a UNet that read the embedded prompt
AT_ONCE = 32  # captions that are embedded in one pass
BARE = 24  # captions without content that the empty prompt's shift is a mean over


@dataclass(frozen=True)
class Draft:
    """rank: of its LoRA. rest: the share of the edit that the rank leaves out (`uce.LowRank`)."""

    rank: int
    rest: float


def readers(model: BaseModel) -> dict[str, Tensor]:
    """Layer -> weight (out, D), of all layers that map the embedded prompt to keys and values.

    Raises:
        OptionError: the model has no such layers of their own.
    """
    width = getattr(model.network.config, "cross_attention_dim", None)
    found = {
        name: module.weight.detach()
        for name, module in model.network.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(READERS) and module.in_features == width
    }
    if not found or model.tokens("")[1] == 0:
        raise OptionError(
            f"A draft edits the layers that only read the prompt, and the model '{model.card.id}' has none. "
            "Unlearn its groups with `guda unlearn`."
        )
    return found


def undrafted(job: Forgetting, wanted: Sequence[str], *, again: bool = False) -> list[str]:
    """The wanted groups (none named: all) that a draft is to be made of: those without a usable adapter, those
    whose draft is of other pictures or captions than the set's now, and with `again` all that have a draft. What
    unlearning made of this model stays, also where it cannot be used."""
    out, now = [], job.listed()
    for group in job.known(wanted):
        if is_unlearned(job, group):
            continue
        try:
            meta = job.load(group).meta
            if again or any(meta.get(k, v) != v for k, v in now.items()):
                out.append(group)
        except AdapterError:
            out.append(group)
    return out


def begin(job: Forgetting, wanted: Sequence[str], *, again: bool = False) -> list[str]:
    """The groups to draft (`undrafted`), once it is clear that they may be.

    Raises:
        OptionError: the model has no layers to edit. AdapterError: a draft would take the place of another model's
            adapter.
    """
    readers(job.model)
    groups = undrafted(job, wanted, again=again)
    kept = [g for g in groups if not (again and is_draft(meta_there(job, g)))]  # else: what unlearning made
    job.check_others(kept, again="use `guda unlearn --again` without --draft" if again else "add --again")
    return groups


def left(job: Forgetting, wanted: Sequence[str]) -> list[str]:
    """What is said of the wanted groups whose unlearned adapter cannot be used: drafts leave it."""
    broken = [why for g in job.known(wanted) if is_unlearned(job, g) and (why := job.why_again(g, None))]
    return [f"{why} Drafts leave it as it is." for why in broken]


def meta_there(job: Forgetting, group: str) -> Mapping[str, Any]:
    """What the adapter that lies in a group's place says of itself, of whichever model; nothing where there is none, or
    nobody can read it."""
    try:
        return read_meta(job.folder / group)
    except AdapterError:
        return {}


def is_unlearned(job: Forgetting, group: str) -> bool:
    """Whether an adapter that unlearning made of this model lies in the group's place, or one of which nobody can tell,
    because its metadata is damaged."""
    meta = meta_there(job, group)
    if not meta:
        return meta_file(job.folder / group).is_file()
    return not is_draft(meta) and job.model.goes_by(str(meta.get("base_sha256")))


def make(job: Forgetting, group: str, config: UceConfig | None = None) -> Draft | None:
    """Write the draft of one group into its adapter folder; None where the group was unlearned meanwhile, which stays.

    Raises:
        OptionError: the model has no layers to edit. AdapterError: the draft is not finite, or cannot be written.
        InHandError: another process unlearns this group.
    """
    config, model = config or UceConfig(), job.model
    weights = readers(model)
    moves, m = uce.weighed(*_moments(job, group, config), preserve=config.preserve, ridge=config.ridge)
    found = uce.factored(weights, uce.edit_of(moves, m), m, rank=config.rank, rest=config.rest)
    spec = LoraSpec(found.rank, found.rank, READERS)
    state = {}
    for name, up in found.up.items():
        state[f"{name}.lora_A.weight"] = found.down.to(torch.float16).clone()
        state[f"{name}.lora_B.weight"] = up.to(torch.float16).contiguous()
    if not all(is_finite(t) for t in state.values()):
        raise AdapterError(f"The draft of '{group}' is not finite. Unlearn the group with `guda unlearn`.")
    meta = {
        "model": job.card.id,
        "group_set": job.group_set.id,
        "group": group,
        "base_sha256": model.sha256,
        "draft": BY,
        "config": asdict(config),
        "settings_sha256": config.sha256(),
        "rest": found.rest,
        "dtype": str(model.dtype).removeprefix("torch."),
        **job.listed(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with job.claim(group):
        if is_unlearned(job, group):
            return None
        adapters.save_factors(state, job.folder.own(group), spec=spec, meta=meta)
    return Draft(found.rank, found.rest)


def _moments(job: Forgetting, group: str, config: UceConfig) -> tuple[uce.Moments, uce.Moments, uce.Moments]:
    """Of captions of the group, moved to their anchors; of captions of other groups and of plain content, which stay;
    and of the empty prompt."""
    captioner, rng = job.captioner, torch.Generator().manual_seed(config.seed)
    ids = list(job.group_set.groups)
    odds = anchor_odds(captioner, group, None, UnlearnConfig())
    own, others = (_some(job, rng, config.captions, group, own) for own in (True, False))

    def paired(items: list[Item]) -> list[tuple[str, str]]:
        pairs = []
        for item in items:
            said = captioner.caption(item, rng)
            drawn = torch.multinomial(odds, config.anchors, replacement=True, generator=rng).tolist()
            pairs += [(said, captioner.anchor(item, ids[s], rng)) for s in drawn]
        return pairs

    blank = _embedded(job.model, [""])[0]
    edited, preserved, empty = (uce.Moments(blank.shape[1]) for _ in range(3))
    pairs = paired(own)
    for at in range(0, len(pairs), AT_ONCE):
        some = pairs[at : at + AT_ONCE]
        seen, goals = (_embedded(job.model, [p[side] for p in some]) for side in (0, 1))
        for c, goal, (said, anchor) in zip(seen, goals, some, strict=True):
            edited.add(c, goal[uce.places(c, goal, job.model.tokens(said)[0], job.model.tokens(anchor)[0])])
    kept = [captioner.caption(i, rng) for i in others]
    kept += [text for i in [*own, *others] if (text := captioner.content(i))]
    for at in range(0, len(kept), AT_ONCE):
        preserved.add(_embedded(job.model, kept[at : at + AT_ONCE]).flatten(0, 1))
    bare = paired([described(group, "")] * BARE) if config.empty_shift else []
    shift = torch.zeros_like(blank)
    if bare:
        said, anchors = (_embedded(job.model, [p[side] for p in bare]).mean(dim=0) for side in (0, 1))
        shift = config.empty_shift * (anchors - said)
    empty.add(blank, blank + shift)
    return edited, preserved, empty


def _some(job: Forgetting, rng: torch.Generator, n: int, group: str, own: bool) -> list[Item]:
    items = job.pictures()
    at = [i for i, g in enumerate(items.groups) if (g == group) == own]
    if not at:
        raise OptionError(f"A draft of '{group}' needs pictures of that group and of others, for their captions.")
    return [items[at[i]] for i in torch.randperm(len(at), generator=rng)[:n].tolist()]


@torch.no_grad()
def _embedded(model: BaseModel, prompts: list[str]) -> Tensor:
    """(B, L, D) on the CPU."""
    return model.embed(prompts).tensors["text"].float().cpu()
