// An MCP server by the official SDK for TypeScript, on standard input and output. Its packages come from HOROS_TEST_NODE_MODULES.

import { createRequire } from "node:module";

const load = createRequire(`${process.env.HOROS_TEST_NODE_MODULES}/`);
const { McpServer } = load("@modelcontextprotocol/sdk/server/mcp.js");
const { StdioServerTransport } = load("@modelcontextprotocol/sdk/server/stdio.js");
const { z } = load("zod");

const server = new McpServer({ name: "till", version: "1" });
const text = (value) => ({ content: [{ type: "text", text: JSON.stringify(value) }] });
server.registerTool("total", { description: "Adds up.", inputSchema: { prices: z.array(z.number()) } }, ({ prices }) =>
  text({ total: prices.reduce((sum, price) => sum + price, 0) }),
);
server.registerTool("about", { description: "Says what it knows of where it runs." }, () =>
  text({ pid: process.pid, token: process.env.TOKEN ?? "", names: Object.keys(process.env).join(" ") }),
);
await server.connect(new StdioServerTransport());
