"""Report zips: a sound one, and what becomes of it when its bytes, its members or the values in it are changed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from experiments.fuzz.mutations import ODD, bent_bytes, bent_value, json_text
from experiments.fuzz.trial import Door
from guda_core.reports.bundle import FILES, RECORD, SCORES, VALUES

ASKED: dict[str, Any] = {"effort": "quick", "methods": ["guda", "clip"]}


@cache
def sound() -> dict[str, bytes]:
    """The files of a sound report, of a service without a model."""
    from PIL import Image

    from guda_core.reports import bundle
    from tests.light import LightService

    service, out = LightService(), io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(out, "PNG")
    query = service.prepare(out.getvalue(), prompt="cat, flat colours")
    found = {a.method: a for a in service.attribute(query, **ASKED)}
    data = bundle.make(query, list(found.values()), service.group_set, provenance=service.provenance(), settings=ASKED)
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return {name: z.read(name) for name in z.namelist()}


def zipped(files: Mapping[str, bytes] | Sequence[tuple[str, bytes]], rng: Random | None = None) -> bytes:
    """As a zip; a name may stand twice in a list. rng: whether the members are packed."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as z:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, data in files.items() if isinstance(files, Mapping) else files:
            kind = zipfile.ZIP_STORED if rng is None else rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            z.writestr(zipfile.ZipInfo(name), data, compress_type=kind)
    return out.getvalue()


def agreeing(files: dict[str, bytes], record: Any) -> dict[str, bytes]:
    """The files with a record that names their hashes, as a forger would write it."""
    from guda_core.reports.bundle import COLUMNS, csv_text, score_rows

    out = dict(files)
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        out[SCORES] = csv_text(COLUMNS, score_rows(record)).encode()
    if isinstance(record, dict):
        record = {**record, "files": {n: hashlib.sha256(out[n]).hexdigest() for n in out if n != RECORD}}
    out[RECORD] = json_text(record).encode("utf-8", "surrogatepass")
    return out


def _bent_values(rng: Random, data: bytes) -> bytes:
    """The arrays with other shapes, types and values, or other bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        files = {n: z.read(n) for n in z.namelist()}
    for name in rng.sample(sorted(files), rng.randint(1, 3)):
        kind, array = rng.randrange(5), np.load(io.BytesIO(files[name]))
        if kind == 0:
            files[name] = bent_bytes(rng, files[name])
            continue
        if kind == 1:
            array = array.astype(rng.choice(("<f4", ">f8", "<i4", "<c16", "<U4", "<i8", "<f8")))
        elif kind == 2:
            array = array.reshape(rng.choice(((-1,), (1, *array.shape), array.shape[::-1])))
        elif kind == 3:
            array = np.full_like(array, rng.choice((0, 1, -1, 2**62)))
        else:
            array = array[: rng.randrange(len(array) + 1)]
        out = io.BytesIO()
        np.save(out, array)
        files[name] = out.getvalue()
    if rng.random() < 0.2:
        files[rng.choice((f"{rng.choice(sorted(files))}x.npy", "clip/pictures.npy", "other/t.npy", "../t.npy"))] = (
            b"\x93NUMPY"
        )
    return zipped(files, rng)


def inputs(seed: int) -> Iterator[bytes]:
    """The whole zip, then changed ones; the hashes are mostly corrected, so that what is behind them is reached."""
    rng, files = Random(seed), sound()
    record = json.loads(files[RECORD])
    yield zipped(files, rng)
    yield zipped([(n, bytes(40_000_000)) for n in FILES], rng)
    for text in ("[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "9" * 5000, "NaN", '{"format": ' + "9" * 4000 + "}"):
        yield zipped([(n, text.encode() if n == RECORD else d) for n, d in files.items()], rng)
    while True:
        kind = rng.randrange(8)
        if kind == 0:
            yield bent_bytes(rng, zipped(files, rng))
        elif kind == 1:
            members = list(files.items())
            at = rng.randrange(len(members))
            name, data = members[at]
            odd = rng.choice(
                (f"folder/{name}", f"../{name}", f"/{name}", "x.txt", f"__MACOSX/._{name}", "", "C:\\a", "a\nb", name)
            )
            members[at] = rng.choice(
                ((odd, data), (name, bent_bytes(rng, data)), (name, rng.choice(members)[1]), (name, b""))
            )
            yield zipped(members + ([members[0]] if rng.random() < 0.1 else []), rng)
        elif kind == 2:
            yield zipped(agreeing({**files, VALUES: _bent_values(rng, files[VALUES])}, record), rng)
        elif kind == 3:
            yield json_text(bent_value(rng, record)).encode("utf-8", "surrogatepass")
        elif kind == 4:  # only free places: what the schema says nothing about
            free = json.loads(json.dumps(record))
            for place in ("settings", "hardware", "versions", "validation", "health", "scope"):
                if rng.random() < 0.4:
                    free[place] = rng.choice((bent_value(rng, free[place]) if free[place] else {}, rng.choice(ODD)))
            for found in free["methods"].values():
                if rng.random() < 0.5:
                    found["settings"] = bent_value(rng, {**found["settings"], "offset": {"noto": 1.0}, "draws": 3})
            yield zipped(agreeing(files, free), rng)
        else:
            yield zipped(agreeing(files, bent_value(rng, record)), rng)


def start(folder: Path) -> Callable[[bytes], None]:
    """A report is read, shown, set beside a sound one, and computed again by a service without a model."""
    from guda_core.reports.findings import Verdict
    from guda_core.reports.read import read_report
    from guda_core.reports.replay import replay
    from guda_core.reports.restore import attributions
    from guda_core.ui import report_screens
    from guda_core.ui.panels import main_panel
    from tests.light import LightService

    service = LightService()
    info = service.methods()["guda"]
    (folder / "sound.zip").write_bytes(zipped(sound()))
    told = report_screens.opened(folder / "sound.zip", service.methods()).told

    def tried(data: bytes) -> None:
        place = folder / "report.zip"
        place.write_bytes(data)
        report = read_report(place)
        for a in attributions(report):
            if set(a.groups) <= set(service.group_set.groups):
                main_panel(a, service.group_set, info, caveat="", scope=None)
        found = report_screens.opened(place, service.methods())
        report_screens.comparison(found.told, told)
        for item in replay(report, service):
            if isinstance(item, Verdict):
                report_screens.told(item)

    return tried


DOOR = Door("reports", inputs, start, memory_mb=400)
