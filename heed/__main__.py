import os
import signal
import sys

from heed.extras import advice


def _leave(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """The entry point. As process 1 of a container nothing stops at SIGTERM by default, so that comes before the
    imports that take a second; and what is half-written is cleaned up."""
    signal.signal(signal.SIGTERM, _leave)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines on stderr; what matters of them heed says itself
    try:
        from heed.cli.main import app
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except ModuleNotFoundError as error:
        if not (said := advice(error)):
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    try:
        app()
    finally:  # the exit code is settled: Ctrl-C while Python tidies up would replace it
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
