"""Puts load on several nodes as a load balancer does, and counts how every single request ended.

The one argument is JSON: {"version": "1.1" | "2" | "3", "nodes": [{"name", "address": [host, port], "ca"}, …], "path",
"headers", "workers", "per_connection": null | number}. It follows what nodes say: `/readyz` decides who gets the next
request, GOAWAY and `Connection: close` end a connection, and a request that certainly was not processed goes to another
node. Any other request that gets no answer, or none of 2xx, has failed. Prints `under way` after the first answers
and a line for each certificate that is seen; on SIGTERM it ends what is in hand and prints the tally as JSON.
"""

import asyncio
import json
import signal
import ssl
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack

import httpx

import http3

# Between two looks at /readyz; a node that drains must give at least so much notice.
LOOK = 0.1
SHOWN = 20


class Node:
    def __init__(self, wanted):
        self.name = wanted["name"]
        self.host, self.port = wanted["address"]
        self.ca = wanted["ca"]
        self.ready = False
        self.changed = asyncio.Event()

    def context(self):
        return ssl.create_default_context(cafile=self.ca)

    def url(self, path):
        return f"https://{self.host}:{self.port}{path}"

    @property
    def authority(self):
        return f"{self.name}:{self.port}"

    async def watch(self):
        """Looks as load balancers do: a new connection each time, so that a listener that is gone is seen."""
        context = self.context()
        while True:
            try:
                async with httpx.AsyncClient(verify=context, timeout=2) as client:
                    answer = await client.get(
                        self.url("/readyz"), headers={"host": self.authority}, extensions={"sni_hostname": self.name}
                    )
                self.ready = answer.status_code == 200
            except httpx.HTTPError:
                self.ready = False
            await asyncio.sleep(LOOK)


class OverTcp:
    def __init__(self, node, second):
        self.node = node
        self.client = httpx.AsyncClient(
            http1=not second, http2=second, verify=node.context(), timeout=20, limits=httpx.Limits(max_connections=1)
        )

    async def get(self, path, headers):
        try:
            answer = await self.client.get(
                self.node.url(path),
                headers={"host": self.node.authority, **headers},
                extensions={"sni_hostname": self.node.name},
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise http3.Refused(repr(error)) from error
        except httpx.HTTPError as error:
            raise http3.Broken(repr(error)) from error
        certificate = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
        return answer.status_code, int(certificate["serialNumber"], 16)

    async def close(self):
        await self.client.aclose()


class OverQuic:
    def __init__(self, node):
        self.node = node
        self.stack = AsyncExitStack()
        self.client = None

    async def get(self, path, headers):
        if self.client is None or not self.client.usable:
            await self.close()
            try:
                connecting = self.stack.enter_async_context(
                    http3.connect(self.node.host, self.node.port, self.node.name, self.node.ca)
                )
                self.client = await asyncio.wait_for(connecting, 3)
            except (ConnectionError, TimeoutError) as error:
                raise http3.Refused(f"connecting: {error!r}") from error
        try:
            status, _, _ = await asyncio.wait_for(
                self.client.request("GET", self.node.authority, path, headers), 20
            )
        except TimeoutError as error:
            raise http3.Broken("no answer in 20 s") from error
        return status, self.client.certificate.serial_number

    async def close(self):
        self.client = None
        stack, self.stack = self.stack, AsyncExitStack()
        await stack.aclose()


class Tally:
    def __init__(self):
        self.done = 0
        self.failed = []
        self.failures = 0
        self.moved = Counter()
        self.by_node = Counter()
        self.certificates = Counter()
        self.slowest = 0.0

    def fail(self, node, why):
        self.failures += 1
        if len(self.failed) < SHOWN:
            self.failed.append(f"{node.name}: {why}")


async def work(number, wanted, nodes, tally, stop):
    path, headers = wanted["path"], wanted["headers"]
    fresh = {"1.1": lambda n: OverTcp(n, False), "2": lambda n: OverTcp(n, True), "3": OverQuic}[wanted["version"]]
    clients, used, turn = {}, Counter(), number
    while not stop.is_set():
        ready = [node for node in nodes if node.ready]
        # Its connections end with a node that leaves. httpx reads a connection only while it asks something, so one kept
        # until the node is back would meet the GOAWAY, and h2 takes the PING behind that for a fault of the node's.
        for node in nodes:
            if not node.ready and node.name in clients:
                await clients.pop(node.name).close()
        if not ready:
            await asyncio.sleep(LOOK / 10)
            continue
        turn += 1
        node = ready[turn % len(ready)]
        client = clients.get(node.name) or clients.setdefault(node.name, fresh(node))
        began = time.monotonic()
        try:
            status, serial = await client.get(path, headers)
        except http3.Refused as error:
            # Nothing was processed: the next turn takes another, until /readyz says otherwise.
            tally.moved[f"{node.name}: {error}"[:200]] += 1
            node.ready = False
            continue
        except http3.Broken as error:
            tally.fail(node, error)
            continue
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        if 200 <= status < 300:
            tally.done += 1
            tally.by_node[node.name] += 1
            if f"{node.name} {serial}" not in tally.certificates:
                print(f"certificate {node.name} {serial}", flush=True)
            tally.certificates[f"{node.name} {serial}"] += 1
        else:
            tally.fail(node, f"status {status}")
        used[node.name] += 1
        if wanted["per_connection"] and used[node.name] >= wanted["per_connection"]:
            used[node.name] = 0
            await clients.pop(node.name).close()
    for client in clients.values():
        await client.close()


async def main():
    wanted = json.loads(sys.argv[1])
    nodes = [Node(node) for node in wanted["nodes"]]
    tally, stop = Tally(), asyncio.Event()
    watches = [asyncio.create_task(node.watch()) for node in nodes]
    workers = [asyncio.create_task(work(n, wanted, nodes, tally, stop)) for n in range(wanted["workers"])]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    while tally.done < wanted["workers"] and not tally.failures and not stop.is_set():
        await asyncio.sleep(0.02)
    print("under way", flush=True)
    await asyncio.gather(*workers)
    for watch in watches:
        watch.cancel()
    print(
        json.dumps(
            {
                "done": tally.done,
                "failures": tally.failures,
                "failed": tally.failed,
                "moved": dict(tally.moved.most_common(SHOWN)),
                "by_node": dict(tally.by_node),
                "certificates": dict(tally.certificates),
                "slowest_ms": round(tally.slowest * 1000),
            }
        ),
        flush=True,
    )


asyncio.run(main())
