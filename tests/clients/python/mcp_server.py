"""An MCP server by the official SDK for Python, on standard input and output."""

import os

from mcp.server import MCPServer

server = MCPServer("till")


@server.tool()
def total(prices: list[int]) -> dict[str, int]:
    """Adds up."""
    return {"total": sum(prices)}


@server.tool()
def about() -> dict[str, str | int]:
    """Says what it knows of where it runs."""
    return {"pid": os.getpid(), "token": os.environ.get("TOKEN", ""), "names": " ".join(os.environ)}


server.run("stdio")
