"""A client of MCP by the official SDK for Python: connects, lists, calls, and waits until it is told that the list is another.

The one argument is JSON: {"mode": "legacy" | "auto", "url", "key", "ca", "call": {"name", "arguments"}, "progress": name | null,
"change": bool}. It says `waiting` when the list may change, and at the end one line of JSON: {"server", "version", "tools", "result",
"progress", "after"}.
"""

import asyncio
import json
import ssl
import sys

import httpx2
import mcp_types as types
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


async def main():
    wanted = json.loads(sys.argv[1])
    changed = asyncio.Event()

    async def heard(message):
        if isinstance(message, types.ToolListChangedNotification):
            changed.set()

    async def names(client):
        return [tool.name for tool in (await client.list_tools(cache_mode="bypass")).tools]

    context = ssl.create_default_context(cafile=wanted["ca"])
    async with httpx2.AsyncClient(verify=context, headers={"x-api-key": wanted["key"]}, timeout=20) as http:
        transport = streamable_http_client(wanted["url"], http_client=http)
        async with Client(transport, mode=wanted["mode"], message_handler=heard) as client:
            tools = await names(client)
            result = await client.call_tool(**wanted["call"])
            progress = []

            async def told(at, total, message):
                progress.append(at)

            if wanted["progress"]:
                await client.call_tool(wanted["progress"], {}, progress_callback=told)
            after = None
            if wanted["change"]:
                if wanted["mode"] == "legacy":
                    print("waiting", flush=True)
                    await changed.wait()
                else:
                    async with client.listen(tools_list_changed=True) as changes:
                        print("waiting", flush=True)
                        await anext(aiter(changes))
                after = await names(client)
            told = {
                "server": client.server_info.name,
                "version": client.protocol_version,
                "tools": tools,
                "result": result.model_dump(mode="json", by_alias=True, exclude_none=True),
                "progress": progress,
                "after": after,
            }
            print(json.dumps(told), flush=True)


asyncio.run(main())
