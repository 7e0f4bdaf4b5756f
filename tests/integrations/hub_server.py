"""A small Hugging Face Hub on this machine: what huggingface_hub asks for models, and uploads."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Iterator, List, Optional

TOKEN = "hf_token"


class Hub(ThreadingHTTPServer):
    """
    `revisions`: the files of repositories, by their names and revisions. `private`, `gated`: who
    has no token sees nothing, or that they may ask. `asked`: the paths asked for.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.revisions: Dict[str, Dict[str, Dict[str, bytes]]] = {}
        self.private: List[str] = []
        self.gated: List[str] = []
        self.objects: Dict[str, bytes] = {}
        self.asked: List[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    @staticmethod
    def sha(files: Dict[str, bytes]) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(files.items()):
            digest.update(name.encode() + hashlib.sha1(content).digest())
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: Any) -> Any:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": len(body), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> Any:
        return self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def files(self, name: str, revision: str) -> Optional[Dict[str, bytes]]:
        """Those of a repository, or `None` where the answer is that there are none."""
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        revisions = self.server.revisions.get(name)
        if revisions is None or (name in self.server.private and not known):
            # Who may not know of a repository is told no more than that.
            return self.refuse(401, "RepoNotFound")
        if name in self.server.gated and not known:
            return self.refuse(403, "GatedRepo")
        for of_name, files in revisions.items():
            if revision in (of_name, self.server.sha(files)):
                return files
        return self.refuse(404, "RevisionNotFound")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if match := re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", path):
            files = self.files(match[1], match[2])
            if files is None:
                return
            content = files.get(match[3])
            if content is None:
                return self.refuse(404, "EntryNotFound")
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(content, ETag=tag, X_Repo_Commit=self.server.sha(files))
        match = re.fullmatch(r"/api/models/(\w+/\w+)(?:/(revision|tree)/([^/]+).*)?", path)
        if match is None:
            return self.refuse(401, "RepoNotFound")
        files = self.files(match[1], match[3] or "main")
        if files is not None:
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in files.items()
            ]
            siblings = [{"rfilename": name} for name in files]
            info = {"id": match[1], "sha": self.server.sha(files), "siblings": siblings}
            self.answer(tree if match[2] == "tree" else {**info, "tags": [], "private": False})

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[self.path.rpartition("/")[2]] = body
        self.answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            if name in self.server.revisions:
                return self.answer({"url": f"{self.server.url}/{name}"}, 409)
            self.server.revisions[name] = {"main": {}}
            self.server.private += [name] * bool(asked.get("private"))
            return self.answer({"url": f"{self.server.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        match = re.fullmatch(r"/api/models/(\w+/\w+)/(preupload|commit)/main", path)
        assert match, path
        if match[2] == "preupload":
            kinds = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": kinds})
        files = self.server.revisions[match[1]]["main"]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.server.sha(files)
        url = f"{self.server.url}/{match[1]}/commit/{commit}"
        self.answer({"success": True, "commitOid": commit, "commitUrl": url})


@contextmanager
def running() -> Iterator[Hub]:
    """It answers as long as the block lasts."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
