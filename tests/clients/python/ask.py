"""Asks a node over HTTP/1.1 or 2 (httpx) or 3 (aioquic) and prints every answer.

The one argument is JSON: {"version": "1.1" | "2" | "3", "address": [host, port], "name": …, "ca": path,
"requests": [{"method", "path", "headers": {}, "body": text | null}, …]}. What is printed is JSON too: a list of
{"version", "status", "headers": [[name, value], …], "body"}. One connection serves all requests where the node lets it.
"""

import asyncio
import json
import ssl
import sys

import httpx

import http3


def plain(headers):
    return [[name.decode("latin-1").lower(), value.decode("latin-1")] for name, value in headers]


def over_tcp(wanted):
    host, port = wanted["address"]
    authority = f"{wanted['name']}:{port}"
    second = wanted["version"] == "2"
    context = ssl.create_default_context(cafile=wanted["ca"])
    answers = []
    with httpx.Client(http1=not second, http2=second, verify=context, timeout=20) as client:
        for request in wanted["requests"]:
            answer = client.request(
                request["method"],
                f"https://{host}:{port}{request['path']}",
                headers={"host": authority, **request["headers"]},
                content=request["body"],
                extensions={"sni_hostname": wanted["name"]},
            )
            answers.append(
                {
                    "version": answer.http_version.removeprefix("HTTP/"),
                    "status": answer.status_code,
                    "headers": plain(answer.headers.raw),
                    "body": answer.text,
                }
            )
    return answers


async def over_quic(wanted):
    host, port = wanted["address"]
    answers = []
    async with http3.connect(host, port, wanted["name"], wanted["ca"]) as client:
        for request in wanted["requests"]:
            body = request["body"]
            status, headers, got = await asyncio.wait_for(
                client.request(
                    request["method"],
                    f"{wanted['name']}:{port}",
                    request["path"],
                    request["headers"],
                    None if body is None else body.encode(),
                ),
                20,
            )
            answers.append({"version": "3", "status": status, "headers": plain(headers), "body": got.decode()})
    return answers


def main():
    wanted = json.loads(sys.argv[1])
    answers = asyncio.run(over_quic(wanted)) if wanted["version"] == "3" else over_tcp(wanted)
    json.dump(answers, sys.stdout)


main()
