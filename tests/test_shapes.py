"""Pictures that keep their shape (`fit: bucket`): their sizes, and the whole way through them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from experiments.logo import fine_tuning
from experiments.train.unet import stratified_times
from guda_core import paths
from guda_core.attribution import scope as scopes
from guda_core.data import kept_latents
from guda_core.data.dataset import Item, middle
from guda_core.data.embeddings import Clip
from guda_core.data.groups import load_group_set
from guda_core.data.images import hash_pixels, read_picture
from guda_core.data.kept_latents import to_encode
from guda_core.data.latents import Latents, joined, of_one_size
from guda_core.data.sources.source import load_pictures, open_dataset
from guda_core.diffusion import likelihood
from guda_core.diffusion.cards import load_model
from guda_core.diffusion.sizes import nearest, sizes, step
from guda_core.errors import GroupSetError, ImageError
from guda_core.local import load_service
from guda_core.unlearning import health
from guda_core.unlearning.config import MemorySettings
from guda_core.unlearning.forget import FORGET_LOSSES, config_of
from guda_core.unlearning.loop import step_generator
from guda_core.unlearning.one_group import Training, _drawn
from guda_core.unlearning.pieces import Pieces
from guda_core.unlearning.run import Forgetting
from guda_core.unlearning.student import Student
from tests.own_pictures import guda, paint, waves
from tests.test_imaging import encoded
from tests.test_unlearn import make_group_set, planted, task_of
from tests.tiny import save_tiny, save_tiny_unconditional
from tests.tiny_families import models, save_family  # noqa: F401

WIDE = (20, 12)  # one of the sizes of 16 px, which all tiny families take


@pytest.mark.parametrize("resolution", [16, 64, 100, 256, 512, 768, 1024])
def test_sizes_have_about_the_pixels_of_a_square_and_come_in_pairs(resolution):
    found, s = sizes(resolution), step(resolution)
    assert found[0] == (resolution, resolution) and len(set(found)) == len(found) >= 5
    assert {(h, w) for w, h in found} == set(found)
    for w, h in found[1:]:
        assert w % s == h % s == 0 and max(w, h) <= 2.5 * min(w, h)
        assert w * h <= resolution**2 < (max(w, h) + s) * min(w, h)  # the longest that is no larger


def test_the_sizes_of_large_models_are_those_that_are_known():
    assert set(sizes(512)) == {
        (512, 512),
        *((a, b)[::o] for a, b in ((576, 448), (640, 384), (768, 320)) for o in (1, -1)),
    }
    assert {(1152, 896), (896, 1152), (1216, 832), (1344, 768)} <= set(sizes(1024))  # of SDXL's own table
    assert step(512) == step(1024) == 64 and step(64) == 8


def test_a_picture_gets_the_size_that_is_nearest_in_shape():
    for width, height in ((3000, 2000), (2000, 3000), (100, 100), (101, 100), (800, 100), (17, 16)):
        w, h = nearest(width, height, 512)
        stretch = [abs(math.log((a / b) / (width / height))) for a, b in sizes(512)]
        assert abs(math.log((w / h) / (width / height))) == min(stretch)
    assert nearest(3000, 2000, 512) == (640, 384) and nearest(8, 1, 512) == (768, 320)


def test_only_edges_are_cut_off_and_that_is_said():
    wide = np.zeros((60, 120, 3), np.uint8)
    wide[:, :4], wide[:, 4:-4], wide[:, -4:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    found = read_picture(encoded(Image.fromarray(wide)), size=64, fit="bucket")
    assert found.pixels.shape == (48, 80, 3)  # 2 : 1 is nearer to 80 x 48 than to 96 x 40
    assert found.preparation == (
        "Its left and right edges were cut off, 17% of it, to the nearest shape that the model is shown.",
        "It was resized from 120 x 60 to 80 x 48 pixels.",
    )
    assert (found.pixels == (0, 255, 0)).all()
    clear = Image.new("RGBA", (96, 40), (0, 0, 0, 0))
    white = read_picture(encoded(clear), size=64, fit="bucket")
    assert (white.pixels == 255).all() and white.preparation == ("Its transparent parts were put on white.",)
    square = encoded(Image.fromarray(wide[:, :60]))
    assert (read_picture(square, size=64, fit="bucket").pixels == read_picture(square, size=64).pixels).all()
    assert (middle(wide) == wide[:, 30:90]).all() and middle(wide[None]).shape == (1, 60, 60, 3)


@pytest.mark.parametrize("family", ["sd1", "sd2", "xl", "sd3", "flux"])
def test_every_family_scores_wide_and_upright_pictures(models, family):  # noqa: F811
    """The KL is the sum of its map; a picture of no such size is refused."""
    model = models(family)
    for size in (WIDE, WIDE[::-1]):
        pixels = waves(0, 1, *size)
        latent = model.encode(pixels)
        assert latent.shape[1:] == model.latent_shape_of(pixels) == (model.latent_shape[0], size[1] // 2, size[0] // 2)
        assert model.decode(latent).shape == (1, *pixels.shape)
        inputs = likelihood.noised(
            model, latent, likelihood.draw_times("p", likelihood.make_strata(model.schedule), 1), [0]
        )
        condition = model.embed(["ab"])
        kl, places = (f(model, condition, inputs) for f in (likelihood.kl_of, likelihood.kl_places))
        assert places.shape == (24, 1, *latent.shape[2:]) and np.allclose(places.sum((2, 3)), kl, rtol=1e-4)
        assert np.isfinite(kl).all() and (kl > 0).all()
    with pytest.raises(ImageError, match="this model reads"):
        model.encode(waves(0, 1, 24, 12))


def test_a_model_that_needs_other_multiples_refuses_in_one_sentence(models):  # noqa: F811
    with pytest.raises(ImageError, match=r"18 by 14 pixels, and the model .* needs sides that 4 divides"):
        models("sd3").encode(waves(0, 1, 18, 14))


def test_xl_is_told_sizes_and_flux_places_as_diffusers_own_pipelines_tell_them(models):  # noqa: F811
    told = {}
    for family, key in (("xl", "added_cond_kwargs"), ("flux", "img_ids")):
        model, seen = models(family), []
        hook = model.network.register_forward_pre_hook(lambda *a, k=key, to=seen: to.append(a[2][k]), with_kwargs=True)
        try:
            for x in (model.encode(waves(0, 1, *WIDE)), torch.zeros(1, *model.latent_shape)):
                model.predict(x, torch.tensor([500]), model.embed(["ab"]))
        finally:
            hook.remove()
        told[family] = (model.pipe, *seen)
    pipe, wide, square = told["xl"]
    theirs = pipe._get_add_time_ids((12, 20), (0, 0), (12, 20), torch.float32, 8)
    assert torch.equal(wide["time_ids"], theirs) and square["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    pipe, wide, square = told["flux"]
    assert torch.equal(wide, pipe._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32))
    assert torch.equal(square, pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32))


def test_latents_of_several_sizes_are_batches_of_one():
    each = [torch.full((1, 4, *s), float(i)) for i, s in enumerate(((6, 10), (8, 8), (6, 10), (10, 6)))]
    z = joined(each)
    assert isinstance(z, Latents) and len(z) == 4 and z.sizes.tolist() == [0, 1, 0, 2]
    assert z[torch.tensor([2, 0])].mean(dim=(1, 2, 3)).tolist() == [2, 0] and z[1:2].shape == (1, 4, 8, 8)
    assert [v.tolist() for v in of_one_size(z, torch.tensor([3, 0, 1, 2]))] == [[1, 3], [2], [0]]
    with pytest.raises(ValueError, match="one size"):
        z[torch.tensor([0, 1])]
    same = joined([each[0], each[2]])
    assert isinstance(same, torch.Tensor) and [v.tolist() for v in of_one_size(same, torch.tensor([1, 0]))] == [[0, 1]]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A tiny model, and planted latents of which every third is wide and every fourth upright."""
    pictures, z = planted(6)
    model = load_model(save_tiny(tmp_path_factory.mktemp("tiny"), tokens=6))
    cut = [
        z[i : i + 1, :, :6] if i % 3 == 0 else z[i : i + 1, :, :, :6] if i % 4 == 0 else z[i : i + 1]
        for i in range(len(z))
    ]
    return SimpleNamespace(model=model, group_set=make_group_set(), pictures=pictures, z=joined(cut))


def test_a_batch_has_one_size_and_every_picture_comes_up_as_often(mixed):
    task, config = task_of(mixed), config_of("guda_c", batch=2, selection="uniform")
    loss, seen, differ = FORGET_LOSSES.find("guda_c")(task, config), torch.zeros(len(mixed.pictures)), 0
    for n in range(3000):
        forgotten, retained = _drawn(task, loss, config, step_generator(0, n))
        for half in (forgotten, retained):
            assert half.x_t.shape == half.x_0.shape == half.eps.shape == (2, 4, *mixed.z[half.at].shape[2:])
            seen.index_add_(0, half.at, torch.ones(2))
        differ += forgotten.x_t.shape != retained.x_t.shape
    own, others = seen[task.own] / seen[task.own].sum(), seen[task.others] / seen[task.others].sum()
    assert differ > 500 and (own * len(own) - 1).abs().max() < 0.2 and (others * len(others) - 1).abs().max() < 0.25


def test_a_steps_loss_is_the_mean_over_its_pictures_whatever_their_sizes(mixed):
    """Against the loss written down once more, picture by picture, and cut into passes of any size."""
    config = config_of("guda_c", batch=3, selection="uniform", seed=4)
    model, found = mixed.model, {}
    for n, size in ((0, None), (0, 1), (2, None), (2, 2)):
        task = dataclasses.replace(task_of(mixed), pieces=Pieces(size))
        loss, student = FORGET_LOSSES.find("guda_c")(task, config), Student(model, config, MemorySettings())
        training = Training(task, loss, config, student)
        with student.ready():
            perturb(student.network)
            found[n, size] = sum(float(part.detach()) for part in training.pieces(n, step_generator(4, n)))
            forgotten, retained = _drawn(task, loss, config, step_generator(4, n))
            if size is not None:
                continue
            wanted, anchors = 0.0, forgotten.notes["anchors"]
            for half, texts, factor in ((forgotten, anchors, 1.0), (retained, retained.seen, config.lam)):
                for i in range(3):
                    at, t = half.x_t[i : i + 1], half.t[i : i + 1]
                    student.switch(False)
                    target = model.predict_eps(at, t, model.embed([texts[i]])).detach()
                    student.switch(True)
                    out = model.predict_eps(at, t, model.embed([half.seen[i]]), student.network).detach()
                    wanted += factor * float((out - target).square().mean()) / 3
            assert math.isclose(found[n, size], wanted, rel_tol=1e-4) and wanted > 1e-6
    assert math.isclose(found[0, 1], found[0, None], rel_tol=1e-4)
    assert math.isclose(found[2, 2], found[2, None], rel_tol=1e-4)


def perturb(network) -> None:
    """A LoRA that changes something: it starts as nothing."""
    with torch.no_grad():
        for n, p in network.named_parameters():
            if "lora_B" in n:
                p.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)


SHAPES = ((60, 40), (40, 60), (48, 48), (96, 40))


@pytest.fixture
def studio(tmp_path):
    """Three artists, with pictures of four shapes."""
    for k, name in enumerate(("Ann Lee", "Bo Chan", "Dee")):
        for i in range(6):
            paint(tmp_path / "artists" / name / f"{i}.png", k, i, SHAPES[i % 4])
    return tmp_path / "artists"


def test_check_counts_the_sizes_and_other_sets_keep_their_hashes(studio, home, tmp_path):
    guda("groups", "new", studio, "--fit", "bucket", "--resolution", "64", "--held-out", "0.2")
    gs = load_group_set("artists")
    said = guda("groups", "check", "artists", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())["sizes"]
    assert gs.fit == "bucket" and "of their own shapes" in said and "80 x 48" in said
    train = [i.seen(64).shape[1::-1] for i in open_dataset(gs).split("train")]
    assert {s: v["trained_on"] for s, v in found.items()} == {f"{w}x{h}": train.count((w, h)) for w, h in set(train)}
    assert next(iter(found)) == "64x64" and set(found) == {"64x64", "80x48", "48x80", "96x40"}
    assert open_dataset(gs).split("train")[0].image(64).shape == (64, 64, 3)
    first = open_dataset(gs).split("train")[0].seen(64)
    with Image.open(home / "sets" / "artists" / "contact-sheet.png") as sheet:
        cell = np.asarray(sheet)[52:180, 8:136]
    down, across = (round(128 * n / max(first.shape)) for n in first.shape[:2])
    assert min(down, across) < 100 and (cell[:down, :across] < 250).any(axis=2).mean() > 0.8
    assert (cell[down:] == 255).all() and (cell[:, across:] == 255).all()
    rows = [json.loads(r) for r in (home / "sets" / "artists" / "pictures.jsonl").read_text().splitlines()]
    of = {}
    for fit in ("crop", "pad", "bucket"):
        h = hashlib.sha256(f"{fit}\n".encode())
        for r in rows:
            if not r.get("held_out"):
                h.update(
                    f"{r['group']}/{r['picture']}\0{r.get('text', '')}\0{r.get('object', '')}\0{r['sha256']}\n".encode()
                )
        other = dataclasses.replace(gs, fit=fit)
        of[fit] = (open_dataset(other).fingerprint(), load_pictures(other, "train", seen=64).sha256())
        assert of[fit][0] == h.hexdigest()
    assert len(set(of.values())) == 3
    squares = load_pictures(dataclasses.replace(gs, fit="crop"), "train")
    plain = hashlib.sha256()
    for g, n, p in zip(squares.groups, squares.names, squares.pixels, strict=True):
        plain.update(f"{g}/{''.join(c for c in n.lower() if c.isascii() and c.isalnum())}\n".encode() + p.tobytes())
    assert of["crop"][1] == plain.hexdigest()


def test_a_set_of_shapes_goes_the_whole_way(studio, home, tmp_path, monkeypatch):
    """Unlearn, make what every method needs, ask about a wide picture with strip and maps, and replay the report."""
    few = health.HealthConfig(pictures=1, held_out=3, strata=4)
    monkeypatch.setattr(health, "HealthConfig", lambda: few)
    brush_of(studio, home)
    of = ("--set", "artists", "--model", "brush")
    guda("unlearn", *of, "--steps", "1", "--batch", "2", "--groups", "dee")
    guda("assets", "bank", *of)
    guda("assets", "features", *of, "--methods", "trak", "--dim", "64", "--yes")
    guda("assets", "introstyle", *of)
    kept = Forgetting(load_group_set("artists"), model="brush")
    assert to_encode(kept.model, kept.pictures().pixels, kept.kept) == 0
    assert isinstance(kept.training_pictures()[1], Latents)
    picture = paint(tmp_path / "wide.png", 1, 9, (150, 100))
    out = tmp_path / "report.zip"
    said = guda("attribute", picture, "--methods", "guda,clip,trak,introstyle", *of, "--effort", "quick", "--pictures",
                "--maps", "--report", out)  # fmt: skip
    assert "resized from 150 x 100 to 40 x 24" in said
    with zipfile.ZipFile(out) as z:
        strip, where = (Image.open(io.BytesIO(z.read(n))).size for n in ("without.png", "where.png"))
    assert strip == (80, 24) and where == (320, 192)  # the reference and one group; the map of one group
    assert "every score is bitwise the same" in guda("replay", out, *of)


def test_wide_and_upright_pictures_of_one_colour_are_not_taken_for_each_other(studio, home, tmp_path):
    """Their bytes are the same, but not their latents; a square's key is as it always was."""
    brush_of(studio, home)
    job = Forgetting(load_group_set("artists"), model="brush")
    wide, square = np.full((20, 48, 3), 9, np.uint8), np.full((32, 32, 3), 9, np.uint8)
    pixels = np.empty(2, object)
    pixels[:] = [wide, wide.transpose(1, 0, 2)]
    *_, (_, latents) = kept_latents.encode(job.model, pixels, tmp_path / "kept")
    assert [tuple(z.shape[-2:]) for z in latents] == [(10, 24), (24, 10)]
    key = f"{hash_pixels(square)}\n{job.model.sha256}\n{job.model.dtype}\ncpu"
    assert kept_latents.latent_key(job.model, square) == hashlib.sha256(key.encode()).hexdigest()

    guda("unlearn", "--set", "artists", "--model", "brush", "--steps", "1", "--batch", "2", "--groups", "dee")
    measured = health.Health(job, health.HealthConfig(strata=4))
    strata, adapter = likelihood.make_strata(job.model.schedule, 4), job.load("dee")
    items = [Item(f"dee/{i}", "dee", whole=lambda size, p=p: p, read=lambda size: square) for i, p in enumerate(pixels)]
    first, second = measured._drops(adapter, "forgotten_empty", [(i, "") for i in items], strata)
    alone = health.Health(job, measured.config)._drops(adapter, "forgotten_empty", [(items[1], "")], strata)
    assert [second] == alone != [first]


def brush_of(studio, home, resolution: int = 32) -> None:
    """A set of shapes and a tiny model of that resolution in the workspace."""
    guda("groups", "new", studio, "--fit", "bucket", "--resolution", resolution, "--held-out", "0.2")
    save_tiny(home / "models" / "brush", latent=resolution // 2, small=True)
    card = {"name": "The brush", "source": "folder", "path": "brush", "resolution": resolution, "group_set": "artists"}
    (home / "models" / "brush.yaml").write_text(yaml.safe_dump({"brush": card}), encoding="utf-8")


def test_the_scopes_rule_and_likeness_look_at_the_square_in_the_middle(studio, home, monkeypatch):
    brush_of(studio, home)
    service, judged = load_service("brush"), []
    query = service.prepare((studio / "Dee" / "3.png").read_bytes())
    monkeypatch.setattr(scopes, "judge", lambda rule, model, clip, q: judged.append(q))
    service.scope(query)
    assert query.pixels.shape == (20, 48, 3) and judged[0].pixels.shape == (32, 32, 3)
    small = Image.fromarray(query.pixels[:, 14:34]).resize((32, 32), Image.Resampling.LANCZOS)
    assert (judged[0].pixels == np.asarray(small)).all() and judged[0].latent.shape[2:] == (16, 16)
    whole, cut = (Clip(paths.ASSETS / "clip").image_features(p[None]) for p in (query.pixels, query.pixels[:, 14:34]))
    assert torch.equal(whole, cut)


def test_fine_tuning_for_the_oracle_takes_every_size_of_a_batch(studio, home):
    """The loss of a step, against each picture's own at the same draws."""
    brush_of(studio, home)
    base = Forgetting(load_group_set("artists"))
    config = fine_tuning.settings_for(base.model, rank=2, steps=1, batch=6)
    student = Student(base.model, config, MemorySettings())
    steps, rng = fine_tuning.Steps(base, config, student, None), step_generator(0, 0)
    with student.ready():
        found = [float(p.detach()) for p in steps.pieces(0, rng)]
        again = step_generator(0, 0)
        at, captions = steps.drawn(0, again)
        t, z, wanted = stratified_times(6, len(base.model.schedule), again), base.training_pictures()[1], 0.0
        for size in sorted(set(z.sizes[at].tolist())):
            same = [i for i in range(6) if int(z.sizes[at[i]]) == size]
            eps = torch.randn((len(same), *z[at[same]].shape[1:]), generator=again)
            for e, i in zip(eps.split(1), same, strict=True):
                x = base.model.schedule.add_noise(z[at[[i]]], e, t[[i]])
                out = base.model.predict(x, t[[i]], base.model.embed([captions[i]]), student.network).detach()
                wanted += float((out - e).square().mean()) / 6
    assert len(found) == len(set(z.sizes[at].tolist())) > 1 and math.isclose(sum(found), wanted, rel_tol=1e-4)


def test_a_pixel_model_refuses_a_set_of_shapes(studio, home):
    guda("groups", "new", studio, "--fit", "bucket", "--resolution", "64", "--phrase", "")
    card = save_tiny_unconditional(home / "models" / "dots")
    told = {"name": "Dots", "source": "folder", "path": "dots", "resolution": 8, "kind": "unconditional"}
    (home / "models" / "dots.yaml").write_text(yaml.safe_dump({"dots": told}), encoding="utf-8")
    assert card.kind == "unconditional"
    said = guda("unlearn", "--set", "artists", "--model", "dots", code=2)
    assert "keeps its pictures' shapes" in said and "--fit crop or --fit pad" in said
    path = home / "sets" / "artists" / "group_set.yaml"
    path.write_text(path.read_text().replace("fit: bucket", "fit: squeeze"))
    with pytest.raises(GroupSetError, match=r"'fit' must be pad .*, crop .* or bucket"):
        load_group_set("artists")
