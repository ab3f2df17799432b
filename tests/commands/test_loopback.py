"""Local pages answer to the names of this machine alone: another name in the Host header is DNS rebinding."""

import sys
from typing import Any

import pytest

from fewstep.commands.loopback import for_this_machine, is_loopback, middleware

OWN = ["localhost", "localhost:6006", "127.0.0.1:7860", "[::1]", "[::1]:6006", "LocalHost:80"]
OTHERS = [
    None,
    "",
    "evil.example",
    "evil.example:6006",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost@evil.example",
    "evil.example#localhost",
    "192.168.0.2",
    "0.0.0.0:6006",
    "[::1",
    "[::2]",
]


@pytest.mark.parametrize("host", OWN)
def test_own_names(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize("host", OTHERS)
def test_other_names(host: str | None):
    assert not is_loopback(host)


def test_tensorboards_application_is_not_reached_by_another_name():
    served: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        # absl, which it imports, closes the standard error of that moment when logging is configured anew.
        patched.setattr(sys, "stderr", sys.__stderr__)
        program = pytest.importorskip("tensorboard.program")
        from fewstep.commands import tensorboard_page

        patched.setattr(program, "create_port_scanning_werkzeug_server", lambda app, flags: app)
        app = tensorboard_page.server(lambda environ, start: served.append(environ) or [b"runs"], None)
    statuses: list[str] = []
    assert app({"HTTP_HOST": "localhost:6006"}, lambda status, headers: None) == [b"runs"]
    (refused,) = app({"HTTP_HOST": "evil.example"}, lambda status, headers: statuses.append(status))
    assert (statuses, len(served)) == (["403 Forbidden"], 1)
    assert b"answers to localhost" in refused
    assert for_this_machine(lambda environ, start: [b"runs"])({}, lambda status, headers: None) != [b"runs"]


def test_the_page_of_play_is_not_reached_by_another_name():
    gradio = pytest.importorskip("gradio", reason="pip install 'fewstep[play]'")
    from starlette.testclient import TestClient

    page = TestClient(gradio.routes.App.create_app(gradio.Blocks(), app_kwargs={"middleware": middleware()}))
    statuses = {host: page.get("/config", headers={"host": host}).status_code for host in (*OWN, "evil.example:7860")}
    assert statuses == dict.fromkeys(OWN, 200) | {"evil.example:7860": 400}
