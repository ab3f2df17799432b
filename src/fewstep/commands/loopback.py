"""Pages for this machine alone: they answer under its own names, so that no web site reaches them by one of its own.

A server that listens on 127.0.0.1 is still open to every page in the user's browser, whose owner can have a name of his
own resolve to 127.0.0.1 (DNS rebinding); the Host header then has that name.
"""

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

NAMES = ("localhost", "127.0.0.1", "::1")
REFUSAL = (
    "this page answers to localhost, 127.0.0.1 and [::1] alone; from elsewhere: ssh -L PORT:localhost:PORT MACHINE"
)
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def is_loopback(host: str | None) -> bool:
    """Whether a Host header, with or without a port, names this machine."""
    try:
        return urlsplit(f"//{host or ''}").hostname in NAMES
    except ValueError:
        return False


def for_this_machine(app: Wsgi) -> Wsgi:
    """The application, which refuses requests by other names."""

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_loopback(environ.get("HTTP_HOST")):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain")])
        return [REFUSAL.encode()]

    return checked


def middleware() -> list[Any]:
    """The same for an asynchronous application, web sockets included."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])]
