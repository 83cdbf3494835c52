"""An artifact server that is slow in one of three ways: speaks as much of MLflow's REST as an upload needs.

    paced_server.py PORT far|narrow|warming

far      each answer takes 50 ms
narrow   5 ms, and all bodies together come at 20 MB/s
warming  50 ms; it takes 2 requests at once, after each second twice as many up to 32, and answers 503 to the rest
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import parse_qs, unquote, urlsplit

ENDPOINT = "/api/2.0/mlflow-artifacts/artifacts"


class Server:
    def __init__(self, manner: str) -> None:
        self.manner = manner
        self.seconds = 0.005 if manner == "narrow" else 0.05
        self.held: dict[str, bytes] = {}
        self.running = 0
        self.first = 0.0
        self.free_at = 0.0
        self.refused = 0

    def capacity(self) -> int:
        if self.manner != "warming":
            return 1 << 30
        self.first = self.first or time.monotonic()
        return min(32, 2 << int(time.monotonic() - self.first))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            method, target, _ = line.decode().split()
            headers = {}
            while (header := (await reader.readline()).decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.running += 1
            try:
                status, answer = await self.answer(method, target, body)
            finally:
                self.running -= 1
            head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(answer)}\r\nContent-Type: application/json\r\n\r\n"
            writer.write(head.encode() + answer)
            await writer.drain()
        writer.close()

    async def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(target)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if method == "PUT" and self.running > self.capacity():
            self.refused += 1
            return 503, b"{}"
        await asyncio.sleep(self.seconds)
        if method == "PUT" and self.manner == "narrow":
            self.free_at = max(self.free_at, time.monotonic()) + len(body) / 20e6
            await asyncio.sleep(self.free_at - time.monotonic())
        if path.endswith("runs/get"):
            run = query["run_id"][0]
            info = {"run_id": run, "artifact_uri": f"mlflow-artifacts:/{run}", "lifecycle_stage": "active"}
            return 200, json.dumps({"run": {"info": info}}).encode()
        if path == ENDPOINT:
            return 200, json.dumps({"files": self.children(query["path"][0])}).encode()
        name = path.removeprefix(ENDPOINT).strip("/")
        if method == "PUT":
            self.held[name] = body
            return 200, b"{}"
        return (200, self.held[name]) if name in self.held else (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')

    def children(self, folder: str) -> list[dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        for path, data in self.held.items():
            if path.startswith(f"{folder.strip('/')}/"):
                name, is_dir, _ = path[len(folder.strip("/")) + 1 :].partition("/")
                found[name] = {"path": name, "is_dir": bool(is_dir), "file_size": str(len(data))}
        return list(found.values())


async def main() -> None:
    server = Server(sys.argv[2])
    async with await asyncio.start_server(server.serve, "127.0.0.1", int(sys.argv[1]), backlog=256) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
