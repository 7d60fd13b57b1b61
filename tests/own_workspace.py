"""A workspace of somebody's own: a tiny model, three artists with a phrase each, and an adapter for every artist."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from guda_core.diffusion.cards import find_card, load_model
from guda_core.unlearning import adapters
from guda_core.unlearning.config import UnlearnConfig
from guda_core.unlearning.health import KINDS
from tests.once import copied
from tests.own_pictures import paint
from tests.tiny import save_tiny

ARTISTS = {"ann-lee": "Ann Lee", "bo-chan": "Bo Chan", "dee": "Dee"}


def entry() -> dict[str, object]:
    """The group set's file: one artist is credited, the others are not."""
    groups = {gid: {"name": name, "phrase": f"by {name}"} for gid, name in ARTISTS.items()}
    rights = {
        "author": "Ann Lee",
        "licence": "CC-BY-4.0",
        "licence_link": "https://creativecommons.org/licenses/by/4.0/",
    }
    groups["ann-lee"] |= rights
    source = {"id": "folder", "path": "secret pictures"}
    return {
        "id": "artists",
        "name": "Three artists",
        "source": source,
        "caption": "{content}, {phrase}",
        "groups": groups,
    }


def own_workspace(home: Path, *, adapters_too: bool = True) -> Path:
    """Make it; gives its folder. GUDA_HOME must name it."""
    copied("own-workspace", home, _save_workspace)
    if adapters_too:
        copied("own-adapters", home, _save_adapters)
    return home


def _save_workspace(home: Path) -> None:
    """The group set with its pictures, and the model with its card."""
    (home / "sets" / "artists").mkdir(parents=True)
    (home / "sets" / "artists" / "group_set.yaml").write_text(yaml.safe_dump(entry()), encoding="utf-8")
    for k, gid in enumerate(ARTISTS):
        for i in range(4):
            paint(home / "sets" / "artists" / "secret pictures" / gid / f"{i}.png", k, i)
    save_tiny(home / "models" / "brush", small=True)
    card = {"name": "The brush", "source": "folder", "path": "brush", "resolution": 16, "licence": "Apache-2.0"}
    (home / "models" / "brush.yaml").write_text(yaml.safe_dump({"brush": card}), encoding="utf-8")


def _save_adapters(home: Path) -> None:
    """What a run of unlearning leaves."""
    run = home / "runs" / "brush" / "artists"
    for i, gid in enumerate(ARTISTS):
        plant(run / "adapters" / gid, gid, i)
    (run / "latents").mkdir()
    (run / "latents" / "all.safetensors").write_bytes(b"encoded pictures")


def plant(folder: Path, gid: str, seed: int, *, steps: int = 80, group_set: str = "artists") -> None:
    """Write a random adapter with a health that says that it forgot."""
    model, config = load_model(find_card("brush")), UnlearnConfig()
    spec = adapters.LoraSpec(rank=2, alpha=2, targets=model.lora_targets)
    adapters.attach(model.network, spec, seed=seed)
    with torch.no_grad():
        for n, p in model.network.named_parameters():
            if "lora_B" in n:
                p.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.2)
    meta = {"group": gid, "base_sha256": model.sha256, "group_set": group_set, "model": "brush"}
    settings = {"operator": "guda_c", "lam": 1.0, "loop": {"steps": steps, "lr": 0.001, "checkpoint_s": 60.0}}
    sha256 = config.sha256() if steps == 80 else f"{steps}"
    adapters.save(model.network, folder, spec=spec, meta={**meta, "config": settings, "settings_sha256": sha256})
    made = adapters.read_meta(folder)["sha256"]
    health: dict = {k: {"mean": 10.0 * seed - 2 * i, "se": 0.5, "n": 16} for i, k in enumerate(KINDS)}
    (folder / adapters.HEALTH).write_text(
        json.dumps({**health, "unit": "nats", "adapter_sha256": made, "config": {"pictures": 16}})
    )
