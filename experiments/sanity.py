"""Sanity of the embedded model and its adapters on real input (not the oracle): what the README quotes.
`python -m experiments.sanity` writes assets/benchmarks/sanity.json.

contact_sheet  styles x objects, generated
recognition    share of generated pictures that a classifier trained only on real pictures calls the prompted style
               (top 1) and the prompted object (top 5)
first_group    how often a method's first group is the prompted style (generated pictures) or the style that drew a
               real picture of a held-out object (empty prompt)
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor, nn

from experiments.commands import FolderOption, program
from guda_core.attribution.guda import Guda
from guda_core.cli.loading import service_of
from guda_core.cli.terminal import HomeOption, ModelOption, SetOption, follow, listed, say
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures, described
from guda_core.data.sources.source import load_pictures
from guda_core.diffusion.base_model import BaseModel
from guda_core.diffusion.pixels import to_unit
from guda_core.errors import OptionError
from guda_core.local import LocalService
from guda_core.paths import BENCHMARKS, DOCS
from guda_core.records import Attribution, GroupSet, Query
from guda_core.unlearning.loop import LoopConfig, Progress, run
from guda_core.versions import today, versions


@dataclasses.dataclass(frozen=True)
class SanityConfig:
    """objects: per style, for recognition and for first_group. seed: of objects, descriptors and pictures."""

    recognition_objects: int = 40
    query_objects: int = 15
    steps: int = 25
    guidance: float = 2.5
    seed: int = 11
    effort: str = "quick"
    classifier: LoopConfig = dataclasses.field(
        default_factory=lambda: LoopConfig(steps=2000, batch=64, lr=2e-3, warmup=50, weight_decay=0.05, seed=9)
    )


def share(hits: Sequence[bool]) -> dict[str, float]:
    """A share with its 95% Wilson interval: value, low, high in [0, 1], and n."""
    found = binomtest(sum(hits), len(hits))
    interval = found.proportion_ci(method="wilson")
    return {"value": found.statistic, "low": float(interval.low), "high": float(interval.high), "n": len(hits)}


class Classifier(nn.Module):
    """A small convolutional network with two heads: style and object. Input (N, 3, size, size) in [-1, 1]."""

    def __init__(self, styles: int, objects: int, size: int = 64) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU()]
            layers += [nn.Conv2d(b, b, 3, 1, 1), nn.GroupNorm(8, b), nn.SiLU()] if b > 32 else []
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        flat = 256 * (size // 16) ** 2
        self.style, self.object = nn.Linear(flat, styles), nn.Linear(flat, objects)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.style(h), self.object(h)


def _shifted(x: Tensor, g: torch.Generator, most: int = 3) -> Tensor:
    """Random shifts by whole pixels, white comes in. Nothing is resampled: at 64 pixels that would blur the very
    texture that tells one style from another."""
    h, w = x.shape[-2:]
    wide = F.pad(x, [most] * 4, value=1.0)
    moves = torch.randint(0, 2 * most + 1, (len(x), 2), generator=g).tolist()
    return torch.stack([p[:, a : a + h, b : b + w] for p, (a, b) in zip(wide, moves, strict=True)])


def train_classifier(group_set: GroupSet, config: LoopConfig) -> Iterator[tuple[Progress, Classifier]]:
    """Train on real pictures only, none of a held-out object; yields (progress, classifier).

    Styles are learned from all of them, evenly over the styles; objects from those that the UNet is trained on, which
    are half of every batch.
    """
    train, every = load_pictures(group_set, "train"), load_pictures(group_set, "pretrain")
    styles, objects = list(group_set.groups), sorted(set(train.names))
    x = to_unit(np.concatenate([train.pixels, every.pixels]))
    s = torch.tensor([styles.index(g) for g in (*train.groups, *every.groups)])
    o = torch.full((len(x),), -100)  # cross_entropy's mark for "no label"
    o[: len(train)] = torch.tensor([objects.index(n) for n in train.names])
    size = Counter(every.groups)
    evenly = torch.tensor([1 / size[g] for g in every.groups])
    torch.manual_seed(config.seed)
    net = Classifier(len(styles), len(objects)).train()

    def loss_of(step: int, g: torch.Generator) -> Tensor:
        half = config.batch // 2
        known = torch.randint(len(train), (half,), generator=g)
        others = len(train) + torch.multinomial(evenly, config.batch - half, replacement=True, generator=g)
        at = torch.cat([known, others])
        style, obj = net(_shifted(x[at], g))
        return F.cross_entropy(style, s[at]) + F.cross_entropy(obj, o[at], label_smoothing=0.1)

    for p in run(net, loss_of, config):
        yield p, net
    net.eval()


@torch.no_grad()
def classify(net: Classifier, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Style (N,) and the five likeliest objects (N, 5), as indices."""
    style, obj = net.eval()(to_unit(pixels))
    return style.argmax(dim=1).numpy(), obj.topk(5, dim=1).indices.numpy()


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated pictures with what they were asked to be."""

    pixels: np.ndarray
    groups: list[str]
    objects: list[str]
    prompts: list[str]


def generated(
    model: BaseModel, group_set: GroupSet, objects: Sequence[str], config: SanityConfig, batch: int = 16
) -> Iterator[tuple[float, Generated | None]]:
    """Every style x object once, prompts with three random descriptors; yields (fraction, None), last the pictures."""
    g, captioner = torch.Generator().manual_seed(config.seed), captioner_of(group_set)
    asked = [(s, o, captioner.caption(described(s, o), g)) for s in group_set.groups for o in objects]
    out = []
    for i in range(0, len(asked), batch):
        part = asked[i : i + batch]
        seeds = [config.seed * 1000 + i + j for j in range(len(part))]
        out.append(model.generate([p for _, _, p in part], seeds=seeds, steps=config.steps, guidance=config.guidance))
        yield (i + len(part)) / len(asked), None
    styles, names, prompts = (list(x) for x in zip(*asked, strict=True))
    yield 1.0, Generated(np.concatenate(out), styles, names, prompts)


def draw_objects(group_set: GroupSet, n: int, seed: int) -> list[str]:
    """n of the objects trained on, sorted by name, drawn from a seed."""
    order = torch.randperm(len(group_set.train_objects), generator=torch.Generator().manual_seed(seed))[:n]
    return sorted(group_set.train_objects[i] for i in order.tolist())


def contact_sheet(pictures: Generated, group_set: GroupSet, columns: Sequence[str], scale: int = 2) -> Image.Image:
    """A picture with one row a style and one column an object."""
    size = pictures.pixels.shape[1] * scale
    sheet = Image.new("RGB", (len(columns) * size, len(group_set.groups) * size), "white")
    rows = {g: i for i, g in enumerate(group_set.groups)}
    at = {o: i for i, o in enumerate(columns)}
    for p, g, o in zip(pictures.pixels, pictures.groups, pictures.objects, strict=True):
        if o in at:
            tile = Image.fromarray(p).resize((size, size), Image.Resampling.LANCZOS)
            sheet.paste(tile, (at[o] * size, rows[g] * size))
    return sheet


def recognition(net: Classifier, pictures: Generated, group_set: GroupSet) -> dict[str, Any]:
    """Style top 1 and object top 5 of generated pictures, and as a yardstick the style of real held-out objects."""
    styles, names = list(group_set.groups), sorted(set(load_pictures(group_set, "train").names))
    s, o = classify(net, pictures.pixels)
    held = load_pictures(group_set, "held_out")
    hs, _ = classify(net, held.pixels)
    right = [styles[i] == g for i, g in zip(s, pictures.groups, strict=True)]
    return {
        "style_top1": share(right),
        "object_top5": share([n in {names[i] for i in top} for top, n in zip(o, pictures.objects, strict=True)]),
        "style_top1_by_group": {
            k: share([r for r, g in zip(right, pictures.groups, strict=True) if g == k])["value"] for k in styles
        },
        "real_held_out_style_top1": share([styles[i] == g for i, g in zip(hs, held.groups, strict=True)]),
    }


def first_group(
    service: LocalService, queries: Sequence[Query], truth: Sequence[str], effort: str
) -> Iterator[tuple[float, dict[str, Any] | None]]:
    """How often each method's first group is the true style; yields (fraction, None), last the result."""
    hits: dict[str, list[bool]] = {m: [] for m in ("clip", "guda")}
    separable: list[bool] = []
    for i, (q, t) in enumerate(zip(queries, truth, strict=True)):
        final: dict[str, Attribution] = {}
        for a in service.attribute(q, methods=list(hits), effort=effort):
            final[a.method] = a
        for m, a in final.items():
            hits[m].append(bool(a.ranked()) and a.ranked()[0] == t)
        separable.append(bool(final["guda"].separable))
        yield (i + 1) / len(queries), None
    result: dict[str, Any] = {m: share(h) for m, h in hits.items()}
    result["guda_separable"] = share(separable)
    sure = [h for h, s in zip(hits["guda"], separable, strict=True) if s]
    result["guda_when_separable"] = share(sure) if sure else None
    yield 1.0, result


def real_queries(service: LocalService, group_set: GroupSet, n: int, seed: int) -> tuple[list[Query], list[str]]:
    """n real pictures of held-out objects with the empty prompt, spread evenly over the groups, and who drew them."""
    held: Pictures = load_pictures(group_set, "held_out")
    g = torch.Generator().manual_seed(seed)
    queries, truth = [], []
    for gid in group_set.groups:
        own = held.where(lambda k, o, gid=gid: k == gid)
        for i in torch.randperm(len(own), generator=g)[: math.ceil(n / len(group_set.groups))].tolist():
            queries.append(service.query(own.pixels[i], ""))
            truth.append(gid)
    return queries, truth


PARTS = ("recognition", "generated", "real")


def _note(path: Path, head: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Add findings to the file; what it holds of another model, number type or other settings is dropped. (The
    classifier's settings enter the recognition alone, which is measured with them and says so.)"""

    def key(record: Mapping[str, Any]) -> list[Any]:
        config = {k: v for k, v in record.get("config", {}).items() if k != "classifier"}
        return [record.get("base_sha256"), record.get("adapters"), record.get("dtype", "float32"), config]

    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = key(old) == key(json.loads(json.dumps(head)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**(old if same else {}), **head, **more, "date": today()}, indent=1), encoding="utf-8")


def run_all(
    service: LocalService, config: SanityConfig, folder: Path, sheet: Path, parts: Sequence[str] = PARTS
) -> Iterator[tuple[str, float]]:
    """The parts asked for, each added to folder/sanity.json when it is known; yields (what, fraction).

    Raises:
        OptionError: an unknown part.
    """
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        raise OptionError(f"Parts must be some of {', '.join(PARTS)}; got {', '.join(sorted(unknown)) or 'none'}.")
    torch.set_flush_denormal(True)
    gs, path = service.group_set, folder / "sanity.json"
    head = {
        "command": "python -m experiments.sanity",
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "base_sha256": service.model.sha256,
        "dtype": str(service.model.dtype).removeprefix("torch."),
        "adapters": {g: a.meta["sha256"] for g, a in service.method(Guda).adapters.items()},
    }
    objects = draw_objects(gs, config.recognition_objects, config.seed)
    if "recognition" in parts:
        net = None
        for p, net in train_classifier(gs, config.classifier):  # noqa: B007
            yield "classifier", p.step / p.steps
        pictures = None
        for fraction, pictures in generated(service.model, gs, objects, config):  # noqa: B007
            yield "pictures", fraction
        assert net is not None and pictures is not None
        contact_sheet(pictures, gs, objects[:: max(1, len(objects) // 12)][:12]).save(sheet)
        found = recognition(net, pictures, gs)
        _note(path, head, {"recognition": {**found, "classifier": dataclasses.asdict(config.classifier)}})
    asked: dict[str, tuple[Sequence[Query], Sequence[str]]] = {}
    if "generated" in parts:
        made = None
        for fraction, made in generated(service.model, gs, objects[: config.query_objects], config):  # noqa: B007
            yield "queries", fraction
        assert made is not None
        queries = [service.query(x, p) for x, p in zip(made.pixels, made.prompts, strict=True)]
        asked["generated_with_prompt"] = queries, made.groups
    if "real" in parts:
        n = config.query_objects * len(gs.groups)
        asked["real_held_out_empty_prompt"] = real_queries(service, gs, n, config.seed)
    for key, (queries, truth) in asked.items():
        for fraction, result in first_group(service, queries, truth, config.effort):
            yield key, fraction
            if result is not None:
                _note(path, head, {key: result})


def sanity(
    model: ModelOption = None,
    group_set: SetOption = None,
    home: HomeOption = None,
    effort: Annotated[str, typer.Option(help="Effort of each attribution.")] = "quick",
    folder: FolderOption = None,
    sheet: Annotated[Path | None, typer.Option(help="Contact sheet to write. Default: docs/contact-sheet.png.")] = None,
    parts: Annotated[str, typer.Option(help="Comma-separated: recognition, generated, real.")] = ",".join(PARTS),
) -> None:
    """Measure the model and its adapters on generated and real pictures (not the oracle)."""
    where, picture = folder or BENCHMARKS, sheet or DOCS / "contact-sheet.png"
    follow(run_all(service_of(model, group_set), SanityConfig(effort=effort), where, picture, listed("--parts", parts)))
    say(f"Written: {where / 'sanity.json'} and {picture}")


main = program(sanity)

if __name__ == "__main__":
    main()
