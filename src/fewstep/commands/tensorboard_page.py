"""`python -m fewstep.commands.tensorboard_page`: TensorBoard for this machine alone, with its own arguments."""

from typing import Any

from absl import app
from tensorboard import default, main_lib, program

from fewstep.commands.loopback import for_this_machine


def server(wsgi_app: Any, flags: Any) -> Any:
    """TensorBoard's server, of an application that answers to this machine's names."""
    return program.create_port_scanning_werkzeug_server(for_this_machine(wsgi_app), flags)


def main() -> None:
    """Serve until Ctrl-C."""
    main_lib.global_init()
    tensorboard = program.TensorBoard(plugins=default.get_plugins(), server_class=server)
    app.run(tensorboard.main, flags_parser=tensorboard.configure)


if __name__ == "__main__":
    main()
