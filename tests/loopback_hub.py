"""A small server on this machine that speaks the Hub's download routes: model info, tree, resolve with ETag, and the
redirect of large files. It serves folders; every state of one is a commit."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

LARGE = ".safetensors"  # kept elsewhere, as with LFS: resolve redirects to it


class Hub:
    """Repositories by name: revision -> the files of that commit. asked: paths that were asked for. gated: names of
    repositories whose licence has to be accepted. refusal: code and headers of every answer, where there is one. cut:
    an answer to a path with this in it breaks off halfway."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.heads: dict[tuple[str, str], str] = {}
        self.asked: list[str] = []
        self.url = self.elsewhere = ""  # of the server, and of the host that large files are redirected to
        self.down = False
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.cut = ""
        self.gated: set[str] = set()

    def upload(self, name: str, folder: Path, *, revision: str = "main", delete: bool = False) -> str:
        """What `hf upload NAME FOLDER` leaves on the hub, beside what was there; gives the commit. delete: with
        --delete "*"."""
        before = self.files(name, revision)
        files = dict(before[1]) if before and not delete else {}
        files |= {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        told = "".join(f"{n}\0{hashlib.sha256(b).hexdigest()}\n" for n, b in files.items())
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[name, commit], self.heads[name, revision] = files, commit
        return commit

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.heads.get((name, revision), revision)
        found = self.commits.get((name, commit))
        return None if found is None else (commit, found)


def _entry(path: str, data: bytes) -> dict[str, object]:
    plain = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {**plain, "lfs": lfs} if path.endswith(LARGE) else plain


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Length": str(len(body)),
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self._is_cut() else body)
            self.close_connection = self._is_cut()

    def _is_cut(self) -> bool:
        return bool(self.hub.cut) and self.hub.cut in self.path

    def _json(self, found: object) -> None:
        self._answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        parts = path.strip("/").split("/")
        if self.hub.down:
            self._answer(503)
        elif self.hub.refusal:
            self._answer(self.hub.refusal[0], **self.hub.refusal[1])
        elif parts[:2] == ["api", "models"] and len(parts) >= 6:
            self._api("/".join(parts[2:4]), parts[4], parts[5])
        elif parts[:2] == ["api", "models"] and len(parts) == 4:
            self._api("/".join(parts[2:4]), "revision", "main")
        elif len(parts) > 4 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        elif parts[0] == "cdn":
            self._answer(200, self.hub.commits["/".join(parts[1:3]), parts[3]]["/".join(parts[4:])])
        else:
            self._answer(404, X_Error_Code="RepoNotFound")

    def _api(self, name: str, what: str, revision: str) -> None:
        found = self.hub.files(name, revision)
        if found is None:
            known = any(n == name for n, _ in self.hub.commits)
            self._answer(404, X_Error_Code="RevisionNotFound" if known else "RepoNotFound")
            return
        commit, files = found
        if what == "tree":
            self._json([_entry(p, b) for p, b in files.items()])
        else:
            siblings = [{"rfilename": p} for p in files]
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if name in self.hub.gated:
            self._answer(403, X_Error_Code="GatedRepo")
            return
        found = self.hub.files(name, revision)
        if found is None or path not in found[1]:
            self._answer(404, X_Error_Code="EntryNotFound")
            return
        commit, data = found[0], found[1][path]
        if path.endswith(LARGE):
            etag = {"X_Linked_ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Linked_Size": str(len(data))}
            place = f"{self.hub.elsewhere}/cdn/{name}/{commit}/{path}"
            self._answer(302, X_Repo_Commit=commit, Location=place, ETag='"of-the-pointer"', **etag)
        else:
            self._answer(200, data, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(data).hexdigest()}"')


@contextmanager
def loopback_hub(tmp_path: Path) -> Iterator[Hub]:
    """The server, as the hub that this process knows, with an empty cache."""
    from huggingface_hub import constants

    from guda_core import from_hub

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url, hub.elsewhere = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        from_hub.forget()
        try:
            yield hub
        finally:
            from_hub.forget()
            server.shutdown()
            server.server_close()
            thread.join()
