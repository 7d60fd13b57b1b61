"""The examples of the how-to pages run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import yaml
from PIL import Image

from guda_core import named
from guda_core.attribution import METHODS
from guda_core.attribution.method import Budget, answers
from guda_core.attribution.others import made_from
from guda_core.cli import loading
from guda_core.data import SOURCES
from guda_core.data.groups import list_group_sets, load_group_set
from guda_core.data.sources.source import open_dataset
from guda_core.records import Query
from guda_core.unlearning import health
from tests.light import LightService, draw
from tests.own_pictures import guda, paint, waves
from tests.table_works import folder_of, rows
from tests.tiny import TINY, save_tiny
from tests.tiny_blip import save_tiny_blip

PAGES = Path(__file__).resolve().parent.parent / "docs" / "how-to"


def blocks(page: str, language: str) -> list[str]:
    """The examples of that language on a page, in order."""
    found = re.findall(rf"^( *)```{language}\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.M)
    return [textwrap.dedent(text) for _, text in found]


def block(page: str, language: str) -> str:
    """The first example of that language on a page."""
    return blocks(page, language)[0]


def test_a_source_added_from_outside_reads_a_group_sets_pictures(tmp_path):
    made: dict[str, object] = {}
    exec(compile(block("add-a-source.md", "python"), "add-a-source.md", "exec"), made)
    try:
        for i, group in enumerate(("ann", "bo")):
            np.save(tmp_path / f"{group}.npy", np.full((3, 8, 8, 3), i, np.uint8))
        (tmp_path / "sets" / "two").mkdir(parents=True)
        entry = {
            "id": "two", "name": "Two", "resolution": 8, "source": {"id": "arrays", "path": str(tmp_path)},
            "groups": {"ann": {"name": "Ann"}, "bo": {"name": "Bo"}},
        }  # fmt: skip
        (tmp_path / "sets" / "two" / "group_set.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
        dataset = open_dataset(load_group_set("two", tmp_path / "sets"))
        assert [i.id for i in dataset.split("train")] == ["ann/0", "ann/1", "bo/0", "bo/1"]
        assert [i.id for i in dataset.split("held_out")] == ["ann/2", "bo/2"]
        assert dataset.split("train")[2].image(8).max() == 1
        assert dataset.fingerprint("train") != dataset.fingerprint("held_out")
    finally:
        SOURCES.remove("arrays")


def test_the_group_set_of_the_page_is_one(tmp_path):
    (tmp_path / "artists").mkdir()
    (tmp_path / "artists" / "group_set.yaml").write_text(blocks("own-groups.md", "yaml")[1], encoding="utf-8")
    found = load_group_set("artists", tmp_path)
    assert [g.name for g in found.groups.values()] == ["Ann Lee", "Bo Chan"] and found.source == "folder"


def test_every_command_about_own_pictures_runs_on_stand_ins(tmp_path, home, pictures, monkeypatch):
    """From an empty workspace, in the page's order. Written in between: the credits, a table, a data set, a model."""
    text = (PAGES / "own-groups.md").read_text(encoding="utf-8").split("## From npm")[0]
    commands = [shlex.split(c) for part in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for c in part.splitlines()]
    monkeypatch.chdir(tmp_path)
    for name in ("José Núñez", "葛飾北斎", "Fay_Wu"):  # three artists are enough
        shutil.rmtree(pictures / name)
    save_tiny(tmp_path / "tiny", small=True)
    blip = save_tiny_blip(tmp_path / "blip")
    paint(tmp_path / "picture.png", 1, 3)
    (tmp_path / "rights.csv").write_text(RIGHTS, encoding="utf-8")
    data_set().to_parquet(str(tmp_path / "paintings.parquet"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, load=datasets.load_dataset, **k: (
        datasets.DatasetDict({"train": data_set()}) if a[0] == "USER/NAME" else load(*a, **k)
    ))  # fmt: skip
    few = health.HealthConfig(pictures=1, held_out=3, strata=4)
    monkeypatch.setattr(health, "HealthConfig", lambda: few)
    ran = []
    for words in (c for c in commands if c and c[:2] != ["guda", "app"]):
        more = (
            FEW
            if words[1] == "unlearn" and "--draft" not in words
            else ["--effort", "quick"]
            if words[1] == "attribute"
            else []
        )
        places = {"NAME": str(tmp_path / "tiny"), "Salesforce/blip-image-captioning-base": str(blip)}
        said = guda(*[places.get(w, w) for w in words[1:]], *more)
        ran.append(words[1])
        if words[1:3] == ["groups", "new"] and len(ran) == 1:
            credit(home / "sets" / "artists" / "group_set.yaml")
        if words[1:3] == ["groups", "check"]:
            assert "of their own shapes" in said if words[3] == "shapes" else "CC-BY-4.0" in said
            assert (home / "sets" / words[3] / "contact-sheet.png").is_file()
    assert ran.count("groups") == 11 and {"unlearn", "attribute"} < set(ran)
    assert load_group_set("artists").groups["ann-lee"].licence == "CC-BY-4.0"  # --again kept it
    assert load_group_set("padded").fit == "pad" and "rights" in list_group_sets()
    assert load_group_set("styled").groups["dee"].phrase == "in the Dee style"


FEW = ["--steps", "1", "--batch", "1"]
RIGHTS = """file,group,author,licence,text
Ann Lee/0.jpg,Ann Lee,Ann Lee,CC-BY-4.0,a cat on a wall
Bo Chan/0.jpg,Bo Chan,Bo Chan,CC0-1.0,the sea
"""


def credit(path: Path) -> None:
    """Write the credits of the page into the set."""
    entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    entry["groups"] |= yaml.safe_load(blocks("own-groups.md", "yaml")[0])["groups"]
    path.write_text(yaml.safe_dump(entry, allow_unicode=True), encoding="utf-8")


def data_set() -> datasets.Dataset:
    """Four pictures by two artists."""
    told = {
        "image": [Image.fromarray(waves(i % 2, i, 40, 30)) for i in range(4)],
        "artist": ["Ann", "Bo"] * 2,
        "text": ["a wave"] * 4,
    }
    kinds = {"image": datasets.Image(), "artist": datasets.Value("string"), "text": datasets.Value("string")}
    return datasets.Dataset.from_dict(told, features=datasets.Features(kinds))


def test_the_commands_about_many_pictures_run(tmp_path, monkeypatch):
    """In the page's order, with the light service; the workers make it anew."""
    page = (PAGES / "many-pictures.md").read_text(encoding="utf-8")
    commands = [shlex.split(c) for text in blocks("many-pictures.md", "sh") for c in text.splitlines()]
    commands += [shlex.split(c.replace("\\|", "|")) for c in re.findall(r"\| `(guda results [^`]*)` \|", page)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(named, "Named", lambda *a: LightService)
    monkeypatch.setattr(loading, "service_of", lambda *a: LightService())
    monkeypatch.setattr("guda_core.diffusion.cards.known_cards", lambda: {LightService().provenance().model: TINY})
    folder_of(tmp_path / "pictures", 2)
    draw(tmp_path / "pictures" / "cat.png", seed=9)
    (tmp_path / "captions.csv").write_text('file,prompt\npictures/cat.png,"a cat, flat"\n')
    for words in (c for c in commands if c[1] != "app"):
        guda(*words[1:])
    made = {p.name for p in tmp_path.iterdir()}
    assert made >= {"results", "captioned", "faster", "report.zip", "rows.csv", "summary.json"}
    assert len(commands) == 12 and rows("results") == rows("faster") and rows("captioned")[0]["prompt"] == "a cat, flat"
    made_of: dict[str, object] = {}
    exec(
        blocks("many-pictures.md", "python")[-1]
        .replace(".show()", ".fetchall()")
        .replace("duckdb.sql", "found = duckdb.sql"),
        made_of,
    )
    assert sum(n for _, n in made_of["found"]) == 3


def test_a_method_added_from_outside_scores_every_group():
    made: dict[str, object] = {"__name__": "__main__"}  # as in a notebook
    code = block("add-a-method.md", "python")
    exec(compile(code, "add-a-method.md", "exec"), made)
    try:
        method = METHODS["random"].load(SimpleNamespace(groups=["ann", "bo"]))
        query = Query(np.zeros((2, 2, 3), np.uint8), None, "", "0" * 63 + "1")
        (answer,) = answers({"random": method}, ["random"], query, Budget())
        (again,) = answers({"random": method}, ["random"], query, Budget())
        assert sorted(answer.ranked()) == ["ann", "bo"] and answer.ranked() == again.ranked()
        assert method.info().name == "Random" and answer.unit == "points" and answer.progress == 1
        before = made_from(method)
        assert answer.settings == before and before["version"] == 1
        for old, new in (("points", "points"), ("[:8]", "[8:16]"), (": 1}", ": 2}"), ("(v, v, v)", "(v, v, v + 1)")):
            assert old in code
            exec(compile("\n\n" + code.replace(old, new), "another cell", "exec"), {"__name__": "__main__"})
            now = made_from(METHODS["random"].load(SimpleNamespace(groups=["ann", "bo"])))
            assert (now == before) == (old == new)
    finally:
        METHODS.remove("random")
