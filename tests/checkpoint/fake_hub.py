"""A hub on this machine: the few requests a download makes, answered from a folder."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(files: dict[str, bytes], cut: str = "") -> Iterator[str]:
    """Address of a hub that has one model, ``owner/model``.

    The connection breaks in the middle of the file named ``cut``.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files, cut))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(files: dict[str, bytes], cut: str = "") -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            name = Path(path).name
            if "/api/models/owner/model/tree/" in path:
                body = json.dumps([_entry(name, files[name]) for name in files]).encode()
            elif path.startswith("/api/models/owner/model"):
                siblings = [{"rfilename": each, "size": len(files[each])} for each in files]
                facts = {"_id": "1", "id": "owner/model", "sha": COMMIT, "siblings": siblings}
                body = json.dumps(facts).encode()
            elif path.startswith("/owner/model/resolve/") and name in files:
                body = files[name]
            else:
                self.send_response(404)
                known = path.startswith("/owner/model/")
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body and name == cut:
                self.wfile.write(body[: len(body) // 2])
                self.connection.shutdown(socket.SHUT_RDWR)
            elif with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    return Handler


def _entry(name: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}
