"""Drafts by UCE: the closed form against least squares, the low rank against an SVD, and the whole way through."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import guda_core
from guda_core.attribution.guda import Guda
from guda_core.data import encoded
from guda_core.data.dataset import Pictures
from guda_core.data.groups import load_group_set
from guda_core.data.own.picture_list import FILE, read_list
from guda_core.diffusion.cards import find_card, load_model
from guda_core.errors import OptionError
from guda_core.publishing.published import publish
from guda_core.unlearning import adapter_files, adapters, draft, run, uce
from guda_core.unlearning.lora import LoraSpec
from guda_core.unlearning.run import Forgetting
from guda_core.unlearning.uce import Moments, UceConfig
from tests.own_pictures import guda, paint
from tests.own_workspace import ARTISTS, own_workspace, plant
from tests.tiny import save_tiny, save_tiny_unconditional
from tests.tiny_families import save_family

D = 7


def rows(n: int, seed: int, width: int = D) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(tokens: torch.Tensor, goals: torch.Tensor | None = None) -> Moments:
    out = Moments(tokens.shape[1])
    out.add(tokens[:2], None if goals is None else goals[:2])
    out.add(tokens[2:], None if goals is None else goals[2:])
    return out


@pytest.mark.parametrize(("mu", "ridge"), [(0.5, 0.1), (2.0, 1e-3)])
def test_the_edit_is_the_least_squares_solution(mu, ridge):
    """Solved as one tall system by `lstsq`, with the values that each token is to have on its right side."""
    c, goal, p, q, w = rows(12, 0), rows(12, 1), rows(9, 2), rows(5, 3), rows(4, 4)
    moves, m = uce.weighed(moments(c, goal), moments(p), moments(q), preserve=mu, ridge=ridge)
    rest = c.T @ c / 12 + mu * (p.T @ p / 9 + q.T @ q / 5)
    lam = ridge * float(rest.trace()) / D
    weights = [(12**-0.5, c, goal), ((mu / 9) ** 0.5, p, p), ((mu / 5) ** 0.5, q, q)]
    weights.append((lam**0.5, torch.eye(D).double(), torch.eye(D).double()))
    left = torch.cat([s * a for s, a, _ in weights])
    right = torch.cat([s * b @ w.T for s, _, b in weights])
    truth = torch.linalg.lstsq(left, right).solution.T
    torch.testing.assert_close(w + w @ uce.edit_of(moves, m), truth)


def test_a_cut_rank_leaves_out_what_an_svd_of_all_layers_leaves_out():
    c, goal, p = rows(30, 0), rows(30, 1), rows(30, 2)
    weights = {"k": rows(5, 3), "v": 3 * rows(4, 4)}
    moves, m = uce.weighed(moments(c, goal), moments(p), preserve=1.0, ridge=0.1)
    t = uce.edit_of(moves, m)
    root = torch.linalg.cholesky(m)
    change = torch.cat(list(weights.values())) @ t @ root  # the changes at tokens of unit variance
    sizes = torch.linalg.svdvals(change)
    for rank in (2, 5):
        found = uce.factored(weights, t, m, rank=rank, rest=0.0)
        truth = float((sizes[rank:].square().sum() / sizes.square().sum()).sqrt())
        assert found.rank == rank and found.rest == pytest.approx(truth, rel=1e-6)
        torch.testing.assert_close(found.down @ found.down.T, torch.eye(rank).double())
        made = torch.cat([found.up[n] @ found.down for n in weights]) @ root
        assert float((made - change).norm() / change.norm()) == pytest.approx(truth, rel=1e-6)
    whole = uce.factored(weights, t, m, rank=D, rest=0.0)
    torch.testing.assert_close(whole.up["k"] @ whole.down, weights["k"] @ t)
    few = uce.factored(weights, t, m, rank=D, rest=0.5)
    assert few.rank < D and few.rest <= 0.5 < uce.factored(weights, t, m, rank=few.rank - 1, rest=0.0).rest


def test_the_rank_is_at_most_the_number_of_edited_tokens():
    moves, m = uce.weighed(moments(rows(3, 0), rows(3, 1)), moments(rows(30, 2)), preserve=1.0, ridge=0.01)
    found = uce.factored({"k": rows(6, 3)}, uce.edit_of(moves, m), m, rank=D, rest=0.0)
    assert found.rank <= 3 and found.rest < 1e-6


def test_each_word_has_a_word_of_the_anchor_in_its_place():
    said = torch.tensor([9.0, 1, 2, 3, 4, 8, 0, 0, 0]).reshape(-1, 1)  # start, 1, then three words, end, padding
    goal = torch.tensor([9.0, 1, 5, 6, 8, 7, 7, 7, 7]).reshape(-1, 1)  # start, 1, then two words, end, padding
    assert uce.places(said, goal, 6, 5).tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert uce.places(goal, said, 5, 6).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 8]
    assert uce.places(said, said, 6, 6).tolist() == list(range(9))


@pytest.mark.parametrize("family", ["sd1", "sd2", "xl"])
def test_edited_tokens_are_read_as_their_anchors_and_preserved_ones_as_before(family, tmp_path):
    """In a tiny model, through the adapter as it is stored, in each layer that reads the prompt."""
    model = load_model(save_family(tmp_path / "model", family))
    layers = draft.readers(model)
    assert layers and all(n.endswith(("attn2.to_k", "attn2.to_v")) for n in layers)
    c, goal, p = (model.embed([p]).tensors["text"][0, 1:4].double() for p in ("abc", "def", "ghi"))
    moves, m = uce.weighed(moments(c, goal), moments(p), preserve=1.0, ridge=1e-8)
    found = uce.factored(layers, uce.edit_of(moves, m), m, rank=8, rest=0.0)
    state = {f"{n}.lora_A.weight": found.down.half() for n in found.up}
    state |= {f"{n}.lora_B.weight": up.half() for n, up in found.up.items()}
    meta = {"group": "ann", "base_sha256": model.sha256, "draft": draft.BY}
    adapters.save_factors(state, tmp_path / "a", spec=LoraSpec(found.rank, found.rank, draft.READERS), meta=meta)
    adapter = adapters.load(tmp_path / "a", model=model, group="ann")
    assert set(adapter.factors) == {f"{n}.weight" for n in layers}
    for name, w in layers.items():
        w = w.double()
        new = w + adapter.delta(f"{name}.weight", w.device).double()
        asked = float((w @ (goal - c).T).norm())
        assert float((new @ c.T - w @ goal.T).norm()) < 0.01 * asked
        assert float((new @ p.T - w @ p.T).norm()) < 0.01 * asked


@pytest.fixture
def work(home):
    return own_workspace(home, adapters_too=False)


def test_a_draft_moves_the_groups_captions_towards_their_anchors_and_others_less(work):
    save_tiny(work / "models" / "brush")  # in the small network others move nearly as much
    job = Forgetting(load_group_set("artists"), model="brush")
    made = draft.make(job, "dee", UceConfig(captions=4, anchors=2, empty_shift=0.0))
    adapter = job.load("dee")
    assert made.rank == adapter.meta["lora"]["rank"] and 0 <= made.rest < 1 and adapter.meta["draft"] == "UCE"
    said = {p: job.model.embed([p]).tensors["text"][0] for p in ("by Dee", "by Bo Chan", "by Ann Lee", "")}
    moved = {}
    for p, c in said.items():
        deltas = [adapter.delta(n, c.device) @ c.T for n in adapter.factors]
        moved[p] = float(torch.cat(deltas).norm())
    assert moved["by Dee"] > 2 * max(moved["by Bo Chan"], moved["by Ann Lee"], moved[""])
    goal = (said["by Bo Chan"] + said["by Ann Lee"]) / 2
    end = job.model.tokens("by Dee")[0] - 1
    for n in adapter.factors:  # the last words' keys and values
        w = job.model.network.get_parameter(n)
        before, after = (
            float((v @ said["by Dee"][end] - w @ goal[job.model.tokens("by Bo Chan")[0] - 1]).norm())
            for v in (w, w + adapter.delta(n, w.device))
        )
        assert after < before


def test_the_program_drafts_says_so_and_puts_real_adapters_in_their_place(work, tmp_path):
    paint(tmp_path / "one.png")
    plant(work / "runs" / "brush" / "artists" / "adapters" / "ann-lee", "ann-lee", 1)
    said = guda("unlearn", "--draft")
    assert "2 drafts by UCE" in said and "Ann Lee" not in said
    folder = work / "runs" / "brush" / "artists" / "adapters"
    first = {g: adapter_files.read_meta(folder / g) for g in ARTISTS}
    assert [g for g in ARTISTS if adapter_files.is_draft(first[g])] == ["bo-chan", "dee"]
    said = guda(
        "attribute", tmp_path / "one.png", "--prompt", "by Dee", "--methods", "guda", "--effort", "quick",
        "--report", tmp_path / "report.zip",
    )  # fmt: skip
    words = "The models without Bo Chan, Dee are drafts: instant edits (UCE) in place of unlearning."
    assert words in said
    with zipfile.ZipFile(tmp_path / "report.zip") as z:
        name = next(n for n in z.namelist() if n.endswith("report.json"))
        record = json.loads(z.read(name))
    assert record["limits"][0].startswith(words) and record["methods"]["guda"]["settings"]["drafts"] == [
        "bo-chan",
        "dee",
    ]
    assert "Nothing to do" in guda("unlearn", "--draft")
    assert "2 drafts" in guda("unlearn", "--draft", "--again")
    again = {g: adapter_files.read_meta(folder / g) for g in ARTISTS}
    assert all(again[g]["sha256"] == first[g]["sha256"] for g in ARTISTS)  # the same bytes
    found = publish(find_card("brush"), load_group_set("artists"))
    assert set(found.missing) == {"bo-chan", "dee"} and "is a draft" in found.missing["dee"]
    said = guda("unlearn", "--groups", "bo-chan", "--steps", "1", "--batch", "1", "--rank", "1")
    assert "Made again in place of a draft. Groups: bo-chan." in said
    assert "Warning: The models without Bo Chan forgot nothing that could be measured" in said
    said = guda("unlearn", "--draft", "--again", "--groups", "bo-chan,ann-lee")
    assert said.endswith("Every group has a real adapter, and these stay. Drafts are made of groups without one.")
    now = {g: adapter_files.is_draft(adapter_files.read_meta(folder / g)) for g in ARTISTS}
    assert now == {"ann-lee": False, "bo-chan": False, "dee": True}


def test_models_of_other_settings_or_of_pictures_made_square_otherwise_are_said(home):
    own_workspace(home)
    folder, gs = home / "runs" / "brush" / "artists" / "adapters", load_group_set("artists")
    model = load_model(find_card("brush"))

    def caveat() -> str:
        return Guda(model, gs, folder).caveat()

    assert caveat() == ""
    plant(folder / "dee", "dee", 3, steps=5)
    words = "The models without Dee were made with other settings than the others, so their scores cannot be compared."
    assert caveat() == words
    plant(folder / "dee", "dee", 3)
    adapter_files.note(folder / "dee", {adapter_files.FIT: gs.fit})
    assert caveat() == ""
    adapter_files.note(folder / "dee", {adapter_files.FIT: "bucket"})
    assert caveat().startswith("The models without Dee were made before the set's pictures or captions changed.")


def test_models_of_pictures_that_changed_since_are_said(home, pictures, tmp_path):
    """By the set's list alone: no picture is opened."""
    paint(tmp_path / "one.png")
    guda("groups", "new", pictures)
    save_tiny(home / "models" / "mine", small=True)
    where = ("--set", "artists", "--model", home / "models" / "mine")
    asked = ("attribute", tmp_path / "one.png", *where, "--methods", "guda", "--effort", "quick")
    guda("unlearn", "--draft", *where)
    words = "were made before the set's pictures or captions changed"
    assert words not in guda(*asked)
    held = {p.picture for p in read_list(home / "sets" / "artists" / FILE) if p.held_out}
    gone = next(p for p in sorted(pictures.rglob("*.jpg")) if p.relative_to(pictures).as_posix() not in held)
    gone.unlink()
    guda("groups", "new", pictures, "--again")
    assert f"The models without each group {words}. `guda unlearn` makes them again." in guda(*asked)
    assert "1 draft by UCE" in guda("unlearn", "--draft", *where, "--groups", "dee")
    assert "Nothing to do" in guda("unlearn", "--draft", *where, "--groups", "dee")
    said = guda(*asked)
    assert words in said and "Dee" not in said.partition(words)[0].rpartition("The models without")[2]
    (home / "sets" / "artists" / FILE).write_text("no list", encoding="utf-8")
    assert words not in guda(*asked)  # unknown is not said to be wrong


def test_gradient_features_of_pictures_that_changed_since_are_said(home, pictures, tmp_path):
    paint(tmp_path / "one.png")
    guda("groups", "new", pictures)
    save_tiny(home / "models" / "mine", small=True)
    where = ("--set", "artists", "--model", home / "models" / "mine")
    guda("assets", "features", *where, "--methods", "dtrak", "--dim", "4")
    asked = ("attribute", tmp_path / "one.png", *where, "--methods", "dtrak", "--effort", "quick")
    words = "The features that D-TRAK answers from were made before the set's pictures or captions changed."
    assert words not in guda(*asked)
    listed = {p.picture for p in read_list(home / "sets" / "artists" / FILE) if not p.held_out}
    next(p for p in sorted(pictures.rglob("*.jpg")) if p.relative_to(pictures).as_posix() in listed).unlink()
    guda("groups", "new", pictures, "--again")
    assert f"{words} `guda assets features` makes them again." in guda(*asked)


def more_pictures(folder) -> None:
    """Change the set `artists`: pictures are added, and none is taken away."""
    for i in range(3):
        paint(folder / "Dee" / f"new {i}.png", 3, 20 + i)
    guda("groups", "new", folder, "--again")


@pytest.mark.parametrize("by", ["unlearning", "UCE"])
def test_a_set_that_changes_between_two_groups_is_said_of_both(home, pictures, by):
    guda("groups", "new", pictures)
    save_tiny(home / "models" / "mine", small=True)
    group_set = load_group_set("artists")
    job = Forgetting(group_set, model=str(home / "models" / "mine"))
    config = job.config(steps=1, batch=1, rank=1)

    def make(group):
        return draft.make(job, group) if by == "UCE" else list(job.unlearn(group, config))

    make("dee")
    more_pictures(pictures)
    make("fay-wu")
    job.note_list(["dee"])
    assert Guda(job.model, group_set, job.folder).outdated == ["dee", "fay-wu"]


@pytest.mark.parametrize(
    ("method", "made", "words"),
    [
        ("dtrak", ("features", "--methods", "dtrak", "--dim", "4"), "The features that D-TRAK answers from were made"),
        ("introstyle", ("introstyle",), "The styles that IntroStyle compares with were made"),
    ],
)
def test_a_set_that_changes_while_its_pictures_are_encoded_is_said(
    home, pictures, tmp_path, monkeypatch, method, made, words
):
    paint(tmp_path / "one.png")
    guda("groups", "new", pictures)
    save_tiny(home / "models" / "mine", small=True)
    where = ("--set", "artists", "--model", home / "models" / "mine")
    asked = ("attribute", tmp_path / "one.png", *where, "--methods", method, "--effort", "quick")
    with monkeypatch.context() as patch:
        hashed, pending = encoded.hash_pixels, [pictures]
        patch.setattr(encoded, "hash_pixels", lambda p: (pending and more_pictures(pending.pop())) or hashed(p))
        guda("assets", *made, *where)
    assert f"{words} before the set's pictures" in guda(*asked)
    assert "There already" not in guda("assets", *made, *where)
    assert words not in guda(*asked)


def test_files_saved_anew_with_the_same_pixels_are_no_other_pictures(home, pictures, tmp_path):
    paint(tmp_path / "one.png")
    guda("groups", "new", pictures)
    save_tiny(home / "models" / "mine", small=True)
    where = ("--set", "artists", "--model", home / "models" / "mine")
    unlearned = ("unlearn", *where, "--groups", "dee", "--steps", "1", "--batch", "1", "--rank", "1")
    asked = ("attribute", tmp_path / "one.png", *where, "--methods", "guda", "--effort", "quick")
    guda(*unlearned)
    made = adapter_files.read_meta(home / "runs" / "mine" / "artists" / "adapters" / "dee")
    for path in [p for p in pictures.rglob("*") if p.suffix.lower() == ".png"]:
        note = PngInfo()
        note.add_text("Copyright", "D. Ee")
        with Image.open(path) as im:
            im.save(path, format="PNG", pnginfo=note)
    guda("groups", "new", pictures, "--again")
    words = "before the set's pictures or captions changed. `guda unlearn` makes"
    assert words in guda(*asked)  # the files differ, and pictures are not opened for an answer
    guda_core.unlearn("artists", home / "models" / "mine", only="dee", steps=1, batch=1, rank=1)
    assert words not in guda(*asked)
    now = adapter_files.read_meta(home / "runs" / "mine" / "artists" / "adapters" / "dee")
    assert {k for k in now if now[k] != made[k]} == {"list_sha256"}  # nothing was made again


def test_features_of_pictures_that_changed_since_are_said(home, pictures, tmp_path):
    paint(tmp_path / "one.png")
    guda("groups", "new", pictures)
    save_tiny(home / "models" / "mine", small=True)
    where = ("--set", "artists", "--model", home / "models" / "mine")
    asked = ("attribute", tmp_path / "one.png", *where, "--methods", "clip")
    guda("assets", "bank", *where)
    words = "CLIP similarity compares with were made before the set's pictures or captions changed. `guda assets bank"
    assert words not in guda(*asked)
    held = {p.picture for p in read_list(home / "sets" / "artists" / FILE) if p.held_out}
    next(p for p in sorted(pictures.rglob("*.jpg")) if p.relative_to(pictures).as_posix() not in held).unlink()
    guda("groups", "new", pictures, "--again")
    assert words in guda(*asked)
    guda("assets", "bank", *where)
    assert words not in guda(*asked)


def test_a_draft_never_takes_the_place_of_what_unlearning_made_of_another_model(work):
    """Two models may have one name."""
    folder = work / "runs" / "brush" / "artists" / "adapters"
    plant(folder / "ann-lee", "ann-lee", 1)
    assert "2 drafts" in guda("unlearn", "--draft")
    for g in ("ann-lee", "dee"):
        meta = adapter_files.meta_file(folder / g)
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "base_sha256": "0" * 64}))
    assert "is the adapter of another model" in guda("unlearn", "--draft", code=2)
    said = guda("unlearn", "--draft", "--again", code=2)
    assert f"In {folder / 'ann-lee'} is the adapter of another model" in said and "without --draft" in said
    assert "2 drafts" in guda("unlearn", "--draft", "--again", "--groups", "bo-chan,dee")
    assert adapter_files.read_meta(folder / "dee")["base_sha256"] != "0" * 64


def test_a_draft_leaves_what_unlearning_made_also_where_it_cannot_be_used_or_came_meanwhile(work):
    folder = work / "runs" / "brush" / "artists" / "adapters"
    plant(folder / "ann-lee", "ann-lee", 1)
    (folder / "ann-lee" / "adapter_model.safetensors").unlink()
    said = guda("unlearn", "--draft", "--again")
    assert "The adapter 'ann-lee' cannot be used" in said and "Drafts leave it as it is." in said
    assert "2 drafts" in said and not adapter_files.is_draft(adapter_files.read_meta(folder / "ann-lee"))
    said = guda("unlearn", "--draft", "--groups", "ann-lee")
    assert "Drafts leave it as it is." in said and "Nothing to do" not in said
    plant(folder / "bo-chan", "bo-chan", 1)
    weights, meta = folder / "bo-chan" / "adapter_model.safetensors", adapter_files.meta_file(folder / "bo-chan")
    meta.write_text("{")
    kept = weights.read_bytes()
    said = guda("unlearn", "--draft", "--again", "--groups", "bo-chan")
    assert "is damaged" in said and "Drafts leave it as it is." in said
    assert weights.read_bytes() == kept and meta.read_text() == "{"
    job = Forgetting(load_group_set("artists"), model="brush")
    assert draft.undrafted(job, ["dee"], again=True) == ["dee"]
    plant(folder / "dee", "dee", 2)  # as another process makes one just then
    assert draft.make(job, "dee", UceConfig(captions=4, anchors=2)) is None
    assert not adapter_files.is_draft(adapter_files.read_meta(folder / "dee"))


def test_the_library_drafts_what_the_program_drafts(work, caplog):
    folder = work / "runs" / "brush" / "artists" / "adapters"
    plant(folder / "ann-lee", "ann-lee", 1)
    (folder / "ann-lee" / "adapter_model.safetensors").unlink()
    made = guda_core.draft("artists", "brush", only=["dee", "ann-lee"])
    assert list(made) == ["dee"] and made["dee"].rank > 0 and "Drafts leave it as it is." in caplog.text
    first = adapter_files.read_meta(folder / "dee")
    assert "1 draft" in guda("unlearn", "--draft", "--again", "--groups", "Dee")  # by its name
    assert adapter_files.is_draft(first) and adapter_files.read_meta(folder / "dee")["sha256"] == first["sha256"]
    assert guda_core.draft("artists", "brush", only=["Dee", "dee"]) == {}  # by its name
    assert list(guda_core.draft("artists", "brush", folder=work / "other")) == list(ARTISTS)
    for function in (guda_core.draft, guda_core.unlearn):
        with pytest.raises(OptionError, match="only names no group"):
            function("artists", "brush", only=[])
    with pytest.raises(OptionError, match="draft loads the model itself: give its name, such as model='brush'"):
        guda_core.draft("artists", load_model(find_card("brush")))


def test_a_draft_goes_with_no_other_settings(work):
    for more in (("--steps", "3"), ("--pass-size", "3"), ("--no-checkpointing",)):
        assert "--draft goes with" in guda("unlearn", "--draft", *more, code=2)


def test_models_without_layers_of_their_own_for_the_prompt_are_refused(tmp_path):
    for card in (save_family(tmp_path / "sd3", "sd3"), save_tiny_unconditional(tmp_path / "u")):
        with pytest.raises(OptionError, match="A draft edits the layers that only read the prompt"):
            draft.readers(load_model(card))


@pytest.mark.parametrize("changes", [{"captions": 0}, {"ridge": 0.0}, {"rest": 1.0}, {"preserve": -1.0}, {"rank": 0}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(OptionError):
        UceConfig(**changes)


def test_every_setting_changes_the_draft(tmp_path, monkeypatch):
    emoji, card = load_group_set("emoji"), save_tiny(tmp_path / "model")
    n = 3 * len(emoji.groups)
    pictures = Pictures(
        np.zeros((n, 16, 16, 3), np.uint8), tuple(g for g in emoji.groups for _ in range(3)),
        emoji.train_objects[:3] * (n // 3),
    )  # fmt: skip
    monkeypatch.setattr(run, "chosen_card", lambda name: card)
    monkeypatch.setattr(run, "load_pictures", lambda gs, split, seen: pictures)
    job = Forgetting(emoji, folder=tmp_path / "adapters")
    base = {"captions": 2, "anchors": 1, "rank": 6, "rest": 0.0}

    def factors(**changes):
        draft.make(job, "noto", UceConfig(**{**base, **changes}))
        return np.concatenate([f[0].numpy().ravel() for f in job.load("noto").factors.values()])

    plain = factors()
    np.testing.assert_array_equal(factors(), plain)
    for changes in (
        {"captions": 1}, {"anchors": 2}, {"preserve": 0.1}, {"empty_shift": 0.1}, {"ridge": 0.1}, {"rank": 3},
        {"rest": 0.5}, {"seed": 6},
    ):  # fmt: skip
        other = factors(**changes)
        assert other.shape != plain.shape or not np.allclose(other, plain, rtol=1e-3), changes
