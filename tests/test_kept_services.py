"""The service that is kept from call to call: never one that read other adapters, or ran with other settings."""

from __future__ import annotations

import gc
import os
import shutil
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import guda_core
from guda_core import api, kept_services
from guda_core.attribution import METHODS
from guda_core.attribution.similarity import ClipSimilarity
from guda_core.errors import OptionError
from guda_core.named import Named
from guda_core.paths import ASSETS
from guda_core.scoring.scorer import Task, service_of
from tests.own_pictures import paint
from tests.own_workspace import own_workspace, plant

FEW = {"steps": 2, "batch": 1, "rank": 2}


class Another(ClipSimilarity):
    id = "another"


@pytest.fixture
def there(home):
    own_workspace(home, adapters_too=False)
    kept_services.let_go()
    yield home
    kept_services.let_go()


def task(home):
    return Task(str(home / "out"), 0, 1, Named("brush", "artists"), effort="quick")


def test_what_unlearning_made_is_seen_by_the_next_answer(there, tmp_path):
    picture = paint(tmp_path / "p.png")

    def score(group: str):
        answer = guda_core.attribute(picture, model="brush", groups="artists", effort="quick")
        return answer.methods["guda"].groups[group]

    plant(there / "runs" / "brush" / "artists" / "adapters" / "ann-lee", "ann-lee", 0)
    assert (score("ann-lee").status, score("dee").status) == ("ok", "unavailable")
    guda_core.unlearn("artists", "brush", only="dee", **FEW)
    assert not kept_services._kept
    first = score("dee")
    assert first.status == "ok"
    plant(there / "runs" / "brush" / "artists" / "adapters" / "dee", "dee", 5)  # as another process makes one
    assert score("dee").status == "ok" and score("dee") != first


def test_a_call_that_fails_lets_go_too(there):
    api._service("brush", "artists")
    with pytest.raises(OptionError, match="no setting step"):
        guda_core.unlearn("artists", "brush", only="dee", step=2)
    assert not kept_services._kept


@pytest.mark.parametrize("through", ["attribute", "a table"])
def test_it_is_made_anew_where_a_setting_or_an_adapter_is_another(there, through, monkeypatch, tmp_path):
    def made():
        return api._service("brush", "artists") if through == "attribute" else service_of(task(there))

    one = made()
    assert made() is one
    plant(there / "runs" / "brush" / "artists" / "adapters" / "dee", "dee", 2)
    two = made()
    assert two is not one and made() is two
    monkeypatch.setenv("GUDA_DTYPE", "bfloat16")
    three = made()
    assert three is not two and str(three.model.dtype) == "torch.bfloat16"
    own_workspace(tmp_path / "another")
    monkeypatch.setenv("GUDA_HOME", str(tmp_path / "another"))
    assert made() is not three


def test_it_is_made_anew_where_the_model_or_the_set_of_pictures_is_another(there):
    first = api._service("brush", "artists")
    weights = next((Path(first.model.card.path) / "unet").glob("*.safetensors"))
    state = load_file(weights)
    save_file({n: p * 1.01 for n, p in state.items()}, weights)
    second = api._service("brush", "artists")
    assert second.model.sha256 != first.model.sha256 and api._service("brush", "artists") is second
    for name in ("group_set.yaml", "pictures.jsonl"):  # as where captions changed
        with (there / "sets" / "artists" / name).open("a", encoding="utf-8") as f:
            f.write("\n")
        last, second = second, api._service("brush", "artists")
        assert second is not last and api._service("brush", "artists") is second


def test_it_is_made_anew_where_words_an_encoder_or_the_list_of_methods_are_others(there):
    encoder = there / "encoder"
    shutil.copytree(ASSETS / "clip", encoder)
    card = there / "models" / "brush.yaml"
    card.write_text(f"{card.read_text(encoding='utf-8')}  encoder: clip:{encoder}\n", encoding="utf-8")
    first = api._service("brush", "artists")
    assert api._service("brush", "artists") is first
    for path in (Path(first.model.card.path) / "tokenizer" / "merges.txt", encoder / "config.json"):
        path.touch()
        last, first = first, api._service("brush", "artists")
        assert first is not last and api._service("brush", "artists") is first
    METHODS.add("another", Another)
    try:
        assert api._service("brush", "artists") is not first
    finally:
        METHODS.remove("another")


def test_a_table_by_names_is_made_anew_where_they_stand_for_something_else(there):
    first = service_of(task(there))
    card = next((there / "models").glob("*.yaml"))
    card.write_text(card.read_text(encoding="utf-8").replace("resolution: 32", "resolution: 48"), encoding="utf-8")
    card.write_text(card.read_text(encoding="utf-8") + "  licence: Another\n", encoding="utf-8")
    second = service_of(task(there))
    assert second is not first and service_of(task(there)) is second


def test_members_that_come_while_it_is_made_do_not_load_the_model_twice(there):
    def make():
        METHODS.add("another", Another)  # as the package of one of its methods does
        return api.service_for(api.cards.load_model(api.cards.chosen_card("brush")), service.group_set)

    service = api._service("brush", "artists")
    try:
        assert kept_services.kept("x", make) is kept_services.kept("x", make)
    finally:
        METHODS.remove("another")


@pytest.mark.parametrize("ago", [0, 600], ids=["now", "by a clock that is behind"])
def test_what_changed_while_it_was_made_is_read_again(there, ago):
    group_set, card = api.group_sets.load_group_set("artists"), api.cards.chosen_card("brush")
    folder = there / "runs" / "brush" / "artists" / "adapters" / "dee"

    def make():
        service = api.service_for(api.cards.load_model(card), group_set)
        if not folder.exists():  # as another process, or `rsync -a`, does just then
            plant(folder, "dee", 3)
            for path in folder.iterdir():
                os.utime(path, (time.time() - ago,) * 2)
        return service

    first = kept_services.kept((card, group_set), make)
    second = kept_services.kept((card, group_set), make)
    assert second is not first and kept_services.kept((card, group_set), make) is second


def test_one_lets_go_of_its_model_before_another_is_loaded(there, monkeypatch):
    loaded = weakref.ref(service_of(task(there)).model)
    was, real = [], api.cards.load_model

    def load(card, **more):
        gc.collect()
        was.append(loaded())
        return real(card, **more)

    monkeypatch.setattr(api.cards, "load_model", load)
    monkeypatch.setenv("GUDA_DTYPE", "bfloat16")
    assert api._service("brush", "artists").query(np.zeros((16, 16, 3), np.uint8), "").image_hash and was == [None]


def test_a_report_tells_no_health_of_another_adapter_than_the_one_that_answered(there):
    folder = there / "runs" / "brush" / "artists" / "adapters" / "dee"
    plant(folder, "dee", 1)
    service = api._service("brush", "artists")
    assert isinstance(service.provenance().unlearned.figures["dee"], dict)
    plant(folder, "dee", 5)  # by another process, while this one is at work
    found = service.provenance().unlearned
    assert "another model without the group" in found.figures["dee"] and found.hashes == service.offered["guda"].hashes
