"""How the site is built: `make docs`, or `python -m sphinx -W --keep-going docs build/docs`. Warnings are errors.

Sphinx with MyST and the Furo theme: the pages are the Markdown that a code host shows, links between them are checked,
the API is read from docstrings, and nothing is fetched from a network, neither by the build nor by the pages.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "GUDA"
author = "The GUDA app authors"
copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "GUDA"
html_show_sourcelink = False
html_theme_options = {"footer_icons": []}
myst_heading_anchors = 3
default_role = "code"  # in docstrings, `x` is code
napoleon_numpy_docstring = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
html_static_path = ["site.css"]
html_css_files = ["site.css"]
COMMANDS = "<!-- commands -->"
SECTIONS = ("Arguments:", "Args:", "Returns:", "Yields:", "Raises:")
FIELD = re.compile(r"[a-z_0-9]+(, [a-z_0-9]+)*: ")  # "low, high: of the interval"


def _whole(command: Any) -> None:
    """The writer cuts a command's summary after 45 characters, unless it is given one."""
    command.short_help = " ".join((command.help or "").split("\n\n")[0].split())
    for part in getattr(command, "commands", {}).values():
        _whole(part)


def commands() -> str:
    """Every command of `guda` with its options, as Markdown, by typer's own writer."""
    import typer.main
    from typer.cli import get_docs_for_click

    from guda_core.cli import app

    command = typer.main.get_command(app)
    _whole(command)
    text = get_docs_for_click(obj=command, ctx=command.make_context("guda", [], resilient_parsing=True), name="guda")
    text = text.partition("\n")[2]  # its own title
    return re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE).replace("```console", "```text")


def fill_commands(app: Any, name: str, source: list[str]) -> None:
    """Put the commands where the page asks for them."""
    if COMMANDS in source[0]:
        source[0] = source[0].replace(COMMANDS, commands())


def plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain English: `code`, equations indented after an empty line, and Google's sections. Whatever
    else means something in reStructuredText is taken as it stands."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    lines[:] = "\n\n".join(map(_block, blocks)).splitlines()


def _block(block: str) -> str:
    """One paragraph, equation or section as reStructuredText."""
    if block.startswith((" ", "\t")):
        return "::\n\n" + block
    head, _, rest = block.partition("\n")
    if head not in SECTIONS:  # lines that hang are part of their paragraph
        items = FIELD.match(block) is not None
        lines = [line.strip() for line in block.splitlines()]
        return _text("\n".join(f"- {x}" if items and FIELD.match(x) else f"  {x}" if items else x for x in lines))
    return f"{head}\n{_text(rest)}"


def _text(text: str) -> str:
    """Text in which only `code` means something, also before a letter, as in `Query`s."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"(?<=\w)_(?!\w)|[|*]", r"\\\g<0>", p) for p in parts[::2]]
    parts[2::2] = ["\\ " + p if p[:1].isalnum() else p for p in parts[2::2]]
    return "`".join(parts)


def plain_signature(app: Any, what: str, name: str, obj: Any, options: Any, args: str | None, returns: str | None):
    """Types by their short names, also where a default keeps Sphinx from reading the signature."""
    if args is None or "<factory>" not in args:
        return None
    return re.sub(r"~?\b(?:[a-z_]+\.)+([A-Z]\w*)", r"\1", args).replace("<factory>", "{}"), returns


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", fill_commands)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)
