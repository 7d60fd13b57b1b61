"""Waiting times on this machine: `python -m experiments.speed` writes assets/benchmarks/speed.json.

Measured once loaded: generating a picture (25 steps), attributing it at each effort. Measured from nothing: the seconds
until `python app.py` answers over HTTP, in a process of its own. What an installation takes: the files of the packages
that requirements.txt brings, and the most memory that this process had, in which all methods were run at every effort.
What trainings take is in the record of `python -m experiments.costs`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import torch
from packaging.requirements import Requirement

from experiments.commands import drawn, write_record
from guda_core.attribution.guda import Guda
from guda_core.local import LocalService, load_service
from guda_core.paths import ROOT
from guda_core.records import Query
from guda_core.service import EFFORTS
from guda_core.unlearning.plan import peak_bytes


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cold_start(app: subprocess.Popen[bytes], url: str, limit_s: float) -> float:
    """Seconds until the page answers. Raises SystemExit when it does not, or the app ends."""
    began = time.perf_counter()
    while time.perf_counter() - began < limit_s:
        if app.poll() is not None:
            raise SystemExit(f"app.py ended with code {app.returncode}.")
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return time.perf_counter() - began
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"app.py did not answer within {limit_s:g} s.")


def app_start() -> float:
    """Seconds from starting `python app.py` to its first answer."""
    port, began = free_port(), time.perf_counter()
    env = {**os.environ, "GUDA_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    try:
        return time.perf_counter() - began + cold_start(app, f"http://127.0.0.1:{port}/", 120)
    finally:
        app.terminate()
        app.wait()


def make(service: LocalService, seed: int) -> tuple[float, Query]:
    """Seconds of one generation, and its query."""
    prompt = "rocket, artistic style featuring soft gradients"
    began = time.perf_counter()
    made = drawn(service, prompt, seed=seed, steps=25, guidance=2.5)
    return time.perf_counter() - began, made


def attribute(service: LocalService, query: Query, effort: str) -> tuple[float, float]:
    """(seconds of an attribution with all methods, seconds until the first bars)."""
    began, first = time.perf_counter(), None
    for a in service.attribute(query, methods=list(service.methods()), effort=effort):
        if a.method == "guda" and a.groups and first is None:
            first = time.perf_counter() - began
    return time.perf_counter() - began, first or float("nan")


def brought(lines: Iterable[str]) -> dict[str, Distribution]:
    """The installed packages that lines of requirements ask for, and all that those ask for, by name."""
    found: dict[str, Distribution] = {}
    seen: set[str] = set()
    todo = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    while todo:
        wanted = todo.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        found[wanted.name.lower().replace("_", "-")] = package = distribution(wanted.name)
        for r in map(Requirement, package.requires or ()):
            if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                todo.append(r)
    return found


def disk_bytes(packages: Iterable[Distribution]) -> int:
    """What the files of packages take on the disk."""
    files = (Path(str(f.locate())) for package in packages for f in package.files or ())
    return sum(f.stat().st_size for f in files if f.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "benchmarks" / "speed.json")
    options = parser.parse_args()
    start = app_start()
    service = load_service(fall_back=False)
    make(service, 0)  # warm
    made = [make(service, s) for s in range(options.repeats)]
    record = {
        "command": "python -m experiments.speed",
        "app_start_s": round(start, 1),
        "generate_25_steps_s": round(min(s for s, _ in made), 2),
        "attribute": {},
        "cpu_threads": torch.get_num_threads(),
        "unet_parameters": sum(p.numel() for p in service.model.network.parameters()),
        "adapter_parameters": {g: a.meta["parameters"] for g, a in service.method(Guda).adapters.items()},
    }
    for effort in EFFORTS:
        runs = [attribute(service, made[0][1], effort) for _ in range(options.repeats if effort == "quick" else 1)]
        seconds, first = min(runs)
        record["attribute"][effort] = {
            "seconds": round(seconds, 1),
            "first_bars_s": round(first, 1),
            "estimate_s": round(service.estimate(list(service.methods()), effort), 1),
            **dataclasses.asdict(EFFORTS[effort]),
        }
        print(effort, record["attribute"][effort])
    packages = brought((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    record["installed_mb"] = round(disk_bytes(packages.values()) / 1e6)
    record["peak_memory_mb"] = round(peak_bytes(torch.device("cpu")) / 1e6)
    write_record(options.out, record)


if __name__ == "__main__":
    main()
