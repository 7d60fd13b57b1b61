"""Tables of a report's page: how an answer was computed, all hashes, what is absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guda_core.answers.markup import Html, code, listed, table
from guda_core.reports.record import NOT_ASSESSED

PAGE = "report.html"
DIGITS = set("0123456789abcdef")


def circumstances(record: Mapping[str, Any]) -> Html:
    """Settings, draws, seed, versions and hardware, as a table."""
    settings, hardware = record["settings"], record["hardware"]
    rows = [
        ("Model", f"{record['model']['name']} ({record['model']['id']}), {record['model']['dtype']}"),
        ("Groups", f"{record['group_set']['name']} ({record['group_set']['id']})"),
        ("Caption", record["picture"]["prompt"] or "none"),
        *(("The picture", said.removesuffix(".")) for said in drawing(record)),
        ("Effort", settings["effort"]),
        ("Methods asked", ", ".join(settings["methods"])),
        *_draws(record),
        ("Seed", record["seed"]["rule"]),
        ("Versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items())),
        ("Hardware", ", ".join(f"{k} {v}" for k, v in hardware.items())),
    ]
    return table("How it was computed", ("What", "How"), rows, css="facts")


def drawing(record: Mapping[str, Any]) -> Iterator[str]:
    """How the model drew the picture, as a sentence, where it did."""
    if d := record["picture"].get("drawn"):
        yield f"The model drew it itself: seed {d['seed']}, {d['steps']} steps, guidance {d['guidance']:g}."


def _draws(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = record["group_set"]["groups"]
    for m, found in record["methods"].items():
        if s := found["sampling"]:
            first, last = s["timesteps"]
            fewer = ", ".join(f"{names[g]['name']} {n}" for g, n in (s.get("fewer") or {}).items())
            stopped = f"; fewer of groups that stopped early: {fewer}" if fewer else ""
            draws = f"{s['draws']} in each of {s['strata']} ranges of the timesteps {first} to {last}"
            yield f"Draws of {m}", draws + stopped


def hashes(record: Mapping[str, Any]) -> Html:
    """Every SHA-256 of the record, each once."""
    picture, names = record["picture"], record["group_set"]["groups"]
    found = {
        "Uploaded file": picture["file_sha256"],
        "Prepared pixels": picture["pixels_sha256"],
        "Model": record["model"]["sha256"],
        "CLIP": record["clip"]["sha256"],
        "CLIP's features of the training pictures": record["clip"]["bank_sha256"],
        **{f"Adapter: {names[g]['name'] if g in names else g}": v for g, v in record["adapters"].items()},
        **{f"Settings of {m}/{k}": v for m, f in record["methods"].items() for k, v in sha256_in(f["settings"])},
        **{k: v for k, v in record["files"].items() if k != PAGE},  # which cannot name itself
    }
    rows, seen = [], set()
    for what, sha in found.items():
        if sha not in seen:
            rows.append((what, code(sha) if sha else "none"))
        seen |= {sha} - {None}
    return table("SHA-256", ("What", "SHA-256"), rows, css="facts")


def sha256_in(value: Any, path: str = "", but: str | None = None) -> Iterator[tuple[str, str]]:
    """(path, value) of every SHA-256 in nested settings, without what is called `but`."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            if k != but:
                yield from sha256_in(v, f"{path}/{k}" if path else str(k), but)
    elif isinstance(value, str) and len(value) == 64 and not set(value) - DIGITS:
        yield path, value


def absences(record: Mapping[str, Any]) -> Html:
    """Each thing that the record could hold and does not, and why. Of scope it may say one thing only."""
    absent = {k: NOT_ASSESSED if k == "scope" else why for k, why in record["absent"].items()}
    return listed((f"{path}: {why}" for path, why in absent.items()), css="small") if record["absent"] else Html()
