"""A bad network in front of a real S3 server: a reverse proxy that damages answers on purpose."""

import http.client
import math
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["503", "500", "404", "expired", "reset", "short", "flip", "stall", "drip"]

_ERRORS = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "404": (404, "NoSuchKey"),
    "expired": (403, "ExpiredToken"),
}


@dataclass
class Faults:
    """Damages reads of keys that contain `match`, each range at most `times` times (0: always).

    `share`: of the requests that would be damaged so many are, `for_s` seconds from the first on.
    `stall_s`: how long a stalled answer hangs, or one that drips takes. `methods`: what is damaged;
    a request that is answered by an error does not reach the server.
    """

    mode: Mode | None = None
    times: int = 1
    match: str = "shards/"
    stall_s: float = 3.0
    share: float = 1.0
    for_s: float = math.inf
    methods: tuple[str, ...] = ("GET",)
    damaged: Counter[str] = field(default_factory=Counter)
    _first_s: float | None = None
    _draws: Random = field(default_factory=lambda: Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hits(self, what: str) -> bool:
        with self._lock:
            if self.mode is None or self.match not in what:
                return False
            if self.times and self.damaged[what] >= self.times:
                return False
            self._first_s = self._first_s or time.monotonic()
            if time.monotonic() - self._first_s > self.for_s:
                return False
            if self._draws.random() >= self.share:
                return False
            self.damaged[what] += 1
            return True


@contextmanager
def proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """The URL of a proxy to the server at `upstream`."""
    target = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(length)
            damage = self.command in faults.methods and faults.hits(
                f"{urlsplit(self.path).path} {self.headers.get('Range')}"
            )
            if damage and (error := _ERRORS.get(str(faults.mode))):
                body = f"<Error><Code>{error[1]}</Code><Message>injected</Message></Error>".encode()
                self._answer(error[0], [("Content-Type", "application/xml")], body)
                return
            connection = http.client.HTTPConnection(target, timeout=60)
            connection.request(self.command, self.path, sent, dict(self.headers.items()))
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            ]
            if damage:
                self._damage(answer.status, headers, body)
            else:
                self._answer(answer.status, headers, body, answer.getheader("Content-Length"))

        def _answer(
            self, status: int, headers: list[tuple[str, str]], body: bytes, told: str | None = None
        ) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header(
                "Content-Length", told if self.command == "HEAD" and told else str(len(body))
            )
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _damage(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            half = len(body) // 2
            if faults.mode == "flip":
                self._answer(
                    status, headers, body[:half] + bytes([body[half] ^ 16]) + body[half + 1 :]
                )
                return
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if faults.mode == "drip":
                self._drip(body)
                return
            self.wfile.write(body[:half])
            self.wfile.flush()
            if faults.mode == "stall":
                time.sleep(faults.stall_s)
            if faults.mode == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            if faults.mode != "reset":
                self.connection.shutdown(socket.SHUT_RDWR)

        def _drip(self, body: bytes) -> None:
            for at in range(0, len(body), piece := max(1, len(body) // 100)):
                self.wfile.write(body[at : at + piece])
                self.wfile.flush()
                time.sleep(faults.stall_s / 100)

    for method in ("GET", "PUT", "HEAD", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._pass_on)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...  # clients hang up on what stalls

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
