"""How good the second edition's model is, in figures: what issue 26 asks of it.

held_out_psnr_db  of the autoencoder, on pictures of objects that nothing was trained on (vae/stage.json)
recognition       share of generated pictures that a classifier of real pictures alone calls the prompted style, and
                  whose object is among its five likeliest; of real held-out pictures the style, as a yardstick
nearest           distance to the nearest training picture, of generated and of held-out pictures side by side:
                  root mean square difference of pixels, in 0 .. 255. A model that copies has distances near 0
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from experiments import sanity
from experiments.sanity import Classifier, Generated, share
from experiments.second import fast_loop
from experiments.second.edition import Asked, place, plain, the_set
from experiments.second.fast_loop import Batch, How
from experiments.second.fast_trainings import jittered, on_device, placed
from experiments.second.second_stages import model_of, started
from experiments.train import stages
from guda_core.data.dataset import Pictures
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion.pixels import to_unit
from guda_core.errors import TrainingError
from guda_core.jobs.job import Job, Steps
from guda_core.records import GroupSet
from guda_core.unlearning.loop import LoopConfig
from guda_core.versions import today, versions

FILE, SHEET = "quality.json", "contact-sheet.webp"
SHIFT = 6  # most pixels that the classifier's pictures are shifted by
COLUMNS = 14  # of the contact sheet


def train_classifier(train: Pictures, every: Pictures, group_set: GroupSet, config: LoopConfig, how: How) -> Steps:
    """Train as `sanity.train_classifier` does, on the device; gives the classifier. train: whose objects are learned;
    every: whose styles are."""
    styles, objects = list(group_set.groups), sorted(set(train.names))
    pixels = on_device(np.concatenate([train.pixels, every.pixels]), how)
    style = torch.tensor([styles.index(g) for g in (*train.groups, *every.groups)], device=how.device)
    none = [-100] * len(every)  # cross_entropy's mark for "no label"
    name = torch.tensor([objects.index(n) for n in train.names] + none, device=how.device)
    counts = {g: every.groups.count(g) for g in styles}
    evenly = torch.tensor([1 / counts[g] for g in every.groups], device=how.device)
    torch.manual_seed(config.seed)
    net = Classifier(len(styles), len(objects), pixels.shape[1])
    placed(net, how)
    half, batch = config.batch // 2, config.batch

    def draw(step: int, g: torch.Generator) -> Batch:
        known = torch.randint(len(train), (half,), generator=g, device=how.device)
        others = len(train) + torch.multinomial(evenly, batch - half, replacement=True, generator=g)
        moves = torch.randint(2 * SHIFT + 1, (batch, 2), generator=g, device=how.device)
        return {"at": torch.cat([known, others]), "moves": moves}

    never = torch.zeros(batch, dtype=torch.bool, device=how.device)

    def loss_of(b: Batch) -> Tensor:
        found, obj = net(jittered(to_unit(pixels[b["at"]]), never, b["moves"], SHIFT))
        objects_loss = F.cross_entropy(obj.float(), name[b["at"]], label_smoothing=0.1)
        return F.cross_entropy(found.float(), style[b["at"]]) + objects_loss

    for p in fast_loop.run(net, draw, loss_of, config, how):
        yield 0.5 * p.step / p.steps, f"classifier {p.step}/{p.steps}  loss {p.loss:.3f}"
    return net.eval()


@torch.no_grad()
def classified(net: Classifier, pixels: np.ndarray, how: How, batch: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Style (N,) and the five likeliest objects (N, 5), as indices."""
    found = [net(to_unit(pixels[i : i + batch]).to(how.device)) for i in range(0, len(pixels), batch)]
    objects = torch.cat([o for _, o in found])
    top = objects.topk(min(5, objects.shape[1]), dim=1).indices
    return torch.cat([s for s, _ in found]).argmax(dim=1).cpu().numpy(), top.cpu().numpy()


def recognition(net: Classifier, made: Generated, held: Pictures, names: Sequence[str], group_set: GroupSet, how: How):
    """The shares; names: the objects that the classifier knows, in order."""
    styles = list(group_set.groups)
    s, o = classified(net, made.pixels, how)
    hs, _ = classified(net, held.pixels, how)
    right = [styles[i] == g for i, g in zip(s, made.groups, strict=True)]
    by_group = {k: share([r for r, g in zip(right, made.groups, strict=True) if g == k])["value"] for k in styles}
    return {
        "style_top1": share(right),
        "object_top5": share([n in {names[i] for i in top} for top, n in zip(o, made.objects, strict=True)]),
        "style_top1_by_group": by_group,
        "real_held_out_style_top1": share([styles[i] == g for i, g in zip(hs, held.groups, strict=True)]),
    }


@torch.no_grad()
def nearest(of: np.ndarray, among: np.ndarray, device: str, batch: int = 128) -> np.ndarray:
    """Root mean square difference of each picture to the nearest of others, (N,), in 0 .. 255. of, among: uint8."""
    others = torch.from_numpy(among).flatten(1)
    found = []
    for i in range(0, len(of), batch):
        x = torch.from_numpy(of[i : i + batch]).flatten(1).to(device).float()
        best = torch.full((len(x),), float("inf"), device=device)
        for j in range(0, len(others), 1024):
            y = others[j : j + 1024].to(device).float()
            best = torch.minimum(best, torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1))
        found.append(best.cpu() / x.shape[1] ** 0.5)
    return torch.cat(found).numpy()


def distances(values: np.ndarray) -> dict[str, float]:
    """A few quantiles."""
    at = {"least": 0, "first_percent": 1, "quarter": 25, "median": 50, "three_quarters": 75}
    return {name: round(float(np.percentile(values, q)), 2) for name, q in at.items()}


def measure(asked: Asked, work: Path) -> Steps:
    """All figures, and a contact sheet."""
    started(asked, work)
    gs, edition, how = the_set(asked.group_set), asked.edition, asked.how
    train, every, held = (load_pictures(gs, s) for s in ("train", "pretrain", "held_out"))
    if len(every) == len(train):
        raise TrainingError("The classifier learns styles from all pictures. Pack them without --only-set.")
    net: Classifier = yield from train_classifier(train, every, gs, edition.classifier, how)
    asking = edition.quality
    settings = sanity.SanityConfig(steps=asking.steps, guidance=asking.guidance, seed=asking.seed)
    objects, made = sanity.draw_objects(gs, asking.objects, asking.seed), None
    for fraction, made in sanity.generated(model_of(asked, work), gs, objects, settings, 100):  # noqa: B007
        yield 0.5 + 0.4 * fraction, "pictures"
    assert made is not None
    figures: dict[str, Any] = {
        "command": "python -m experiments.second all", "base_sha256": model_of(asked, work).sha256,
        "held_out_psnr_db": stages.record_of("vae")["held_out_psnr_db"],
        "recognition": recognition(net, made, held, sorted(set(train.names)), gs, how),
        "nearest": {
            "generated": distances(nearest(made.pixels, train.pixels, how.device)),
            "held_out": distances(nearest(held.pixels, train.pixels, how.device)),
        },
        **plain(asked), "versions": versions(), "date": today(),
    }  # fmt: skip
    sheet: Image.Image = sanity.contact_sheet(made, gs, objects[:COLUMNS], scale=1)
    sheet.save(place(SHEET), lossless=False, quality=90)
    place(FILE).write_text(json.dumps(figures, indent=1), encoding="utf-8")
    yield 1.0, "measured"


def is_measured(asked: Asked, work: Path) -> bool:
    """Whether the figures of the finished model are there."""
    started(asked, work)
    if not place(FILE).is_file() or not place(SHEET).is_file():
        return False
    return json.loads(place(FILE).read_text(encoding="utf-8"))["base_sha256"] == model_of(asked, work).sha256


def job(asked: Asked, work: Path) -> Job:
    """It as a job."""
    return Job("quality", measure, work / "claims" / "quality", is_measured, (asked, work))
