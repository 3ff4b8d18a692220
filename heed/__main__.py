import os
import signal
import sys
from typing import NoReturn

from heed.cli.standard_streams import lost_output, make_unbreakable
from heed.extras import advice

FAILED = 2  # 1 says that a check did not hold


def _leave(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def _leave_at_once(*_: object) -> None:
    os._exit(128 + signal.SIGTERM)  # who imports may catch what is raised


def main() -> None:
    """The entry point. As process 1 of a container nothing stops at SIGTERM by default, so that comes before the
    imports that take a second; and what is half-written is cleaned up."""
    signal.signal(signal.SIGTERM, _leave_at_once)
    make_unbreakable()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines on stderr; what matters of them heed says itself
    try:
        from heed.cli.main import app
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except ModuleNotFoundError as error:
        if not (said := advice(error)):
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(FAILED)
    if sys.argv[1:2] != ["serve"]:  # which has nothing to clean up, and imports more before it listens
        signal.signal(signal.SIGTERM, _leave)
    try:
        app()
    except SystemExit as end:
        _end(end.code)
    except Exception:
        sys.excepthook(*sys.exc_info())  # typer's
        sys.exit(FAILED)
    finally:  # the exit code is settled: Ctrl-C while Python tidies up would replace it
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _end(code: str | int | None) -> NoReturn:
    """With a command's exit code, unless what it printed is lost."""
    if lost := lost_output():
        print(f"error: stdout cannot be written: {lost}", file=sys.stderr)
        sys.exit(code or FAILED)
    sys.exit(code)


if __name__ == "__main__":
    main()
