"""A small model hub on 127.0.0.1 that speaks what the real `huggingface_hub` client asks for when it downloads files.

    with HubServer() as hub:
        hub.add_repo("org/model", {"config.json": b"{}"})
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})

Answers `HEAD` and `GET` of `/ORG/NAME/resolve/REV/FILE` with the headers the hub sends (commit, ETag, error codes).
Large files are redirected to `/cdn/SHA256` under another host name (`localhost`), as the hub does with its storage;
there `Range` works. Faults are set on the running server (see `HubServer`).
"""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

LARGE_FROM_BYTES = 64 * 1024


@dataclass
class Repo:
    """A model repository: the files of each commit, and what its branches and tags mean."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit means."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


class HubServer:
    """The hub, running in a thread of this process while the context lasts.

    Attributes:
        requests: `"METHOD /path"` of every request, in order.
        headers_seen: The `Authorization` header (or `None`) that came with each of them.
        fail_first: So many requests are answered with HTTP 500 before the hub recovers.
        cut_body_after: The next large body breaks off after so many bytes (then works again).
        stop_after_cut: After a cut, every further body is cut at once: the download cannot be completed.
        commit_header: Off, the answers lack the commit, as those of any other web server.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.headers_seen: list[str | None] = []
        self.ranges_seen: list[str] = []
        self.fail_first = 0
        self.cut_body_after: int | None = None
        self.stop_after_cut = False
        self.commit_header = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        """To be given to the client as `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables for a client process: this hub, an empty home of its own, no token and no proxy from outside."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "huggingface"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **more,
        }

    def add_repo(self, repo_id: str, files: dict[str, bytes], *, gated: bool = False, token: str | None = None) -> str:
        """Open a repository with one commit on `main`.

        Args:
            repo_id: `org/name`.
            files: Content by file name.
            gated: Refuse the files to whoever does not send `token`.
            token: The one token that is let through.

        Returns:
            The commit's hash.
        """
        self.repos[repo_id] = Repo(gated=gated, token=token)
        return self.push(repo_id, files)

    def add_folder(self, repo_id: str, folder: Path, **options: object) -> str:
        """Open a repository with the files of a local folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.add_repo(repo_id, files, **options)  # type: ignore[arg-type]

    def push(self, repo_id: str, files: dict[str, bytes], *, ref: str = "main") -> str:
        """Add a commit and let a branch or tag mean it; returns the commit's hash."""
        repo = self.repos[repo_id]
        content = b"".join(name.encode() + body for name, body in sorted(files.items()))
        commit = hashlib.sha1(f"{repo_id} {len(repo.commits)} ".encode() + content).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[ref] = commit
        return commit

    def blob(self, sha256: str) -> bytes | None:
        """The body that the storage keeps under a hash."""
        for repo in self.repos.values():
            for files in repo.commits.values():
                for body in files.values():
                    if len(body) >= LARGE_FROM_BYTES and hashlib.sha256(body).hexdigest() == sha256:
                        return body
        return None

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler_for(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *arguments: object) -> None:
            """Quiet: pytest shows `hub.requests` where a test fails."""

        def _answer(self, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            hub.headers_seen.append(self.headers.get("Authorization"))
            if hub.fail_first > 0:
                hub.fail_first -= 1
                return self._decline(500, message="Internal error")
            path = unquote(self.path.split("?")[0])
            if stored := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
                return self._from_storage(stored[1], with_body)
            if asked := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(.+)/([^/]+)", path):
                return self._resolve(asked[1], asked[2], asked[3], with_body)
            return self._decline(404, message="Sorry, we can't find the page you are looking for.")

        def _resolve(self, repo_id: str, revision: str, name: str, with_body: bool) -> None:
            repo = hub.repos.get(repo_id)
            if repo is None:  # the hub does not tell strangers whether a private repository exists
                return self._decline(401, "RepoNotFound", "Invalid username or password.")
            if repo.gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
                known = self.headers.get("Authorization") is not None
                return self._decline(403 if known else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
            commit = repo.find(revision)
            if commit is None:
                return self._decline(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if name not in repo.commits[commit]:
                return self._decline(404, "EntryNotFound", "Entry not found", commit)
            body = repo.commits[commit][name]
            if len(body) < LARGE_FROM_BYTES:
                etag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
                self._head(200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}, len(body))
                if with_body:
                    self.wfile.write(body)
                return None
            sha256 = hashlib.sha256(body).hexdigest()
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(body)),
                "Location": f"http://localhost:{hub.port}/cdn/{sha256}",
            }
            return self._head(302, headers, 0)

        def _from_storage(self, sha256: str, with_body: bool) -> None:
            body = hub.blob(sha256)
            if body is None:
                return self._decline(404)
            start, status, headers = 0, 200, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
            if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                hub.ranges_seen.append(self.headers["Range"])
                start, status = int(wanted[1]), 206
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._head(status, headers, len(body) - start)
            if not with_body:
                return None
            if hub.cut_body_after is None:
                self.wfile.write(body[start:])
                return None
            cut = hub.cut_body_after
            hub.cut_body_after = 0 if hub.stop_after_cut else None
            self.wfile.write(body[start : start + cut])
            self.wfile.flush()
            self.close_connection = True
            return None

        def _decline(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
            self._head(status, {name: value for name, value in headers.items() if value}, 0)

        def _head(self, status: int, headers: dict[str, str], length: int) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name != "X-Repo-Commit" or hub.commit_header:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()

    return Handler
