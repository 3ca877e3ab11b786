"""A stand-in for a W&B server on the loopback interface: enough of its protocol to see what a sync uploads."""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = dict[str, Any]

_ARTIFACT: Reply = {
    "__typename": "Artifact",
    "artifactSequence": {"__typename": "ArtifactSequence", "name": "a", "project": None},
    "artifactType": {"name": "a"},
    "versionIndex": 0,
    "description": None,
    "metadata": "{}",
    "ttlDurationSeconds": -2,
    "ttlIsInherited": True,
    "tags": [],
    "historyStep": None,
    "state": "COMMITTED",
    "size": 0,
    "digest": "d",
    "commitHash": "c",
    "fileCount": 0,
    "createdAt": "2026-01-01T00:00:00Z",
    "updatedAt": None,
    "aliases": [],
}
"""What the client reads back of an artifact it has uploaded."""


@dataclass
class Server:
    """What the stand-in has been sent."""

    url: str = ""
    refuse: str = ""
    """Name of a GraphQL operation that is answered with an error."""
    operations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    streams: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Run id to what was posted to its file stream."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Path of each PUT to its bytes."""

    def variables(self, operation: str) -> list[dict[str, Any]]:
        return [v for name, v in self.operations if name == operation]

    def history(self, run: str) -> list[dict[str, Any]]:
        """The history lines of a run, in order."""
        sent = [post.get("files", {}) for post in self.streams[run]]
        chunks = [files["wandb-history.jsonl"] for files in sent if "wandb-history.jsonl" in files]
        return [json.loads(line) for chunk in chunks for line in chunk["content"]]

    def answer(self, operation: str, variables: dict[str, Any]) -> Reply:
        """The data of one GraphQL operation."""
        if operation == "UpsertBucket":
            bucket = {
                "id": "bucket-" + str(variables["name"]),
                "name": variables["name"],
                "displayName": variables.get("displayName"),
                "config": "{}",
                "sweepName": None,
                "historyLineCount": 0,
                "project": {"name": variables["project"], "entity": {"name": "someone"}},
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateArtifact":
            made = {"id": _encoded(len(self.operations)), "state": "PENDING", "aliases": []}
            return {"createArtifact": {"artifact": made | {"artifactSequence": {"id": "s"}}}}
        if operation == "CreateArtifactManifest":
            file = {"id": "f", "name": "wandb_manifest.json", "displayName": "m"}
            file |= self._upload(_manifest(variables["artifactID"]))
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "CreateArtifactFiles":
            edges = [{"node": self._file(f["name"], str(f["artifactID"]))} for f in variables["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": "someone", "flags": "{}", "teams": {"edges": []}}}
        if operation == "InputFields":
            return {"TypeInfo": {"inputFields": [{"name": "clientID"}, {"name": "sequenceClientID"}]}}
        if operation == "FetchArtifactManifest":
            manifest = {"file": {"directUrl": f"{self.url}/{_manifest(variables['id'])}"}}
            return {"artifact": {"currentManifest": manifest}}
        if operation == "ArtifactByID":
            return {"artifact": _ARTIFACT | {"id": variables["id"]}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": self._url(n)} for n in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "RunUploadUrls":
            edges = [{"node": {"name": n, "url": self._url(n), "updatedAt": None}} for n in variables["files"]]
            return {"model": {"bucket": {"id": "r", "files": {"uploadHeaders": [], "edges": edges}}}}
        return {}

    def _file(self, name: str, artifact: str) -> Reply:
        common = {"id": "f", "name": name, "displayName": name, "storagePath": "x", "artifact": {"id": artifact}}
        return common | self._upload(f"{artifact}/{name}")

    def _upload(self, name: str) -> Reply:
        return {"uploadUrl": self._url(name), "uploadHeaders": []}

    def _url(self, name: str) -> str:
        return f"{self.url}/put/{len(self.operations)}/{name}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, value: Reply) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            request = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            name = operation.group(1) if operation else "Viewer"  # the only one without a name
            variables = request.get("variables") or {}
            self.state.operations.append((name, variables))
            if name == self.state.refuse:
                self._reply({"errors": [{"message": "refused"}], "data": None})
            else:
                self._reply({"data": self.state.answer(name, variables)})
            return
        run = re.search(r"/([^/]+)/file_stream$", self.path)
        if run is not None:
            self.state.streams.setdefault(run.group(1), []).append(json.loads(body))
        self._reply({})

    def do_PUT(self) -> None:
        self.state.uploads[self.path] = self._body()
        self._reply({})

    def do_GET(self) -> None:
        """Manifests are read back; nothing else is asked for."""
        found = [body for path, body in self.state.uploads.items() if path.endswith(self.path)]
        self._reply(json.loads(found[-1]) if found else {})


def _encoded(number: int) -> str:
    """An id as W&B's are: clients take it apart."""
    return base64.b64encode(f"Artifact:{number:06d}".encode()).decode()


def _manifest(artifact: str) -> str:
    return f"{artifact}/wandb_manifest.json"


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A stand-in that ends with the block."""
    state = Server()
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            http.shutdown()
            thread.join()
