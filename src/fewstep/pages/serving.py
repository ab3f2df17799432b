"""A page served to this machine alone, with all that it needs: it works without any network."""

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import panel as pn
from panel.io.server import get_server
from panel.viewable import Viewable

HOST = "localhost"
STYLE = (Path(__file__).parent / "page.css").read_text()


def serve(page: Callable[[], Viewable], *, port: int, title: str, ready: Callable[[str], None]) -> None:
    """Serve `page`, made anew for each visitor, until Ctrl-C.

    Args:
        port: to listen on, 0 for any free one. ready: is told the address, when the page answers.

    Raises:
        ValueError: the port cannot be had.
    """
    pn.extension(raw_css=[STYLE], inline=True, notifications=False)
    for name in ("bokeh", "tornado.access", "panel"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a visitor who leaves is no error
    try:
        # only this machine can connect, and only pages from here may talk to it
        server = get_server({"/": page}, port=port, address=HOST, title=title, show=False, start=False)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise ValueError(f"--port {port} {reason}; choose another one, or 0 for any that is free") from None
    server.start()
    ready(f"http://{HOST}:{server.port}/")
    with suppress(KeyboardInterrupt):
        server.io_loop.start()
