"""The fuzz run: its doors stand a short run, and what is planted behind a door is told for what it is."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from experiments.fuzz import __main__ as fuzz
from experiments.fuzz import mutations
from experiments.fuzz.trial import KINDS, Door, Outcome, Watched, find_door, is_fit
from guda_core.errors import GudaError, ReportError

SHORT = {"models": 20, "adapters": 40, "api": 40, "command_line": 40}  # inputs; of the others 60


def start_all(folder: Path) -> Callable[[bytes], None]:
    """All doors in one process, so that the libraries are imported once. The command line comes last: it changes the
    working directory."""
    runs: dict[bytes, Callable[[bytes], None]] = {}
    for name, place in fuzz.DOORS.items():
        (folder / name).mkdir()
        runs[name.encode()] = run = find_door(place).start(folder / name)
        with contextlib.suppress(GudaError):
            run(next(find_door(place).inputs(0)))

    def tried(data: bytes) -> None:
        name, _, own = data.partition(b":")
        runs[name](own)

    return tried


def of_pictures(seed: int) -> Iterator[bytes]:
    return (b"pictures:" + data for data in find_door(fuzz.DOORS["pictures"]).inputs(seed))


ALL = Door("all", of_pictures, start_all, memory_mb=700)


@pytest.fixture(scope="module")
def all_doors() -> Iterator[Watched]:
    with Watched("tests.test_fuzz:ALL", seconds=60.0) as watched:
        yield watched


def few(door: Door, n: int) -> Iterator[bytes]:
    """Its first n inputs; of files that are decoded in a process of their own, which takes long, every second one."""
    apart = 0
    for data in itertools.islice(door.inputs(5), n):
        is_apart = data.startswith(b"II*") or data[4:8] == b"ftyp"
        apart += is_apart
        if not is_apart or apart % 2:
            yield data


@pytest.mark.parametrize("name", fuzz.DOORS)
def test_every_door_stands_a_short_run(all_doors, name):
    counts, door = dict.fromkeys(KINDS, 0), find_door(fuzz.DOORS[name])
    for data in few(door, SHORT.get(name, 60)):
        outcome = all_doors.tried(name.encode() + b":" + data)
        counts[outcome.kind] += 1
        assert outcome.kind in ("accepted", "refused"), outcome.detail
        assert outcome.grown_mb <= door.memory_mb
    assert counts["accepted"] and counts["refused"]


@pytest.mark.parametrize("name", fuzz.DOORS)
def test_the_same_seed_gives_the_same_inputs_and_another_one_others(name):
    def first(seed: int) -> list[bytes]:
        return list(itertools.islice(find_door(fuzz.DOORS[name]).inputs(seed), 40 if name == "pictures" else 12))

    assert first(1) == first(1) != first(2)


def counted(seed: int) -> Iterator[bytes]:
    return (str(seed + i).encode() for i in itertools.count())


def planted(fault: Callable[[int], object], memory_mb: int = 60) -> Door:
    """A door that takes an even number, refuses 1, and has a fault at every other one."""

    def start(folder: Path) -> Callable[[bytes], None]:
        def tried(data: bytes) -> None:
            n = int(data)
            if n == 1:
                raise ReportError("One is refused.")
            if n % 2:
                fault(n)

        return tried

    return Door("planted", counted, start, memory_mb)


def _raise(_: int) -> None:
    raise KeyError("an error that nobody foresaw")


def _speak(_: int) -> None:
    raise ReportError('It failed. Traceback (most recent call last): File "guda.py", line 1')


def _hide(_: int) -> None:
    try:
        bytearray(10**14)
    except MemoryError as e:
        raise ReportError("This zip is damaged.") from e


CRASHES, SPEAKS, ENDS = planted(_raise), planted(_speak), planted(lambda n: os._exit(3))
SLEEPS = planted(lambda n: time.sleep(60))
EATS, ASKS, HIDES = planted(lambda n: np.ones(12_000_000)), planted(lambda n: bytearray(10**9)), planted(_hide)
FAULTS = {
    "CRASHES": "crashed", "SPEAKS": "crashed", "ENDS": "crashed", "SLEEPS": "hung", "EATS": "over_memory",
    "ASKS": "over_memory", "HIDES": "over_memory",
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_told_for_what_it_is_and_the_next_input_is_tried(name):
    with Watched(f"tests.test_fuzz:{name}", seconds=1.0 if name == "SLEEPS" else 5.0) as watched:
        found = [watched.tried(str(n).encode()).kind for n in (0, 1, 3, 4, 5, 6)]
    assert found == ["accepted", "refused", FAULTS[name], "accepted", FAULTS[name], "accepted"]


def test_a_run_counts_keeps_what_it_found_and_tries_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "DOORS", {"planted": "tests.test_fuzz:CRASHES"})
    made = run_main(
        monkeypatch, "--minutes", "0.01", "--out", str(tmp_path / "f.json"), "--keep", str(tmp_path / "kept")
    )
    assert made == 1
    record = json.loads((tmp_path / "f.json").read_text())
    assert record["tried"] == sum(record[k] for k in KINDS) > record["crashed"] > 0
    assert record["doors"]["planted"]["crashed"] == record["crashed"] and record["hung"] == record["over_memory"] == 0
    kept = sorted((tmp_path / "kept").glob("*.bin"))
    assert 0 < len(kept) <= fuzz.ALIKE and all(int(p.read_bytes()) % 2 for p in kept)
    assert "nobody foresaw" in kept[0].with_suffix(".txt").read_text()
    capsys.readouterr()
    assert run_main(monkeypatch, "--replay", str(kept[0])) == 1
    assert capsys.readouterr().out.startswith("crashed")


@pytest.mark.parametrize(("doors", "said"), [(" ,", "--doors names nothing"), ("sets, windows", "--doors some of pic")])
def test_doors_are_named(monkeypatch, doors, said):
    monkeypatch.setattr("sys.argv", ["fuzz", "--doors", doors])
    with pytest.raises(SystemExit, match=said):
        fuzz.main()


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The exit code of the command."""
    monkeypatch.setattr("sys.argv", ["fuzz", *words])
    with pytest.raises(SystemExit) as ended:
        fuzz.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("text", ["", " ", "a\nb", "a" * 1001, "Traceback (most recent call last)", "<X at 0x7f12>"])
def test_a_refusal_that_cannot_be_shown_is_unfit(text):
    assert not is_fit(text)
    assert is_fit("This file is empty.")


def test_mutations_change_and_stay_readable():
    rng, value = Random(0), {"a": [1, 2.5, "text", {"b": None}], "c": {"d": True}}
    bent = [mutations.bent_value(rng, value) for _ in range(200)]
    assert all(b != value for b in bent[:5]) and value == {"a": [1, 2.5, "text", {"b": None}], "c": {"d": True}}
    assert mutations.json_text(["@deep@", "@endless@"]).count("[") == 5001
    assert mutations.unpacked_files(mutations.packed({"a/b": b"\0\xff"})) == {"a/b": b"\0\xff"}
    assert Outcome("accepted") == Outcome("accepted", "", 0.0, 0.0)
