"""A table made on a real Ray cluster of two machines, which are two nodes on this one, of one logical CPU each.

Whatever is killed, full, poisoned or cut short: nothing lost, nothing twice, and the rows of one process, bit by bit.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.scale import chaos, overhead
from guda_core.attribution.guda import Guda
from guda_core.errors import ReportError
from guda_core.jobs.chosen_pool import opened
from guda_core.scoring import parts, places, scorer
from guda_core.scoring.part_jobs import by_pool
from guda_core.scoring.table_run import Options, Total
from tests.light import LightService
from tests.table_works import Made, Tiny, folder_of, pids, rows, run, scored
from tests.test_jobs import ROOT
from tests.test_pipeline import service  # noqa: F401  (a fixture)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        with chaos.two_nodes() as made:
            yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "in", 12)


def test_a_node_and_the_driver_are_killed(cluster, folder, tmp_path):
    out, diary = tmp_path / "out", tmp_path
    words = [str(folder), str(out), str(diary), "0.4"]
    found = chaos.suffer(cluster, out, 12, lambda a: [sys.executable, "-m", "tests.table_works", *words, a])
    assert 3 <= found["node_killed_at"] <= found["driver_killed_at"] < 12
    run(folder, tmp_path / "single", LightService)
    assert chaos.compare(chaos.rows(tmp_path / "single"), chaos.rows(out)) == {
        "lost": 0, "twice": 0, "equal_to_single": True
    }  # fmt: skip
    assert len(pids(diary)) >= 3 and set(scored(diary)) == hashes(folder)
    before = len(scored(diary))
    assert run(folder, out, Made(diary)) == Total(12, kept=12) and len(scored(diary)) == before


def hashes(folder: Path) -> set[str]:
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_full_disk_is_told(cluster, folder, tmp_path):
    full = tmp_path / "full"
    full.touch()
    with opened(1, cluster.address, lasting=True) as pool, pytest.raises(ReportError, match="No space left on device"):
        run(folder, tmp_path / "out", Made(tmp_path, full=full), partial(by_pool, pool=pool))
    assert not rows(tmp_path / "out")


def test_workers_make_their_service_once_and_stand_a_poisoned_picture_and_a_part_cut_short(cluster, folder, tmp_path):
    """The workers of one pool make three tables."""
    out, first, last = (tmp_path / name for name in ("out", "first", "last"))
    first.mkdir()
    last.mkdir()
    with opened(None, cluster.address, lasting=True) as pool:
        by = partial(by_pool, pool=pool)
        assert run(folder, first / "out", Made(first), by) == Total(12, scored=12)
        services = [int(line.split()[1]) for line in (first / "services").read_text().splitlines()]
        assert len(set(services)) == len(services) == len(pids(first)) <= 2 < len(files(first / "out"))
        (folder / "empty.png").write_bytes(b"")
        total = run(folder, out, Made(tmp_path, ends=folder / "004.png"), by)
        assert total.why == {"004.png": scorer.ENDED, "empty.png": rows_reason(out, "empty.png")}
        assert (total.scored + total.kept, total.refused) == (11, 2)
        part = Path(files(out)[1])
        names = {r["picture"] for r in parts.read(str(part))}
        part.write_bytes(part.read_bytes()[:-30])
        again = run(folder, out, Made(last), by)
    redone = names - {"empty.png"} | {"004.png"}
    assert again == Total(13, len(redone), 12 - len(redone), 1, again.why) and pids(last)
    run(folder, tmp_path / "single", LightService)
    assert chaos.compare(rows(tmp_path / "single"), rows(out))["equal_to_single"]


def files(out: Path) -> list[str]:
    return places.files(str(out / parts.FOLDER), parts.ENDING)


def rows_reason(out: Path, name: str) -> str:
    return next(r["reason"] for r in rows(out) if r["picture"] == name)


def test_a_real_model_gives_the_same_bits_on_ray_as_here(cluster, service, tmp_path):  # noqa: F811
    folder, options = folder_of(tmp_path / "in", 2), Options("quick", ("guda", "clip"), "cat")
    make = Tiny(Path(service.method(Guda).folder).parent, service.model.card)
    overhead.on_ray(folder, tmp_path / "out", make, options, cluster.address)
    run(folder, tmp_path / "single", lambda: service, options=options)
    assert rows(tmp_path / "out") == rows(tmp_path / "single")
    assert len([r for r in rows(tmp_path / "out") if r["score"] is not None]) == 2 * (7 + 8)
