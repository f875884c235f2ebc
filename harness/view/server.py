"""A web server for one reader on this machine: reads only, loopback only, behind a random token in the address.

* It listens on 127.0.0.1. Requests with another Host header are refused, so no web site can reach it through a name of its own (DNS
  rebinding); without the token every address is "not found".
* What another site's page loads from here (Origin, Sec-Fetch-Site) is refused even with the token; a link to here works.
* GET and HEAD only. It serves pages that it renders and video files (`harness.view.files`), nothing else of any folder.
* Videos may be asked for in parts (Range), which players need to seek.
"""

from __future__ import annotations

import hmac
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from harness.report.data import ReportError
from harness.view.files import CONTENT_TYPES, NotAllowed, part_asked
from harness.view.pages import Site
from savi.base.errors import SaviError, one_line

HOST = "127.0.0.1"
TIMEOUT_S = 30.0
CHUNK = 1 << 16
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""With every answer. A page has its whole content policy inside."""


class Viewer(ThreadingHTTPServer):
    """The server: `address` is what to open in a browser."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, site: Site, *, port: int = 0, token: str | None = None) -> None:
        super().__init__((HOST, port), _Handler)
        self.token = token or secrets.token_urlsafe(24)
        self.site = site
        site.base = f"/{self.token}"
        port = self.server_address[1]
        self.hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self.address = f"http://{HOST}:{port}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that goes away in the middle is no error to show."""


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.1"
    server_version = "harness-view"
    sys_version = ""
    timeout = TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: addresses hold the token."""

    def do_GET(self) -> None:
        """Answer, with a body."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer, without a body."""
        self._answer()

    def do_POST(self) -> None:
        """Refuse: nothing can be changed here."""
        self.close_connection = True
        self._text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", {"Allow": "GET, HEAD"})

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_POST

    def _answer(self) -> None:
        hosts = [h.strip().lower() for h in self.headers.get_all("Host", [])]
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            self._text(HTTPStatus.FORBIDDEN, "this address is not served under that host name")
            return
        if self._from_elsewhere():
            self._text(HTTPStatus.FORBIDDEN, "pages of other sites may link here, no more")
            return
        try:
            self._route()
        except NotAllowed:
            self._text(HTTPStatus.NOT_FOUND, "not found")
        except SaviError as e:
            self._text(HTTPStatus.NOT_FOUND if isinstance(e, ReportError) else HTTPStatus.INTERNAL_SERVER_ERROR, one_line(e))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception as e:  # noqa: BLE001 - one page that cannot be made must not end the others
            self._text(HTTPStatus.INTERNAL_SERVER_ERROR, f"this page cannot be made: {type(e).__name__}: {one_line(e)}")

    def _from_elsewhere(self) -> bool:
        """Whether another site's page asks for something to use it, by what browsers say of each request. Following a link is no use."""
        origin, mode = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Mode", "navigate")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            return True
        return self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and mode != "navigate"

    def _route(self) -> None:
        split = urlsplit(self.path)
        try:
            path = unquote(split.path, errors="strict")
        except UnicodeDecodeError as e:
            raise NotAllowed("not UTF-8") from e
        token, _, rest = path.removeprefix("/").partition("/")
        if not path.startswith("/") or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise NotAllowed("no token")
        site, (what, _, rest) = self.server.site, rest.partition("/")
        query = parse_qs(split.query)
        if not what and path.endswith("/") and not rest:
            self._page(site.index())
        elif what == "run":
            self._page(site.report(rest))
        elif what == "compare" and not rest and len(query.get("a", [])) == len(query.get("b", [])) == 1:
            self._page(site.comparison(query["a"][0], query["b"][0]))
        elif what == "state" and not rest:
            self._text(HTTPStatus.OK, site.state(query.get("run", [])))
        elif what == "media":
            root, _, name = rest.partition("/")
            with site.video(root, name) as file:
                self._video(file, CONTENT_TYPES.get(Path(name).suffix.lower(), "application/octet-stream"))
        else:
            raise NotAllowed("no such page")

    def _head(self, status: HTTPStatus, kind: str, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, data: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)

    def _text(self, status: HTTPStatus, text: str, more: dict[str, str] | None = None) -> None:
        data = f"{text}\n".encode("utf-8", "backslashreplace")
        self._head(status, "text/plain; charset=utf-8", len(data), more)
        self._body(data)

    def _page(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        self._head(HTTPStatus.OK, "text/html; charset=utf-8", len(data))
        self._body(data)

    def _video(self, file: BinaryIO, kind: str) -> None:
        size = file.seek(0, 2)
        try:
            part = part_asked(self.headers.get("Range"), size)
        except ValueError:
            self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "text/plain", 0, {"Content-Range": f"bytes */{size}"})
            return
        first, length = (part.first, part.length) if part else (0, size)
        more = {"Accept-Ranges": "bytes"} | ({"Content-Range": f"bytes {part.first}-{part.last}/{size}"} if part else {})
        self._head(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, kind, length, more)
        if self.command == "HEAD":
            return
        file.seek(first)
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            self.wfile.write(chunk)
            length -= len(chunk)
        if length:
            self.close_connection = True  # the file got shorter meanwhile
