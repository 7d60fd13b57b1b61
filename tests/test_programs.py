"""docs/how-to/programs.md as a reader meets it: the snippet runs, every endpoint is there, also as an MCP tool."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio.utils import get_function_description

from guda_core import ui
from guda_core.ui import build_ui, wants_mcp
from guda_core.ui.endpoints import Endpoints
from tests.fakes import WAIT, FakeService, serving

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")  # gradio's use of pandas 3

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "how-to" / "programs.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"^\| `/(\w+)` \|", PAGE, re.MULTILINE))


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


def test_the_snippet_runs_as_it_stands(capsys):
    found = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    service = FakeService()
    service.missing = ("noto",)
    with serving(service) as url:
        code = found[1].replace("http://127.0.0.1:7860", url.rstrip("/"))
        assert code != found[1]
        exec(compile(code, "docs/how-to/programs.md", "exec"), {})
    told = capsys.readouterr().out
    assert "Twemoji, OpenMoji" in told and re.search(r"^[0-9a-f]{64}$", told, re.MULTILINE)
    assert re.search(r"^1\. [a-z-]+: 41\.0 nats \(35\.0 to 47\.0\)$", told, re.MULTILINE)
    assert "-  noto: unavailable, " in told and "The first two are separable" in told
    assert "Scope: in scope" in told and "\nequal\n" in told


def test_the_page_names_every_endpoint_and_no_other():
    public = {f.api_name for f in build_ui(FakeService()).fns.values() if f.api_visibility == "public"}
    assert public == NAMED


def test_mcp_is_only_started_when_asked_for_and_there(monkeypatch, caplog):
    monkeypatch.delenv("GUDA_MCP", raising=False)
    assert not wants_mcp()
    monkeypatch.setenv("GUDA_MCP", "1")
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    assert not wants_mcp() and 'pip install "gradio[mcp]"' in caplog.text
    monkeypatch.setattr(ui, "find_spec", lambda name: object())
    assert wants_mcp()


@pytest.mark.parametrize("endpoint", sorted(NAMED))
def test_arguments_and_returns_are_told_whole(endpoint):
    """As gradio reads them for MCP."""
    _, arguments, returns = get_function_description(getattr(Endpoints, endpoint))
    assert len(returns) == 1 and all(t.endswith(".") for t in (*list(arguments.values())[1:], *returns))


def test_the_endpoints_are_mcp_tools_with_their_docstrings(monkeypatch):
    pytest.importorskip("mcp", reason='MCP needs one more package: pip install "gradio[mcp]"')
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def asked(url: str):
        async with streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as s:
            await s.initialize()
            tools = {t.name: t for t in (await s.list_tools()).tools}
            name = next(n for n in tools if n.endswith("generate_and_attribute"))
            options = {
                "prompt": "a red apple",
                "seed": 1,
                "steps": 5,
                "guidance": 3,
                "methods": ["guda"],
                "effort": "quick",
            }
            return tools, await s.call_tool(name, options)

    monkeypatch.setenv("GUDA_MCP", "1")
    # In a thread of its own: a browser test of the same worker leaves an event loop running in this one.
    with serving(FakeService()) as url, ThreadPoolExecutor(1) as pool:
        tools, answer = pool.submit(asyncio.run, asked(url)).result(timeout=WAIT)
    for endpoint in NAMED:
        tool = next(t for n, t in tools.items() if n.endswith(endpoint))
        assert tool.description and len(tool.description) > 40, endpoint
        told = [tool.description, *(p.get("description", "") for p in tool.inputSchema["properties"].values())]
        assert all(t.rstrip().endswith((".", "}")) for t in told if t) and not [t for t in told if ",, " in t], told
    assert not any("page_" in n for n in tools)
    assert not answer.isError and "'guda'" in answer.content[-1].text
