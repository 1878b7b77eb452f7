"""The endpoints as MCP tools, in a server of their own; needs ``gradio[mcp]``."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Server, call, tiny_server

mcp: Any = pytest.importorskip("mcp")
streamable_http: Any = pytest.importorskip("mcp.client.streamable_http")
pytestmark = pytest.mark.slow

ASKED = {"prompt": "Go on", "methods": ["baseline", "ace:0.5"], "layer": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tiny_server(tmp_path_factory.mktemp("mcp"), GRADIO_MCP_SERVER="True") as made:
        yield made


def asked(server: Server, tool: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The tools by name, and what one of them answered."""

    async def talk() -> tuple[dict[str, Any], Any]:
        async with (
            streamable_http.streamable_http_client(f"{server.url}/gradio_api/mcp/") as (reading, writing, _),
            mcp.ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            tools = {each.name: each for each in (await session.list_tools()).tools}
            return tools, await session.call_tool(tool, arguments)

    return asyncio.run(talk())


def test_a_tool_answers_as_its_endpoint_does(server: Server) -> None:
    tools, answer = asked(server, "compare", ASKED)
    assert {"compare", "project", "extract"} <= set(tools)
    assert all(tool.description for tool in tools.values())
    assert set(ASKED) <= set(tools["compare"].inputSchema["properties"])
    with httpx.Client() as client:
        wanted = call(client, server.url, "call/v2/compare", ASKED).result
    assert not answer.isError
    found = ast.literal_eval(answer.content[0].text)
    assert [arm["text"] for arm in found["arms"]] == [arm["text"] for arm in wanted["arms"]]
    assert found["status"] == wanted["status"] == "done" and found["arms"][0]["tokens"] == 6
    assert all(abs(c - 0.5) < 1e-3 for c in found["arms"][1]["coordinates"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"max_new_tokens": 99_999}, "max_new_tokens"), ({"methods": ["magic"]}, "magic"), ({"prompt": ""}, "prompt")],
)
def test_a_bad_argument_gets_a_sentence(server: Server, changes: dict[str, Any], sentence: str) -> None:
    _, answer = asked(server, "compare", {**ASKED, **changes})
    (words,) = answer.content
    assert answer.isError and sentence in words.text and "Traceback" not in words.text
