"""The summary of a table as one HTML file: bars without scripts, light and dark, nothing from another host.

A bar is as long as its share of the pictures that count; its full part is where the group is clear of the second (95%
interval of their difference) and, for scores in nats, it stands out: score and drop are clearly above 0. All texts are
escaped: names and reasons may hold anything.
"""

from __future__ import annotations

from guda_core.answers.markup import Html, safe
from guda_core.data.own.found import counted
from guda_core.scoring import places
from guda_core.scoring.asking import Results
from guda_core.scoring.summary import First, Summary, left_out

SUMMARY = "summary.html"

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --quiet: #52606d; --line: #d9dee4; --bar: #2563eb; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e9ee; --quiet: #b4bdc8; --line: #3b4654; --bar: #60a5fa; --back: #14181d; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 2rem auto;
  max-width: 50rem; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 1.6rem 0 .3rem; }
p.quiet, figcaption, td.quiet { color: var(--quiet); }
figure { margin: .6rem 0; } .row { display: grid; grid-template-columns: minmax(6rem, 12rem) 1fr 9rem; gap: .6rem;
  align-items: center; font-size: .9rem; min-height: 1.6rem; } .row span:first-child { text-align: right; }
.track { display: flex; height: 1rem; } .track i { box-sizing: border-box; border: 2px solid var(--bar); }
.track .sure { background: var(--bar); }
.named { display: inline-block; margin-right: .8rem; }
.key { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 0;
  border: 2px solid var(--bar); box-sizing: border-box; } .key.sure { background: var(--bar); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td, th { text-align: left; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } .n { text-align: right; white-space: nowrap; width: 1%; }
@media (max-width: 38rem) { .row { grid-template-columns: 6.5rem 1fr 6rem; gap: .4rem; } }
"""
MEANING = (
    "A group counts where its score is the highest of all groups. A positive score in nats means that the group "
    "contributed. Scores are not shares. Pictures that the model could not have made count for no group. "
    "None of this says who owns a picture, that anything was copied, or what anybody is owed: it is no legal finding."
)


def write(results: Results, place: str = "", *, summary: Summary | None = None) -> str:
    """Write the page of results; returns its place. place: "" for the folder of the results. summary: of the results,
    where it is known already.

    Raises:
        ReportError: it cannot be written.
    """
    place = place or places.joined(results.folder, SUMMARY)
    title = places.name_of(results.folder) or "Results"
    places.write(place, page(summary or results.summary(), title).encode("utf-8", "backslashreplace"))
    return place


def page(summary: Summary, title: str) -> str:
    """The whole HTML file. title: what the table is called."""
    made = summary.made_from
    model, groups = made.get("model", {}), made.get("group_set", {})
    settings = made.get("settings", {})
    head = f"{counted(summary.pictures, 'picture')}, {counted(summary.rows, 'row')}"
    about = (
        f"Model: {model.get('name', '?')}. Groups: {groups.get('name', '?')}. Effort: {settings.get('effort', '?')}."
    )
    body = [
        f"<h1>{safe(title)}: {head}</h1>",
        f'<p class="quiet">{safe(about)}</p>',
        f"<p>Scored: {summary.scored:,}. Refused: {summary.refused:,}. Failed: {summary.failed:,}.</p>",
        f'<p class="quiet">{safe(MEANING)}</p>',
    ]
    body += [f"<p><b>{safe(said)}</b></p>" for said in summary.told()]
    if summary.cut:
        body.append(f"<p><b>{safe(left_out(summary.cut))}</b></p>")
    for method, found in summary.firsts.items():
        body.append(_firsts(method, found))
    body += [_scopes(summary), _reasons(summary), _unavailable(summary)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}: results</title><style>{STYLE}</style></head>\n<body>{''.join(body)}</body></html>\n"
    )


def _firsts(method: str, found: list[First]) -> str:
    """How often each group is first by a method, as bars."""
    total = sum(f.pictures for f in found)
    most = max((f.pictures for f in found), default=0)
    rows, told = "", []
    for f in found:
        share = f"{f.pictures:,} ({100 * f.pictures / total:.1f}%)" if total else "0"
        sure = f.apart or 0
        wide = [(100 * n / most if most else 0.0, css) for n, css in ((sure, "sure"), (f.pictures - sure, ""))]
        parts = "".join(f'<i class="{css}" style="width:{w:.2f}%"></i>' for w, css in wide if w)
        name = f"<span>{safe(f.name)}</span>"
        rows += f'<div class="row">{name}<span class="track">{parts}</span><span>{share}</span></div>'
        told.append(f"{safe(f.name)}: {f.pictures}, clearly in {sure}")
    knows = any(f.apart is not None for f in found)
    keys = {
        "key sure": "clearly first: clear of the second and, in nats, with score and drop clearly above 0",
        "key": "not clearly",
    }
    named = keys if knows else {"key": "this method does not say how surely"}
    key = " ".join(f'<span class="named"><span class="{css}"></span>{said}</span>' for css, said in named.items())
    base = f"Of {counted(total, 'picture')} that it has scored and that the model could have made."
    return (
        f'<h2>First group by {safe(method)}</h2><p class="quiet">{base}</p>'
        f'<figure><div role="img" aria-label="{Html("; ".join(told))}">'
        f"{rows}</div><figcaption>{key}</figcaption></figure>"
    )


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]], *, counts: bool = True) -> str:
    """A table; "" without rows. counts: its first column is of numbers."""
    if not rows:
        return ""
    marks = [' class="n"' if counts else "", *[""] * (len(head) - 1)]
    top = "".join(f"<th{m}>{safe(h)}</th>" for h, m in zip(head, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{safe(v)}</td>" for v, m in zip(row, marks, strict=True)) + "</tr>" for row in rows
    )
    return f"<h2>{safe(title)}</h2><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _scopes(summary: Summary) -> str:
    found = [(f"{n:,}", verdict) for verdict, n in summary.scopes.items()]
    return _table("Could the model have made them?", ("pictures", "verdict"), found)


def _reasons(summary: Summary) -> str:
    found = [(f"{n:,}", status, reason) for (status, reason), n in summary.reasons.items()]
    return _table("Pictures without scores, and why", ("pictures", "what", "reason"), found)


def _unavailable(summary: Summary) -> str:
    found = [(name, why) for name, why in summary.unavailable.items()]
    return _table("Groups without scores, and why", ("group", "reason"), found, counts=False)
