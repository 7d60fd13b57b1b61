"""The service on a tiny real model: generate, prepare, attribute, cancel, two visitors at once; CLIP similarity."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.train.clip import ClipConfig, make_clip
from guda_core.attribution.ensemble import GudaAndDas
from guda_core.attribution.gradient import quantised
from guda_core.attribution.gradient.das import Das
from guda_core.attribution.gradient.features import FeatureConfig
from guda_core.attribution.gradient.kernel import KernelConfig
from guda_core.attribution.gradient.trak import Trak
from guda_core.attribution.guda import Guda
from guda_core.attribution.similarity import ClipSimilarity
from guda_core.data.captions import captioner_of
from guda_core.data.dataset import Pictures
from guda_core.data.embeddings import Clip
from guda_core.data.encoded import examples_of
from guda_core.data.groups import load_group_set
from guda_core.errors import ModelError, OptionError
from guda_core.local import LocalService, load_service
from guda_core.records import Query
from guda_core.reports import bundle
from guda_core.reports import record as report
from guda_core.reports.findings import Verdict
from guda_core.reports.read import read_report
from guda_core.reports.replay import replay
from guda_core.service import EFFORTS, Step
from guda_core.ui.layout import first_caption
from tests.tiny import tiny_service, tiny_tokenizer

GROUPS = load_group_set("emoji")
MISSING = "noto"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A random tiny model, CLIP and bank, and an adapter for every group but one."""
    return tiny_service(tmp_path_factory.mktemp("service"), missing=(MISSING,))


def ship_features(service, root, kind=Trak):
    """Features of six noise pictures for TRAK (or another kind), beside the service's model."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    groups = tuple(list(GROUPS.groups)[i % (2 if kind is Trak else 6)] for i in range(6))
    examples = examples_of(service.model, Pictures(pixels, groups, ("cat",) * 6), captioner_of(GROUPS))
    own = FeatureConfig(output=kind.output, normalise=kind.normalise, timesteps=2, dim=64)
    method = kind(service.model, examples, list(GROUPS.groups), KernelConfig(own))
    list(method.prepare())
    meta = {"base_sha256": service.model.sha256, "config": dataclasses.asdict(method.config.features)}
    quantised.write(root / kind.id, method.features, groups, meta)


def test_guda_and_das_are_combined_where_both_are_there_with_or_without_their_own_answers(service, tmp_path):
    ship_features(service, tmp_path / "features", Das)
    own = LocalService(service.model, GROUPS, service.clip, service.method(Guda).folder, features=tmp_path / "features")
    assert list(own.methods()) == ["clip", "das", "guda", "combined"]
    query = picture(own)
    alone, beside = last(own, query, methods=["combined"]), last(own, query, methods=["das", "guda", "combined"])
    assert list(alone) == ["combined"] and set(beside) == {"das", "guda", "combined"}
    first, *others = (
        dataclasses.asdict(a) for a in (alone["combined"], beside["combined"], own.method(GudaAndDas).combine(beside))
    )
    assert others == [first, first]
    assert alone["combined"].progress == 1.0 and MISSING not in alone["combined"].ranked()
    assert own.estimate(["combined"], "quick") == pytest.approx(own.estimate(["guda", "das"], "quick"))
    settings = {"effort": "quick", "methods": ["combined"]}
    made = bundle.make(query, list(alone.values()), GROUPS, provenance=own.provenance(), settings=settings)
    (tmp_path / "r.zip").write_bytes(made)
    *_, verdict = replay(read_report(tmp_path / "r.zip"), own)
    assert isinstance(verdict, Verdict) and verdict.outcome == "equal"


def test_methods_with_shipped_features_are_offered_and_go_into_the_report(service, tmp_path, caplog):
    ship_features(service, tmp_path / "features")
    own = LocalService(service.model, GROUPS, service.clip, service.method(Guda).folder, features=tmp_path / "features")
    assert list(own.methods()) == ["clip", "trak", "guda"] and "D-TRAK is not offered" in caplog.text
    query = picture(own)
    answers = last(own, query, methods=["guda", "trak", "clip"])
    assert list(answers) == ["guda", "clip", "trak"]
    scores = answers["trak"].groups
    assert [g for g, s in scores.items() if s.status == "ok"] == list(GROUPS.groups)[:2]
    assert own.estimate(["trak"], "quick") > own.estimate([], "quick")
    with pytest.raises(OptionError, match="some of clip, trak, guda; got das"):
        last(own, query, methods=["das"])
    settings = {"effort": "quick", "methods": ["trak", "clip", "guda"]}
    made = bundle.make(query, list(answers.values()), GROUPS, provenance=own.provenance(), settings=settings)
    (tmp_path / "r.zip").write_bytes(made)
    read = read_report(tmp_path / "r.zip")
    np.testing.assert_array_equal(read.values["trak/pictures"], answers["trak"].values["pictures"])
    *_, verdict = replay(read, own)
    assert isinstance(verdict, Verdict) and verdict.outcome == "equal"


def picture(service, seed: int = 1) -> Query:
    *steps, query = service.generate(prompt="cat, flat colours", seed=seed, steps=3, guidance=2.0)
    assert [(s.done, s.steps) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    return query


def last(service, query, **more):
    final = {}
    for a in service.attribute(query, **{"methods": ["guda", "clip"], "effort": "quick", **more}):
        final[a.method] = a
    return final


def test_generate_then_attribute(service):
    query = picture(service)
    answers = last(service, query)
    assert list(answers) == ["guda", "clip"]  # the main one first
    guda = answers["guda"]
    assert guda.progress == 1 and guda.unit == "nats" and guda.groups[MISSING].status == "unavailable"
    assert all(s.low <= s.score <= s.high for k, s in guda.groups.items() if k != MISSING)
    assert guda.kl is not None and guda.kl.full.shape == (24, EFFORTS["quick"].draws)
    assert set(guda.settings["adapters"]) == set(GROUPS.groups) - {MISSING}
    assert last(service, query)["guda"].groups == guda.groups
    assert picture(service).image_hash == query.image_hash != picture(service, seed=2).image_hash


def test_a_picture_from_a_file_scores_as_the_generated_one(service, tmp_path):
    query = picture(service)
    Image.fromarray(query.pixels).save(tmp_path / "p.png")
    again = service.prepare((tmp_path / "p.png").read_bytes(), prompt=query.prompt)
    assert again.image_hash == query.image_hash and again.file_hash
    assert last(service, again)["guda"].groups == last(service, query)["guda"].groups


def test_more_effort_narrows_the_intervals_and_keeps_the_first_draws(service, monkeypatch):
    monkeypatch.setitem(EFFORTS, "every", dataclasses.replace(EFFORTS["every"], draws=12))
    query = picture(service)
    quick, full = (last(service, query, methods=["guda"], effort=e)["guda"] for e in ("quick", "every"))
    width = [sum(s.high - s.low for s in a.groups.values() if s.score is not None) for a in (quick, full)]
    assert width[1] < 0.6 * width[0]
    np.testing.assert_allclose(full.kl.full[:, : EFFORTS["quick"].draws], quick.kl.full, rtol=1e-4)


def test_two_visitors_at_once_get_the_numbers_that_each_gets_alone(service):
    queries = [picture(service, seed=s) for s in (1, 2)]
    alone = [last(service, q, methods=["guda"])["guda"].groups for q in queries]
    streams = [service.attribute(q, methods=["guda"], effort="quick") for q in queries]
    together = [None, None]
    open_streams = [0, 1]
    while open_streams:
        for i in list(open_streams):
            try:
                together[i] = next(streams[i]).groups
            except StopIteration:
                open_streams.remove(i)
    assert together == alone


def test_closing_a_run_leaves_the_model_as_it_was(service):
    before = [p.clone() for p in service.model.network.parameters()]
    stream = service.attribute(picture(service), methods=["guda"], effort="quick")
    for _ in range(4):
        next(stream)
    stream.close()
    assert all(torch.equal(a, b) for a, b in zip(before, service.model.network.parameters(), strict=True))


def test_what_is_asked_wrongly_is_refused(service):
    query = picture(service)
    with pytest.raises(OptionError, match="quick, standard, full"):
        last(service, query, effort="huge")
    with pytest.raises(OptionError, match=r"clip, guda.*got magic"):
        last(service, query, methods=["magic"])
    with pytest.raises(OptionError, match="got none"):
        last(service, query, methods=[])
    with pytest.raises(OptionError):
        list(service.generate(prompt="cat", seed=-1, steps=3, guidance=1.0))


def test_a_prompt_that_is_too_long_is_said(service):
    *_, query = service.generate(prompt="a" * 200, seed=0, steps=1, guidance=1.0)
    assert any("202 tokens; the model reads the first 77" in s for s in query.preparation)


def test_the_estimate_grows_with_the_effort(service):
    quick, full = (service.estimate(["guda", "clip"], e) for e in ("quick", "full"))
    assert service.estimate(["clip"], "full") < quick < full


def test_the_record_is_plain_json(service):
    query = picture(service)
    answers = list(last(service, query).values())
    about = {"provenance": service.provenance(), "settings": {"effort": "quick", "methods": ["guda", "clip"]}}
    record = json.loads(json.dumps(report.to_json(query, answers, GROUPS, **about)))
    guda = record["methods"]["guda"]
    assert guda["unit"] == "nats" and list(guda["groups"]) == list(GROUPS.groups)
    first = next(k for k in GROUPS.groups if k != MISSING)
    assert guda["groups"][first].keys() >= {"score", "low", "high", "status"}
    assert guda["groups"][MISSING]["score"] is None and guda["groups"][MISSING]["status"] == "unavailable"


def test_clip_similarity_is_the_mean_max_and_prototype_cosine(service):
    query = picture(service)
    f = service.clip.image_features(query.pixels[None])[0].double()
    bank = service.clip.read_bank()
    for aggregate in ("mean", "max", "prototype"):
        (a,) = ClipSimilarity(service.clip, GROUPS, aggregate).attribute(query)
        for k, s in a.groups.items():
            cosines = [float(b.double() @ f) for b in bank[k]]
            middle = bank[k].double().mean(dim=0)
            expected = {
                "mean": np.mean(cosines), "max": max(cosines), "prototype": float(middle @ f / middle.norm()),
            }  # fmt: skip
            assert s.score == pytest.approx(expected[aggregate], abs=1e-5)
    with pytest.raises(OptionError, match="mean, max, prototype"):
        ClipSimilarity(service.clip, GROUPS, "median")


def test_a_bank_of_another_clip_is_refused(service, tmp_path):
    make_clip(ClipConfig(text_width=16, text_layers=1, image_width=24, image_layers=1, max_tokens=77), tiny_tokenizer(77), 16).save_pretrained(tmp_path)  # noqa: E501  # fmt: skip
    tiny_tokenizer(77).save_pretrained(tmp_path)
    (tmp_path / "bank.safetensors").write_bytes((service.clip.folder / "bank.safetensors").read_bytes())
    with pytest.raises(ModelError, match="another CLIP"):
        Clip(tmp_path).read_bank()


def test_the_bundled_model_stands_in_when_another_cannot_be_had(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    with pytest.raises(ModelError, match="sd15"):
        load_service("sd15", fall_back=False)
    stand_in = load_service("sd15")
    assert "in place of 'sd15'" in stand_in.banner and stand_in.model.card.id == "emoji"


@pytest.fixture(scope="module")
def bundled():
    return load_service("emoji")


def test_the_bundled_service_is_whole(bundled):
    service = bundled
    assert service.method(Guda).unavailable == {} and set(service.method(ClipSimilarity).bank) == set(GROUPS.groups)
    done = list(service.generate(prompt="star, flat colours", seed=1, steps=2, guidance=2.5))
    assert isinstance(done[0], Step) and done[-1].pixels.shape == (64, 64, 3)
    base = sum(p.numel() for p in service.model.network.parameters())
    for a in service.method(Guda).adapters.values():
        assert sum(b.numel() + x.numel() for b, x, _ in a.factors.values()) <= 0.05 * base


@pytest.mark.parametrize(("thing", "group"), [("rocket", "openmoji"), ("cat-face", "emojione-monotone")])
def test_the_best_caption_of_a_picture_that_the_bundled_model_drew_is_the_one_it_was_drawn_from(bundled, thing, group):
    prompt = first_caption(GROUPS, thing, group)
    *_, query = bundled.generate(prompt=prompt, seed=1, steps=20, guidance=2.5)
    assert bundled.best_caption(bundled.with_prompt(query, "")) == prompt
