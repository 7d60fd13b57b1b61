"""The model card of published adapters: README.md with the front matter that the Hugging Face Hub reads.

Whatever stands in it was measured or written by somebody; what nobody wrote is "not stated", what nobody measured "-".
Texts from outside cannot become markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from guda_core.diffusion.base_model import Card
from guda_core.records import NOT_STATED, Group, GroupSet
from guda_core.reports.record import LIMITS
from guda_core.unlearning import adapter_files
from guda_core.unlearning.adapters import read_health
from guda_core.unlearning.health import KINDS

TAGS = ("guda", "data-attribution", "machine-unlearning", "diffusion", "lora")
GIVEN = re.compile(r"^- The adapters and features: ([a-z0-9.+-]+), given by who published them\.$", re.MULTILINE)
SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#|!~&])")
MODEL_NOT_HERE = (
    "The model itself is not in this repository. Put it into `models/{id}/`, or write its place into "
    "`models/{id}.yaml`."
)


def plain(text: object) -> str:
    """A text from outside as one line of Markdown in which nothing is markup."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return SPECIAL.sub(r"\\\1", line)


def write(
    card: Card,
    group_set: GroupSet,
    run: Path,
    metas: Mapping[str, Mapping[str, Any]],
    *,
    on_hub: str = "",
    model_inside: bool = False,
    licence: str = "",
) -> str:
    """The card of a run's folder. metas: group id -> its adapter's metadata. on_hub: where the base model is.
    licence: what its publisher gives for adapters and features, as the Hub spells it."""
    base = on_hub or (card.path if card.source == "hub" else "")
    parts = [
        _front(base, "" if model_inside else licence),
        f"# {plain(group_set.name)}: unlearning adapters for {plain(card.name)}",
        (
            f"[GUDA](https://arxiv.org/abs/2601.22651) adapters for the {len(group_set.groups)} groups below. With "
            "them, GUDA says which groups of training pictures made the model able to make a picture. Each adapter "
            "makes the model forget one group. A picture's score is ELBO(full model) - ELBO(model without the group)."
        ),
        "The training pictures are not in this repository.",
        "## How to use",
        _use(card, base, model_inside),
        "## Groups",
        _groups(group_set, metas),
        "## Settings",
        _settings(metas),
        "## Health",
        (
            "The mean ELBO drop in nats when a group's adapter is on, with its standard error. It should be large on "
            "the group's own pictures and small on others'."
        ),
        _health(group_set, run, metas),
        "## Licences",
        _licences(card, licence),
        "## Limits",
        _limits(run, card),
    ]
    return "\n\n".join(parts) + "\n"


def licence_given(text: str) -> str:
    """The licence that was given for the card with this text; "" for none."""
    found = GIVEN.search(text)
    return found[1] if found else ""


def _front(base: str, licence: str) -> str:
    """Only who publishes gives a licence: neither the pictures' nor the model's is that of the adapters. None is said
    of the whole folder where the model, which has its own, is in it."""
    told: dict[str, Any] = {"library_name": "guda", "tags": list(TAGS)}
    if base:
        told |= {"base_model": base, "base_model_relation": "adapter"}
    if licence:
        told["license"] = licence
    return f"---\n{yaml.safe_dump(told, allow_unicode=True, sort_keys=False)}---"


def _licences(card: Card, licence: str) -> str:
    base = plain(card.licence) if card.licence else NOT_STATED
    given = f"{licence}, given" if licence else NOT_STATED
    return (
        f"- The base model: {base}. Where its terms reach what is made from it, they hold for the adapters too.\n"
        "- The groups' pictures: see the table of groups.\n"
        f"- The adapters and features: {given} by who published them."
    )


def _use(card: Card, base: str, inside: bool) -> str:
    lines = [
        "```sh",
        "guda app --home hub:USER/NAME",
        "guda attribute picture.png --home hub:USER/NAME",
        "```",
        "",
        "USER/NAME is this repository. A Space of the app needs one variable: `GUDA_HOME=hub:USER/NAME`.",
    ]
    if not base and not inside and card.source in ("folder", "file"):
        lines += ["", MODEL_NOT_HERE.format(id=card.id)]
    return "\n".join(lines)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _licence(group: Group) -> str:
    return f"[{plain(group.licence)}]({group.licence_link})" if _safe(group.licence_link) else plain(group.licence)


def _safe(link: str) -> bool:
    """Whether an address can stand in a Markdown link; group sets hold https addresses only."""
    return bool(link) and not re.search(r"[\s()<>|]", link)


def _groups(group_set: GroupSet, metas: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for gid, g in group_set.groups.items():
        name = f"[{plain(g.name)}]({g.link})" if _safe(g.link) else plain(g.name)
        words = ", ".join(g.descriptors) or g.phrase
        there = "yes" if gid in metas else "no"
        rows.append([name, plain(g.author), _licence(g), plain(words) if words else "-", there])
    return _table(["Group", "Pictures by", "Licence", "Words in captions", "Adapter"], rows)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as one level; of a LoRA its rank and alpha."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if name == "loop" and isinstance(value, Mapping):
            out |= {k: v for k, v in value.items() if k != "checkpoint_s"}
        elif name == "lora" and isinstance(value, Mapping):
            out |= {"LoRA rank": value.get("rank"), "LoRA alpha": value.get("alpha")}
        elif name == "lora":
            out["LoRA rank"] = "none: the whole network"
        else:
            out[name] = value
    return out


def _settings(metas: Mapping[str, Mapping[str, Any]]) -> str:
    flat = {gid: _flat(m["config"]) for gid, m in metas.items() if isinstance(m.get("config"), Mapping)}
    names = dict.fromkeys(n for settings in flat.values() for n in settings)
    rows = []
    for name in names:
        values = {gid: str(s.get(name, "-")) for gid, s in flat.items()}
        if len(set(values.values())) == 1:
            rows.append([plain(name), plain(next(iter(values.values())))])
        else:
            rows.append([plain(name), "; ".join(f"{plain(gid)}: {plain(v)}" for gid, v in values.items())])
    base = next((m["base_sha256"] for m in metas.values()), "")
    rows.append(["base model (hash)", f"`{base}`"])
    return _table(["Setting", "Value"], rows)


def _health(group_set: GroupSet, run: Path, metas: Mapping[str, Mapping[str, Any]]) -> str:
    rows, kept = [], []
    for gid in metas:
        found = read_health(run / "adapters" / gid, str(metas[gid].get("sha256")))
        name = plain(group_set.groups[gid].name)
        rows.append([name, *[_measured(found.get(k)) for k in KINDS]])
        kept += [name] if adapter_files.forgot_nothing(found) else []
    table = _table(["Group", *[k[:1].upper() + k[1:] for k in KINDS.values()]], rows)
    return f"{table}\n\n{adapter_files.NOTHING_FORGOTTEN.format(which=', '.join(kept))}" if kept else table


def _measured(found: Any) -> str:
    if not isinstance(found, Mapping) or not isinstance(found.get("mean"), int | float):
        return "-"
    se = f" ± {found['se']:.1f}" if isinstance(found.get("se"), int | float) else ""
    return f"{found['mean']:.1f}{se} (n = {plain(found.get('n', '?'))})"


def _limits(run: Path, card: Card) -> str:
    said = [
        "The adapters belong to exactly this base model, by its hash. With another one they are refused.",
        *LIMITS,
        "It is about these groups only. Pictures from elsewhere are not considered.",
    ]
    if not (run / "calibration.json").is_file():
        said.append(
            "No model was trained again without a group, so how well the scores agree with retraining is not known. "
            "The scores hold no offset."
        )
    if not (run / "scope.json").is_file():
        said.append("There is no rule that tells pictures which this model could not have made.")
    if any(run.glob("bank*.safetensors")) or (run / "features").is_dir():
        said.append(
            "It holds features of the training pictures, numbers from which a method answers. Who has a picture can "
            "tell from them whether it, or one much like it, is among them, and a rough likeness may be made from them."
        )
    if card.lora:
        said.append(
            "It holds a LoRA. If that was trained on the groups' pictures, the model may draw pictures much like them."
        )
    sizes = sum(adapter_files.stored_bytes(p) for p in sorted((run / "adapters").iterdir()) if p.is_dir())
    said.append(f"The adapters take {sizes / 2**20:.1f} MiB.")
    return "\n".join(f"- {s}" for s in said)
