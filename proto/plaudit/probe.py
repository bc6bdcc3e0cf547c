"""`python -m plaudit.probe HOST:PORT [--service NAME] [--ca FILE …]`: is it served? For orchestrators, which run it.

Exits with 0 if gRPC health says SERVING, else with 1 and one line that says what it says. Kubernetes' own gRPC probe
does the same, but not by TLS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="plaudit.probe", description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--service", default="", help="full name, for instance plaudit.v1.ChatService; default: all")
    parser.add_argument("--ca", type=Path, help="talk TLS; who signs the server's certificate, PEM")
    parser.add_argument("--name", help="what the server's certificate calls it, where that is not HOST")
    parser.add_argument("--certificate", type=Path, help="for servers that ask for one, PEM")
    parser.add_argument("--key", type=Path, help="its private key, PEM")
    parser.add_argument("--timeout", type=float, default=4.0, help="seconds")
    settings = parser.parse_args(arguments)
    if (settings.certificate is None) != (settings.key is None):
        parser.error("--certificate and --key belong together; give both, or neither")
    if settings.ca is None and (settings.certificate or settings.name):
        parser.error("--certificate and --name need --ca: they are of use over TLS only")
    status = _status(settings)
    if status != "SERVING":
        print(f"{settings.address}: {settings.service or 'all'}: {status}", file=sys.stderr)
    return status != "SERVING"


def _status(settings: argparse.Namespace) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    try:
        channel = _channel(settings)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=settings.service), timeout=settings.timeout)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


def _channel(settings: argparse.Namespace) -> grpc.Channel:
    import grpc

    if settings.ca is None:
        return grpc.insecure_channel(settings.address)
    files = [None if path is None else path.read_bytes() for path in (settings.ca, settings.key, settings.certificate)]
    options = [("grpc.ssl_target_name_override", settings.name)] if settings.name else []
    return grpc.secure_channel(settings.address, grpc.ssl_channel_credentials(*files), options)


if __name__ == "__main__":
    raise SystemExit(main())
