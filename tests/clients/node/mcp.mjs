// A client of MCP by the official SDK for TypeScript, in one of its two generations: connects, lists, calls, and waits until it is
// told that the list is another.
//
// The one argument is JSON: {"sdk": "sdk" | "client", "url", "key", "call": {"name", "arguments"}, "progress": name | null, "change": bool}.
// It says `waiting` when the list may change, and at the end one line of JSON: {"server", "version", "tools", "result", "progress", "after"}.
// The authority comes from NODE_EXTRA_CA_CERTS, as anywhere with Node.js; the packages from HOROS_TEST_NODE_MODULES.

import { createRequire } from "node:module";

const wanted = JSON.parse(process.argv[2]);
const load = createRequire(`${process.env.HOROS_TEST_NODE_MODULES}/`);

const headers = { "x-api-key": wanted.key };
const about = { name: "horos-test", version: "1" };
let changed;
const isChanged = new Promise((resolve) => (changed = resolve));
let client, transport;

if (wanted.sdk === "sdk") {
  const { Client } = load("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = load("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const { ToolListChangedNotificationSchema } = load("@modelcontextprotocol/sdk/types.js");
  client = new Client(about);
  client.setNotificationHandler(ToolListChangedNotificationSchema, changed);
  transport = new StreamableHTTPClientTransport(new URL(wanted.url), { requestInit: { headers } });
} else {
  const { Client, StreamableHTTPClientTransport } = load("@modelcontextprotocol/client");
  const listChanged = { tools: { autoRefresh: false, debounceMs: 0, onChanged: changed } };
  client = new Client(about, { versionNegotiation: { mode: "auto" }, listChanged });
  transport = new StreamableHTTPClientTransport(new URL(wanted.url), { requestInit: { headers } });
}

await client.connect(transport);
const names = async () => (await client.listTools()).tools.map((tool) => tool.name);
const call = (request, options) => (wanted.sdk === "sdk" ? client.callTool(request, undefined, options) : client.callTool(request, options));

const tools = await names();
const result = await call(wanted.call);
const progress = [];
if (wanted.progress) {
  await call({ name: wanted.progress, arguments: {} }, { onprogress: (told) => progress.push(told.progress) });
}
let after = null;
if (wanted.change) {
  console.log("waiting");
  await isChanged;
  after = await names();
}
const version = transport.protocolVersion ?? client.getNegotiatedProtocolVersion?.() ?? null;
console.log(JSON.stringify({ server: client.getServerVersion()?.name, version, tools, result, progress, after }));
await client.close();
// Whatever else it keeps open is not waited for.
process.exit(0);
