"""A local web page that shows a session and controls it."""

import base64
import io
import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from typing import Any

from PIL import Image

from mirl.agents.watch.session import Moment, Session
from mirl.agents.watch.single_env import Frame
from mirl.configs.errors import ConfigError, RunError

HOST = "127.0.0.1"
"""Address of the page, which only this computer can open."""
MAX_BODY = 10_000
"""Maximum number of bytes of a request."""
FRAME_WIDTH = 640
"""Maximum width of a picture on the page, in pixels."""


def serve(session: Session, port: int, started: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        session: the session.
        port: port of the page; 0 for any free port.
        started: called with the address once the page can be opened.

    Raises:
        RunError: the port is taken.
    """
    try:
        server = build_server(session, port)
    except OSError as error:
        raise RunError(
            f"port {port} cannot be used, {error}; choose another by port=…, or port=0 for any"
        ) from error
    with server:
        started(f"http://{HOST}:{server.server_port}/")
        server.serve_forever()


def build_server(session: Session, port: int) -> HTTPServer:
    """Return the server of the page, which handles one request at a time.

    Args:
        session: the session.
        port: port of the page; 0 for any free port.
    """
    page = files("mirl.agents.watch").joinpath("page.html").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        """Handler of requests for the page, the current timestep, and the controls."""

        def do_GET(self) -> None:
            """Send the page, or the current timestep."""
            if not self._is_from_this_computer():
                return
            if self.path == "/":
                self._send(page, "text/html; charset=utf-8")
            elif self.path == "/moment":
                self._send_moment()
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            """Step, start another episode or set the mission; send the timestep after it."""
            if not self._is_from_this_computer():
                return
            controls: dict[str, Callable[[str], None]] = {
                "/step": lambda _text: session.step(),
                "/next": lambda _text: session.next_episode(),
                "/mission": session.set_mission,
            }
            control = controls.get(self.path)
            if control is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            length = int(self.headers.get("Content-Length", 0))
            text = self.rfile.read(min(length, MAX_BODY)).decode("utf-8", "replace")
            try:
                control(text.strip())
            except ConfigError as error:
                self._send(json.dumps({"error": str(error)}).encode(), "application/json")
                return
            self._send_moment()

        def _is_from_this_computer(self) -> bool:
            # other sites can make a browser send requests, but with their own host names
            host = self.headers.get("Host", "").rpartition(":")[0]
            origin = self.headers.get("Origin", "")
            own = origin in ("", f"http://{self.headers.get('Host', '')}")
            if host in (HOST, "localhost") and own:
                return True
            self.send_error(HTTPStatus.FORBIDDEN)
            return False

        def _send_moment(self) -> None:
            text = json.dumps(as_json(session.moment()))
            self._send(text.encode(), "application/json")

        def _send(self, content: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_arguments: Any) -> None:
            """Print nothing for a request."""

    return HTTPServer((HOST, port), Handler)


def as_json(moment: Moment) -> dict[str, Any]:
    """Return a timestep as JSON values, with its pictures as data URLs.

    Args:
        moment: the timestep.
    """
    values = moment._asdict()
    values["picture"] = data_address(moment.picture)
    values["view"] = None if moment.view is None else data_address(moment.view)
    values["shares"] = None if moment.shares is None else moment.shares.tolist()
    return values


def data_address(frame: Frame) -> str:
    """Return a picture as a ``data:`` URL of a PNG.

    Args:
        frame: the picture, (H, W, 3).
    """
    image = Image.fromarray(frame)
    image.thumbnail((FRAME_WIDTH, FRAME_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
