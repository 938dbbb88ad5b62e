"""The page of a session: its content, its controls, and whose requests it answers."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

from mirl.agents.watch.page import HOST, build_server, serve
from mirl.agents.watch.session import Session
from mirl.configs.errors import RunError

Open = Callable[..., Session]


@contextmanager
def served(session: Session) -> Iterator[str]:
    """Serve the page of a session in a thread; give its address."""
    with build_server(session, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def ask(
    address: str, text: str | None = None, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Send a request, by POST if there is a text; return the JSON of the answer."""
    data = None if text is None else text.encode()
    request = urllib.request.Request(address, data, headers or {})
    with urllib.request.urlopen(request) as answer:
        values: dict[str, Any] = json.load(answer)
    return values


def status(address: str, text: str | None, headers: dict[str, str] | None = None) -> int:
    """Return the status of a request that is refused."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, text, headers)
    with refused.value as error:
        return error.code


def test_controls_move_the_session(open_session: Open) -> None:
    """Each control shows the timestep that it leads to, with its pictures."""
    with served(open_session()) as address:
        first = ask(f"{address}/moment")
        assert (first["episode"], first["timestep"]) == (1, 0)
        picture = Image.open(io.BytesIO(base64.b64decode(first["picture"].partition(",")[2])))
        assert picture.size[0] > 100
        assert ask(f"{address}/step", "")["timestep"] == 1
        assert ask(f"{address}/mission", " go to the red door ")["mission"] == "go to the red door"
        assert ask(f"{address}/next", "")["episode"] == 2


def test_mistake_is_shown_on_page(open_session: Open) -> None:
    """A mission for an agent that reads none is answered with the reason."""
    with served(open_session("task=mt3")) as address:
        assert "has no mission" in ask(f"{address}/mission", "go to the red door")["error"]


@pytest.mark.parametrize(
    "headers", [{"Host": "example.org"}, {"Origin": "http://example.org"}, {"Host": ""}]
)
def test_other_sites_are_refused(open_session: Open, headers: dict[str, str]) -> None:
    """A page from elsewhere can neither read the session nor control it."""
    session = open_session()
    with served(session) as address:
        assert status(f"{address}/step", "", headers) == 403
    assert session.timestep == 0


def test_unknown_address_is_not_found(open_session: Open) -> None:
    with served(open_session()) as address:
        for path, text in (("/secret", None), ("/secret", "")):
            assert status(address + path, text) == 404


def test_taken_port_is_one_line(open_session: Open) -> None:
    session = open_session()
    with served(session) as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(RunError, match=f"port {port} cannot be used"):
            serve(session, port, lambda _address: None)
