"""A small Hugging Face Hub on this machine: what huggingface_hub asks for models, and uploads."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, Optional, Tuple

TOKEN = "hf_token"
NOT_FOUND = (401, "RepoNotFound")


class Hub(ThreadingHTTPServer):
    """
    `revisions`: the files of repositories, by their names and revisions. `closed`: what is said of
    some to those who have no token. `asked`: the paths asked for.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.revisions: Dict[str, Dict[str, Dict[str, bytes]]] = {}
        self.closed: Dict[str, Tuple[int, str]] = {}
        self.asked: List[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


def commit_of(files: Dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: Any) -> Any:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> Any:
        return self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def files(self, name: str, revision: str) -> Optional[Dict[str, bytes]]:
        """Those of a repository, or `None` where the answer is that there are none."""
        if name not in self.server.revisions:
            return self.refuse(*NOT_FOUND)
        if name in self.server.closed and not self.has_token():
            return self.refuse(*self.server.closed[name])
        for of_name, files in self.server.revisions[name].items():
            if revision in (of_name, commit_of(files)):
                return files
        return self.refuse(404, "RevisionNotFound")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        of_file = re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", path)
        match = of_file or re.fullmatch(
            r"/api/models/(\w+/\w+)(?:/(?:revision|(tree))/([^/]+).*)?", path
        )
        if match is None:
            return self.refuse(*NOT_FOUND)
        files = self.files(match[1], match[2 if of_file else 3] or "main")
        if files is None:
            return
        commit = commit_of(files)
        if of_file:
            content = files.get(match[3])
            if content is None:
                return self.refuse(404, "EntryNotFound")
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(content, ETag=tag, X_Repo_Commit=commit)
        if match[2]:
            entry = {"type": "file", "oid": "0" * 40}
            return self.answer([{**entry, "path": n, "size": len(c)} for n, c in files.items()])
        siblings = [{"rfilename": name} for name in files]
        info = {"id": match[1], "sha": commit, "siblings": siblings}
        self.answer({**info, "tags": [], "private": False})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        asked = [json.loads(line) for line in lines]
        path = self.path.partition("?")[0]
        if not self.has_token():
            return self.refuse(401, "Unauthorized")
        if path == "/api/repos/create":
            name = f"{asked[0].get('organization') or 'user'}/{asked[0]['name']}"
            status = 409 if name in self.server.revisions else 200
            self.server.revisions.setdefault(name, {"main": {}})
            if asked[0].get("private"):
                self.server.closed[name] = NOT_FOUND
            return self.answer({"url": f"{self.server.url}/{name}", "name": name}, status)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/models/(\w+/\w+)/(preupload|commit)/main", path)
        assert match, path
        if match[2] == "preupload":
            kind = {"uploadMode": "regular", "shouldIgnore": False}
            kinds = [{**kind, "path": file["path"]} for file in asked[0]["files"]]
            return self.answer({"files": kinds})
        files = self.server.revisions[match[1]]["main"]
        for key, value in ((line["key"], line["value"]) for line in asked):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                del files[value["path"]]
        commit = commit_of(files)
        url = f"{self.server.url}/{match[1]}/commit/{commit}"
        self.answer({"success": True, "commitOid": commit, "commitUrl": url})
