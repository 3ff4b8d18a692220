"""What the environment says: variables `HEED_...`, and addresses as they are written there.

It imports nothing, as the container's health check wants it too.
"""

import ipaddress
import os
import re
from collections.abc import Mapping

PREFIX = "HEED_"
TESTS = "HEED_TEST_"  # the project's own tests'
# For a Service named `heed`, or `heed-x`, Kubernetes gives every pod of the namespace HEED_SERVICE_HOST,
# HEED_PORT=tcp://10.43.0.5:8001, HEED_PORT_8001_TCP_ADDR and more: the variables of Docker's links.
_LINK_NAME = re.compile(r"HEED_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


def _is_service_link(name: str, value: str) -> bool:
    return bool(_LINK_NAME.fullmatch(name) or (name.endswith("_PORT") and _LINK_VALUE.match(value)))


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those that somebody set for heed: not those of a Service of that name, and not empty ones, which are none."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIX) and not name.startswith(TESTS) and value and not _is_service_link(name, value)
    }


def host_port(host: str, port: int) -> str:
    """`localhost:8001`, `[::1]:8001`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name is looked up nowhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def loopback_of(host: str) -> str:
    """Where this machine reaches a server that listens on an address: all of them include the loopback's."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
