"""Faults of the server as a caller meets them: damaged adapters, too little memory, a full disk, a crowd."""

from __future__ import annotations

import hashlib
import html
import json
import os
import pickle
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
import pytest
import torch
from gradio_client.exceptions import AppError
from PIL import Image

from guda_core.attribution.guda import Guda
from guda_core.data.groups import load_group_set
from guda_core.diffusion.memory import NO_MEMORY
from guda_core.local import LocalService
from guda_core.records import Attribution, Query
from guda_core.ui import QUEUE, words
from guda_core.unlearning import adapter_files, adapters
from tests.fakes import WAIT, FakeService
from tests.served import App, opened
from tests.test_imaging import NOISE, encoded, halves
from tests.test_ui_api import DRAW, OPTIONS, text
from tests.tiny import tiny_service

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3
WELL = ("openmoji", "twemoji")  # the groups that have an adapter here


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> LocalService:
    missing = [g for g in load_group_set("emoji").groups if g not in WELL]
    return tiny_service(tmp_path_factory.mktemp("service"), missing=missing)


@pytest.fixture
def real(tmp_path: Path, service: LocalService) -> Iterator[App]:
    """The app on a tiny real model."""
    yield from opened(tmp_path, service)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    yield from opened(tmp_path, FakeService())


class Payload:
    """Unpickled, it would leave a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def damage(folder: Path, trace: Path, kind: str) -> None:
    """Damage an adapter in one of the ways of `DAMAGES`."""
    weights, meta = adapter_files.weights_file(folder), adapter_files.meta_file(folder)
    record, data = json.loads(meta.read_text()), bytearray(weights.read_bytes())

    def rehashed(content: bytes, **more: Any) -> None:
        weights.write_bytes(content)
        meta.write_text(json.dumps({**record, "sha256": hashlib.sha256(content).hexdigest(), **more}))

    if kind == "a flipped bit":
        data[-3] ^= 1
        weights.write_bytes(data)
    elif kind == "another hash":
        meta.write_text(json.dumps({**record, "sha256": "0" * 64}))
    elif kind == "cut off, hash and all":
        rehashed(bytes(data[: len(data) // 2]))
    elif kind == "a pickle":
        weights.unlink()
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(trace)))
    elif kind == "a pickle under the right name":
        rehashed(pickle.dumps(Payload(trace)))
    elif kind == "metadata cut off":
        meta.write_text(meta.read_text()[:40])
    elif kind == "metadata of another kind":
        meta.write_text("[1, 2]")
    else:
        rehashed(bytes(data), lora={"rank": 0, "alpha": 2, "targets": ["to_q"]})


DAMAGES = {
    "a flipped bit": "do not have the hash",
    "another hash": "do not have the hash",
    "cut off, hash and all": "cannot be read",
    "a pickle": "never pickles",
    "a pickle under the right name": "cannot be read",
    "metadata cut off": "metadata guda.json",
    "metadata of another kind": "metadata guda.json",
    "no rank": "its rank is 0",
}


@pytest.mark.parametrize("kinds", [list(DAMAGES)[:4], list(DAMAGES)[4:]], ids=["weights", "metadata"])
def test_damaged_adapters_are_unavailable_the_rest_answers_and_no_pickle_is_opened(kinds, service, tmp_path):
    trace, folder = tmp_path / "unpickled", tmp_path / "adapters"
    shutil.copytree(service.method(Guda).folder, folder)
    bad = dict(zip([g for g in service.group_set.groups if g not in WELL], kinds, strict=False))
    for group, kind in bad.items():
        shutil.copytree(folder / WELL[0], folder / group)
        meta = json.loads((folder / group / adapters.META).read_text())
        (folder / group / adapters.META).write_text(json.dumps({**meta, "group": group}))
        adapters.load(folder / group, model=service.model, group=group)  # sound before it is damaged
        damage(folder / group, trace, kind)
    hurt = LocalService(service.model, service.group_set, service.clip, folder)
    for app in opened(tmp_path, hurt):
        found = app.record(encoded(halves()))["methods"]["guda"]["groups"]
        for group, kind in bad.items():
            assert found[group]["status"] == "unavailable" and found[group]["score"] is None, kind
            assert DAMAGES[kind] in found[group]["reason"] and str(tmp_path) not in found[group]["reason"]
        assert all(found[g]["status"] == "ok" and found[g]["low"] <= found[g]["score"] for g in WELL)
    assert not trace.exists()


def scores(record: dict[str, Any]) -> np.ndarray:
    return np.array([record["methods"]["guda"]["groups"][g]["score"] for g in WELL])


def short_of_memory(service: LocalService, patch: pytest.MonkeyPatch, most: int) -> list[int]:
    """From now on the model fits at most so many pieces; the sizes that it is asked for."""
    predict, asked = service.model.predict, []

    def counted(x: torch.Tensor, *more: Any) -> torch.Tensor:
        asked.append(len(x))
        if len(x) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return predict(x, *more)

    patch.setattr(service.model, "predict", counted)
    return asked


def test_out_of_memory_is_retried_smaller_with_the_same_answer(real, service, monkeypatch):
    data = encoded(Image.fromarray(NOISE))
    enough = scores(real.record(data))
    asked = short_of_memory(service, monkeypatch, most=5)
    np.testing.assert_allclose(scores(real.record(data)), enough, rtol=1e-3, atol=1e-3)
    assert max(asked) > 5 and asked[-1] <= 5


def no_sample(*a: Any, **more: Any) -> Iterator[Any]:
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
    yield


def test_out_of_memory_for_good_is_explained_and_the_next_visitor_is_served(real, service, caplog):
    data = encoded(Image.fromarray(NOISE))
    with pytest.MonkeyPatch.context() as patch:
        asked = short_of_memory(service, patch, most=0)
        with pytest.raises(AppError, match=re.escape(NO_MEMORY)):
            real.record(data)
        assert asked[-1] == 1
        patch.setattr(service.model, "sample", no_sample)
        with pytest.raises(AppError, match=re.escape(NO_MEMORY)):
            real.visitor.generate(methods=["clip"])
    assert np.isfinite(scores(real.record(data))).all()


def test_a_full_disk_is_said_and_leaves_no_part_of_a_report(app, monkeypatch):
    opened, full = Path.open, []

    def open_on_a_full_disk(path: Path, mode: str = "r", *a: object, **named: object) -> IO:
        if path.name.startswith(".part-") and "w" in mode:
            full.append(path)
            with opened(path, "wb") as f:
                f.write(b"begun")
            raise OSError(28, "No space left on device")
        return opened(path, mode, *a, **named)

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)
    offered = app.uploads / "offered"
    before = set(offered.rglob("*"))
    with pytest.raises(AppError, match=re.escape(html.escape(words.DISK))):
        app.report()
    assert full and set(offered.rglob("*")) == before
    monkeypatch.undo()
    assert app.report().endswith(".zip")


def test_an_example_is_answered_although_the_disk_is_full(app, monkeypatch, caplog):
    def replace(*a: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    out = app.visitor.call("/page_example_1")
    assert text(out["status"]) == words.DONE and "An example could not be kept" in caplog.text


class Held(FakeService):
    """A service whose first answer waits until it is let go."""

    def __init__(self) -> None:
        super().__init__(passes=1)
        self.go = threading.Event()

    def attribute(self, query: Query, *, methods: Sequence[str], effort: str, **_: object) -> Iterator[Attribution]:
        assert self.go.wait(WAIT)
        yield from super().attribute(query, methods=methods, effort=effort)


def test_fifty_visitors_at_once_are_answered_in_turn_or_told_that_it_is_busy(tmp_path):
    held = Held()
    for app in opened(tmp_path, held):
        call = f"{app.url}gradio_api/call/generate_and_attribute"

        def ask(seed: int, call: str = call) -> httpx.Response:
            data = list({**DRAW, **OPTIONS, "methods": ["clip"], "seed": seed}.values())
            return httpx.post(call, json={"data": data, "session_hash": f"visitor{seed}"}, timeout=WAIT)

        def last(sent: httpx.Response, call: str = call) -> str:
            return httpx.get(f"{call}/{sent.json()['event_id']}", timeout=WAIT).text

        with ThreadPoolExecutor(50) as pool:
            sent = list(pool.map(ask, range(50)))
            page = httpx.get(app.url, timeout=WAIT)
            assert page.status_code == 200 and words.TITLE in html.unescape(page.text)
            accepted = {seed: r for seed, r in enumerate(sent) if r.status_code == 200}
            busy = [r for r in sent if r.status_code == 503]
            assert len(accepted) + len(busy) == 50 and QUEUE <= len(accepted) <= QUEUE + 1
            assert all("Queue is full" in r.text for r in busy)
            held.go.set()
            answers = dict(zip(accepted, pool.map(last, accepted.values()), strict=True))
        pictures = set()
        for seed, answer in answers.items():
            assert "event: complete" in answer and "event: error" not in answer, (seed, answer[-500:])
            pictures.add(json.loads(answer.rsplit("data: ", 1)[1])[0]["picture"]["pixels_sha256"])
        assert len(pictures) == len(accepted) and held.most_at_work == 1
        assert app.visitor.generate()["guda"]  # and the one after them is served as ever
