"""Where a score comes from, and what is drawn without a group: planted answers, closed forms, tiny real models."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from experiments.maps.collages import join
from experiments.maps.map_figures import auroc
from guda_core.attribution import counterfactual_pictures, maps
from guda_core.attribution.guda import Guda
from guda_core.diffusion import likelihood, redrawing
from guda_core.diffusion.condition import Condition
from guda_core.diffusion.prediction import Prediction
from guda_core.errors import OptionError, ReportError, ScoreError
from guda_core.picture_records import PlaceMap, Shown, Strip
from guda_core.records import Query
from guda_core.reports import bundle, figures, picture_files
from guda_core.reports.read import read_report
from guda_core.reports.restore import shown
from tests.light import LightService, draw
from tests.test_elbo import DDPM
from tests.test_report import made, opened
from tests.tiny import tiny_service

HASH = "ab" * 32


class Planted:
    """Knows the picture behind every x_t, so that it is never wrong; `wrong` is added to its answer, (C, h, w)."""

    def __init__(self, latent: torch.Tensor, kind: str = "epsilon") -> None:
        self.latent, self.schedule, self.device = latent, DDPM, torch.device("cpu")
        self.prediction, self.lock, self.latent_shape = Prediction(kind, DDPM), threading.RLock(), latent.shape[1:]
        self.wrong = torch.zeros(tuple(latent.shape[1:]))

    def embed(self, prompts):
        return Condition({"none": torch.zeros(len(prompts), 1)})

    def predict(self, x_t, t, condition):
        alpha, sigma = (v[t].float()[:, None, None, None] for v in (self.schedule.alpha, self.schedule.sigma))
        return self.prediction.target(self.latent.expand_as(x_t), (x_t - alpha * self.latent) / sigma, t) + self.wrong

    def decode(self, latent):
        return latent.numpy()


class PlantedMethod:
    """Without its one group, the planted model is wrong in the first quarter."""

    id = "planted"

    def __init__(self, model: Planted) -> None:
        self.model, self.adapters = model, {"g": None}

    @contextmanager
    def without(self, group):
        self.model.wrong[:, :4, :4] = 0.5
        yield
        self.model.wrong[:] = 0.0


def latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def query(z: torch.Tensor) -> Query:
    return Query(np.zeros((8, 8, 3), np.uint8), z, "", HASH)


def test_a_planted_quarter_is_shown_and_only_that(monkeypatch):
    monkeypatch.setattr(maps, "fitting_batch", lambda model: 32)
    model = Planted(latent())
    found = [m for m in maps.maps(PlantedMethod(model), query(model.latent), ["g", "none"], width=0.0)
             if isinstance(m, PlaceMap)]  # fmt: skip
    assert [m.group for m in found] == ["g"]  # a group without a model has no map
    strata = likelihood.make_strata(DDPM, maps.STRATA)
    t = likelihood.draw_times(HASH, strata, maps.DRAWS).t
    w = likelihood.kl_weights(model.prediction).numpy()[t]  # (K, m)
    expected = 4 * 0.5**2 * float((strata.sizes[:, None] * w / maps.DRAWS).sum())  # four channels, each wrong by 0.5
    np.testing.assert_allclose(found[0].drop[:4, :4], expected, rtol=1e-3)
    assert np.abs(found[0].drop[4:]).max() < 1e-3 * expected and np.abs(found[0].drop[:, 4:]).max() < 1e-3 * expected


def test_smoothing_keeps_the_sum_and_needs_a_spread():
    rng = np.random.default_rng(0)
    strata = likelihood.make_strata(DDPM, 6)
    d = rng.normal(size=(6, 3, 8, 8))
    m = maps.place_map("guda", "g", d, strata, 1.5)
    assert m.smooth.sum() == pytest.approx(m.drop.sum())
    flat = maps.place_map("guda", "g", d, strata, 0.0)  # without smoothing: the formula of a score, place by place
    one = likelihood.stratified_sum(d[:, :, 2, 5], strata)
    assert (flat.smooth[2, 5], flat.se[2, 5]) == (pytest.approx(one.value), pytest.approx(one.se))
    with pytest.raises(ScoreError, match="two draws"):
        maps.place_map("guda", "g", d[:, :1], strata)


def test_a_map_of_nothing_says_nothing_and_one_of_something_does():
    rng = np.random.default_rng(1)
    strata = likelihood.Strata(tuple(range(1, 14)))  # equal strata, so that the noise has many degrees of freedom
    noise = rng.normal(size=(200, 12, 4, 16, 16))
    share = np.array([maps.place_map("guda", "g", d, strata).share for d in noise])
    assert (share > 0).mean() < 0.12
    noise[0, :, :, :8, :8] += 1.0
    found = maps.place_map("guda", "g", noise[0], strata)
    assert found.clear[:6, :6].all() and not found.clear[12:, 12:].any()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return tiny_service(tmp_path_factory.mktemp("maps"), missing=("noto",))


@pytest.fixture(scope="module")
def drawn(service) -> Query:
    return list(service.generate(prompt="a cat", seed=3, steps=5, guidance=2.0))[-1]


def test_a_map_adds_up_to_the_drop_at_the_same_draws(service, drawn):
    guda = service.method(Guda)
    found = [m for m in service.maps(drawn, method="guda", groups=["twemoji", "noto"]) if isinstance(m, PlaceMap)]
    assert [m.group for m in found] == ["twemoji"] and found[0].drop.shape == service.model.latent_shape[1:]
    strata = likelihood.make_strata(service.model.schedule, maps.STRATA)
    draws = likelihood.draw_times(drawn.image_hash, strata, maps.DRAWS)
    args = (service.model, drawn.latent, service.model.embed([drawn.prompt]), draws, range(maps.DRAWS))
    full = likelihood.kl_values(*args)
    with guda.without("twemoji"):
        without = likelihood.kl_values(*args)
    drop = likelihood.elbo_drop(full=full, without=without, strata=strata).value
    assert found[0].drop.sum() == pytest.approx(drop, rel=1e-4) == pytest.approx(found[0].smooth.sum(), rel=1e-4)


@pytest.mark.parametrize("own", [True, False])
def test_the_same_weights_draw_the_same_picture(service, drawn, own, monkeypatch):
    guda, q = service.method(Guda), drawn if own else replace(drawn, drawn=None)
    monkeypatch.setattr(guda, "without", lambda group: nullcontext())
    strip = list(counterfactual_pictures.pictures_without(guda, q, ["twemoji", "openmoji"]))[-1]
    assert strip.distances == {"twemoji": 0.0, "openmoji": 0.0} and strip.level == (None if own else 0.5)
    assert all((p == strip.reference).all() for p in strip.pictures.values())
    assert not own or (strip.reference == drawn.pixels).all()


def test_other_weights_draw_others_and_leave_the_model_as_it_was(service, drawn):
    before = {k: v.clone() for k, v in service.model.network.state_dict().items()}
    stream = service.pictures(drawn, method="guda")
    next(stream)
    stream.close()  # within the first picture
    strip = service.strip(drawn, "guda")
    assert set(strip.pictures) == set(service.group_set.groups) - {"noto"} and min(strip.distances.values()) > 0
    g = strip.ranked()[0]
    a, b = (service.model.encode(p) for p in (strip.pictures[g], drawn.pixels))
    assert strip.distances[g] == pytest.approx(float(((a - b) ** 2).mean()) ** 0.5)
    after = service.model.network.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    with pytest.raises(OptionError, match="no models without a group"):
        service.strip(drawn, "clip")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_model_that_knows_the_picture_draws_it_again_from_the_noise(kind):
    z = latent(1)
    model, noise = Planted(z, kind), latent(2)
    made = list(redrawing.redraw(model, z, noise, model.embed([""]), level=0.5, steps=7))
    assert made[:-1] == [None] * 6 and redrawing.times(7, 0.5, 1000)[0] == 499
    np.testing.assert_allclose(made[-1], z.numpy(), atol=1e-3)


def pictures() -> Shown:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    strip = Strip("guda", pixels, {"twemoji": 255 - pixels, "openmoji": pixels}, {"twemoji": 1.5, "openmoji": 0.0})
    drop = np.zeros((4, 4))
    drop[:2, :2] = 3.0
    m = PlaceMap("guda", "twemoji", drop, drop, np.full((4, 4), 0.1), 3.0, 2.0, 4)
    return picture_files.shown(pixels, strip, ["twemoji"], {"twemoji": m})


def test_an_overlay_is_coloured_where_the_map_says_something():
    t = pictures().where[0]
    n = t.overlay.shape[0] // 8
    grey = np.ptp(t.overlay.astype(int), axis=2)
    assert t.share == 0.25 and t.drop == 12.0 and grey[:n, :n].min() > 50 and grey[-n:].max() == 0


def test_the_sheets_of_the_command_line_name_every_picture(monkeypatch):
    gs, said, scales = LightService().group_set, [], []
    label, ticks = Axes.set_xlabel, Axes.set_xticks
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, text, **k: said.append(text) or label(self, text, **k))
    monkeypatch.setattr(
        Axes, "set_xticks", lambda self, at, **k: scales.extend(k.get("labels", [])) or ticks(self, at, **k)
    )
    given = pictures()
    found = figures.sheets(given, gs)
    assert said == ["Full model\n", "Without Twemoji\n1.50", "Without OpenMoji\n0.00", "Twemoji\n12 nats in all"]
    assert scales == ["-3", "0", "3"]  # the strongest place has 3 nats
    assert set(found) == {"without.png", "where.png"} and found == figures.sheets(given, gs)
    quiet = replace(given, strip=None, where=(replace(given.where[0], share=0.0),))
    said.clear(), scales.clear()
    assert set(figures.sheets(quiet, gs)) == {"where.png"}
    assert said == ["Twemoji\nthe map says nothing"] and scales == []


def test_pictures_go_into_a_report_and_come_back(tmp_path):
    service, given = LightService(), pictures()
    q = service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat")
    data = made(service, q, shown=given)
    assert set(opened(data)) == {*bundle.FILES, *bundle.OPTIONAL} - set(bundle.ORIGINALS.values())
    (tmp_path / "r.zip").write_bytes(data)
    report = read_report(tmp_path / "r.zip")
    back = shown(report)
    assert back.strip.distances == given.strip.distances and back.strip.level is None
    assert all((back.strip.pictures[g] == p).all() for g, p in given.strip.pictures.items())
    assert (back.where[0].overlay == given.where[0].overlay).all()
    assert (back.where[0].share, back.where[0].strongest) == (0.25, 3.0)
    assert (back.draws, back.width) == (4, 2.0)
    assert not shown(replace(report, record={}, more={}))  # one without pictures


@pytest.mark.parametrize(("change", "said"), [("altered", "SHA-256 differs"), ("gone", "holds no where.png")])
def test_pictures_that_are_not_the_reports_are_refused(tmp_path, change, said):
    service = LightService()
    q = service.prepare(draw(tmp_path / "p.png", side=32).read_bytes(), prompt="cat")
    files = opened(made(service, q, shown=pictures()))
    if change == "gone":
        del files["where.png"]
    else:
        files["where.png"] = files["without.png"]
    (tmp_path / "r.zip").write_bytes(bundle.zipped(files))
    with pytest.raises(ReportError, match=said):
        read_report(tmp_path / "r.zip")


def test_a_sheet_of_another_number_of_pictures_is_refused():
    told, files = picture_files.record(pictures()), picture_files.files(pictures())
    told["without"]["pictures"] *= 2
    with pytest.raises(ReportError, match="does not hold the pictures"):
        picture_files.restored(told, files)


def test_collages_say_whose_place_is_whose():
    a, b = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 200, np.uint8)
    for kind, share in (("half", 0.5), ("quarter", 0.25), ("inlay", 0.25)):
        for seed in range(6):
            pixels, mask = join(kind, a, b, 16, np.random.default_rng(seed))
            assert mask.mean() == share
            assert ((pixels[::4, ::4, 0] > 100) == mask).all() and ((pixels[3::4, 3::4, 0] > 100) == mask).all()


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(3)
    values, mask = rng.integers(0, 4, (5, 5)).astype(float), rng.random((5, 5)) < 0.4
    inside, outside = values[mask][:, None], values[~mask][None]
    assert auroc(values, mask) == pytest.approx(((inside > outside) + 0.5 * (inside == outside)).mean())
