"""Joins or starts a Ray cluster."""

from __future__ import annotations

import os
import socket
from typing import Any

from advbench.runtime.reasons import reason
from attacks_pool import InputError

REACHED = 5.0
"""Seconds to wait for a cluster's answer."""


def load_ray() -> Any:
    """Import the package ray.

    Raises:
        InputError: it is not installed.
    """
    # Ray reads this at import. It must not send data anywhere except to the cluster.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise InputError("ray is not installed: pip install 'advbench[ray]'") from None
    return ray


def check_train() -> None:
    """Check that Ray Train can start the processes of a run.

    Raises:
        InputError: a package that it needs is not installed.
    """
    load_ray()
    try:
        import ray.train  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"several processes for a run need Ray Train: pip install 'advbench[ray]' ({reason(error)})"
        ) from None


def check_address(address: str) -> None:
    """Check the form of an address: ``auto``, ``local`` or ``host:port``.

    Raises:
        InputError: it has another form.
    """
    host, colon, port = address.rpartition(":")
    named = bool(host and colon and port.isascii() and port.isdecimal() and 0 < int(port) < 65536)
    if address not in ("auto", "local") and (not named or "/" in host):
        raise InputError(f"--ray {address!r} is not an address: write auto, local or host:port")


def connect(ray: Any, address: str) -> None:
    """Join or start a cluster.

    Raises:
        InputError: no cluster answers at the address.
    """
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=REACHED).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"--ray {address}: nothing answers there: {error}") from None
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise InputError(f"--ray {address}: no cluster there: {reason(error)}") from None
