"""``vivid serve``: the answers of ``vivid predict`` over HTTP."""

import argparse
import math
import multiprocessing
import socket
from contextlib import suppress

from vivid_monai.commands.bundle import add_answering
from vivid_monai.deploy.eligibility import check_accept
from vivid_monai.deploy.workers import START, Bundle, started
from vivid_monai.errors import VividError
from vivid_monai.networks.library import import_library

CONNECTIONS = 64
"""At a time; more are answered 503 at once, so that what waits stays bounded."""


def add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = "POST /predict, GET /health, GET /model: docs/serving.md. Without password and TLS: behind a proxy."
    add_answering(parser)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every one")
    add("--port", type=int, default=8000, help="0: a free one")
    add("--workers", type=int, default=1, help="processes that answer, an image each at a time")
    add("--max-mb", type=float, default=64, help="10^6 bytes that a request may have")
    what = "seconds that an image may take to come, to wait for a worker, and to be answered"
    add("--timeout", type=float, default=30, help=what)


def run_serve(args: argparse.Namespace) -> int:
    """Answer images over HTTP as `vivid predict` does, until Ctrl-C or SIGTERM. Nothing of an image stays on the disk,
    and neither names of files nor patients are logged."""
    _check(args)
    for name in ("fastapi", "python_multipart", "uvicorn"):
        import_library(name, '"vivid-monai[service]"')
    import uvicorn

    from vivid_monai.deploy.service import USE, service

    if START == "forkserver":
        multiprocessing.set_forkserver_preload(["vivid_monai.deploy.workers"])
    bundle = Bundle(args.bundle, args.runtime, check_accept(args.accept))
    with started(bundle, args.workers) as (workers, folder), _listening(args.host, args.port) as listening:
        app = service(workers, folder, max_mb=args.max_mb, timeout=args.timeout)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # it would hold addresses
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=math.ceil(args.timeout),
        )
        host, port = listening.getsockname()[:2]
        model = workers[0].model
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(f"{address}: {model['name']} {model['version']}, {args.workers} workers. {USE}", flush=True)
        with suppress(KeyboardInterrupt):  # how it ends
            uvicorn.Server(config).run([listening])
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, least in (("workers", 1), ("port", 0)):
        if (given := getattr(args, name)) < least:
            raise VividError(f"--{name} must be {least} or more, not {given}")
    if args.port > 65535:
        raise VividError(f"--port must be at most 65535, not {args.port}")
    for name, most in (("max_mb", 10_000), ("timeout", 3600)):
        if not 0 < (given := getattr(args, name)) <= most:
            raise VividError(f"--{name.replace('_', '-')} must be over 0 and at most {most}, not {given:g}")


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        told = (error.strerror or type(error).__name__).partition(" (while")[0]
        raise VividError(f"--host {host} --port {port}: cannot listen there ({told}); give another one") from error
