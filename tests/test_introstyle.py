"""IntroStyle: its distance against closed forms, its styles against the features themselves, and a planted group."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import guda_core
from guda_core.attribution.introstyle import FILE, IntroStyle, IntroStyleConfig, listed_sha256, styles, write
from guda_core.attribution.method import Budget, Context, Unavailable
from guda_core.data.encoded import Examples
from guda_core.data.groups import load_group_set
from guda_core.diffusion.cards import load_model
from guda_core.errors import CacheError, ScoreError
from guda_core.records import Query
from tests.own_pictures import paint
from tests.tiny import save_tiny

GROUPS = load_group_set("emoji")
IDS = list(GROUPS.groups)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny")))


def latents(model, n, scale=1.0, seed=0):
    return scale * torch.randn(n, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


def examples(model):
    """Three pictures of each of two groups: one group's are faint, the other's strong."""
    z = torch.cat([latents(model, 3, 0.2, seed=1), latents(model, 3, 4.0, seed=2)])
    return Examples(z, ("",) * 6, (IDS[0],) * 3 + (IDS[1],) * 3, tuple(f"h{i}" for i in range(6)))


def query(z):
    return Query(pixels=np.zeros(1), latent=z, prompt="", image_hash="x")


def test_a_style_is_the_mean_and_the_spread_of_each_channel(model):
    z = latents(model, 2)
    config, kept = IntroStyleConfig(block=0, t=0.1), []
    hook = model.network.up_blocks[0].register_forward_hook(lambda m, i, o: kept.append(o))
    found = styles(model, z, config)
    hook.remove()
    f = kept[0].numpy()
    mean, spread = f.mean(axis=(2, 3)), f.std(axis=(2, 3))
    np.testing.assert_allclose(found.numpy(), np.concatenate([mean, spread], axis=1), rtol=1e-4, atol=1e-5)
    assert not model.network.up_blocks[0]._forward_hooks  # nothing is left on the model
    torch.testing.assert_close(styles(model, z[1:], config), found[1:])  # the same noise, whatever the batch
    assert not torch.allclose(styles(model, z, IntroStyleConfig(block=0, t=0.9)), found)


def test_the_score_is_minus_the_mean_2_wasserstein_distance():
    own, bank = torch.tensor([0.0, 1.0]), torch.tensor([[3.0, 5.0], [0.0, 1.0], [0.0, 4.0]])  # (mean, spread)
    s = IntroStyle._score(bank, own)
    assert s.score == pytest.approx(-(5 + 0 + 3) / 3)
    half = stats.t.ppf(0.975, 2) * np.std([5, 0, 3], ddof=1) / np.sqrt(3)
    assert (s.low, s.high) == pytest.approx((s.score - half, s.score + half))


def test_the_group_of_the_same_style_comes_first_and_one_without_styles_is_told(model, tmp_path):
    assert list(write(tmp_path / FILE, model, examples(model), batch=4)) == [4 / 6, 1.0]
    method = IntroStyle.load(Context(model, GROUPS, features=tmp_path))
    assert isinstance(method, IntroStyle) and method.cost(Budget()).forward == 1
    for k, scale in enumerate((0.2, 4.0)):
        (a,) = method.attribute(query(latents(model, 1, scale, seed=7)), Budget())
        assert a.ranked() == [IDS[k], IDS[1 - k]] and a.groups[IDS[2]].status == "unavailable"
        assert a.settings["bank_sha256"] == method.sha256 and a.settings["block"] == 1
    assert method.caveat() == ""
    assert "`guda assets introstyle --set emoji --model" in a.groups[IDS[2]].reason


def test_styles_of_pictures_that_changed_since_are_told_and_captions_do_not_count(model, home):
    pictures = home / "artists"
    for g in "ab":
        for i in range(3):
            paint(pictures / g / f"{i}.png", ord(g), i)
    group_set = guda_core.make_groups(pictures)
    path = home / "x" / FILE
    list(write(path, model, examples(model), listed=listed_sha256(group_set)))

    def said(group_set) -> str:
        return IntroStyle.load(Context(model, group_set, features=path.parent)).caveat()

    assert said(group_set) == ""
    (pictures / "a" / "0.txt").write_text("a wave")
    captioned = guda_core.make_groups(pictures, again=True)
    assert said(captioned) == ""
    assert said(replace(captioned, fit="pad"))
    paint(pictures / "a" / "more.png", 5, 5)
    caveat = said(guda_core.make_groups(pictures, again=True))
    assert "were made before the set's pictures changed. `guda assets introstyle --set artists --model" in caveat


def test_styles_are_made_of_as_many_latents_at_once_as_fit(model, tmp_path, monkeypatch):
    list(write(tmp_path / "plain" / FILE, model, examples(model), batch=4))
    predict, asked = model.predict, []

    def short(x_t, *more):
        asked.append(len(x_t))
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return predict(x_t, *more)

    monkeypatch.setattr(model, "predict", short)
    assert list(write(tmp_path / "few" / FILE, model, examples(model), batch=4)) == [4 / 6, 1.0]
    assert asked == [4, 2, 2, 2]
    plain, few = (IntroStyle.read(tmp_path / name / FILE, model, IDS).bank for name in ("plain", "few"))
    for g, found in few.items():
        torch.testing.assert_close(found, plain[g], rtol=2e-3, atol=1e-3)  # kept in float16


def test_styles_that_are_not_there_damaged_or_of_another_model_are_refused_in_one_sentence(model, tmp_path):
    context = Context(model, GROUPS, features=tmp_path)
    assert isinstance(IntroStyle.load(context), Unavailable)
    list(write(tmp_path / FILE, model, examples(model)))
    other = copy.copy(model)
    other.sha256 = "another"
    other.goes_by = lambda sha256: False
    with pytest.raises(CacheError, match=r"of another base model\. Make them with `guda x --again`\."):
        IntroStyle.read(tmp_path / FILE, other, IDS, mended_by="guda x")
    (tmp_path / FILE).write_bytes(b"damaged")
    with pytest.raises(CacheError, match="cannot be read"):
        IntroStyle.load(context)
    with pytest.raises(ScoreError, match="no such block"):
        styles(model, latents(model, 1), IntroStyleConfig(block=9))
    with pytest.raises(CacheError, match="from 0 to below 1"):
        IntroStyleConfig(t=1.0)
