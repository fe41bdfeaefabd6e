// Asks a node by fetch, which speaks HTTP/1.1, and prints every answer: see ask.py beside this for the one argument
// and for what is printed. The authority comes from NODE_EXTRA_CA_CERTS, as anywhere with Node.js.

import dns from "node:dns";

const wanted = JSON.parse(process.argv[2]);
const [host, port] = wanted.address;

// fetch takes no address beside the name, and the name stands in no DNS.
const lookup = dns.lookup;
dns.lookup = (name, options, done) => {
  if (name !== wanted.name) return lookup(name, options, done);
  if (typeof options === "function") return options(null, host, 4);
  return options.all ? done(null, [{ address: host, family: 4 }]) : done(null, host, 4);
};

const answers = [];
for (const { method, path, headers, body } of wanted.requests) {
  const answer = await fetch(`https://${wanted.name}:${port}${path}`, {
    method,
    headers,
    body: body ?? undefined,
    redirect: "manual",
    signal: AbortSignal.timeout(20_000),
  });
  answers.push({ version: "1.1", status: answer.status, headers: [...answer.headers], body: await answer.text() });
}
console.log(JSON.stringify(answers));
