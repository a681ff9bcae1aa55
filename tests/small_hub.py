"""A Hub for one upload on this machine: the requests that the real client makes, answered."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class SmallHub(ThreadingHTTPServer):
    """Keeps what a client commits; refuses other tokens than `token`."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.requests: list[str] = []
        self.blobs: dict[str, bytes] = {}
        """Large files by sha256."""
        self.files: dict[str, bytes] = {}
        """Committed files by path."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def small_hub(token: str) -> Iterator[SmallHub]:
    with SmallHub(token) as hub:
        thread = Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `requests` remembers."""

    def do_PUT(self) -> None:
        self.server.blobs[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        hub, path, body = self.server, self.path, self._body()
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._answer({"url": f"{hub.address}/org/name", "id": "org/name"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/models/org/name/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": _mode(n), "shouldIgnore": False} for n in names]
            self._answer({"files": files})
        elif path == "/org/name.git/info/lfs/objects/batch":
            self._answer({"transfer": "basic", "objects": [*map(self._wanted, _objects(body))]})
        elif path == "/api/models/org/name/commit/main":
            for entry in map(json.loads, body.splitlines()):
                self._commit(entry["key"], entry["value"])
            url = f"{hub.address}/org/name/commit/{'0' * 40}"
            self._answer({"commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})
        else:
            self._answer({"error": "Not found"}, 404)

    def _wanted(self, one: dict) -> dict:
        href = f"{self.server.address}/blobs/{one['oid']}"
        return {**one, "actions": {"upload": {"href": href}}}

    def _commit(self, key: str, value: dict) -> None:
        if key == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            self.server.files[value["path"]] = self.server.blobs[value["oid"]]

    def _body(self) -> bytes:
        self.server.requests.append(f"{self.command} {self.path.partition('?')[0]}")
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _mode(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


def _objects(body: bytes) -> list[dict]:
    return json.loads(body)["objects"]
