"""``vivid serve``: the answers of ``vivid predict`` over HTTP. Needs the extra ``service``.

What a client sends is in a private folder while it is answered. Neither that nor a name of a file, a value of a tag or
an address is logged.
"""

import asyncio
import json
import logging
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vivid_monai import __version__
from vivid_monai.deploy.postprocessing import UNREADABLE
from vivid_monai.deploy.workers import Answer, Ended, Worker, place
from vivid_monai.errors import VividError, one_line

logger = logging.getLogger(__name__)
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes bytes of what it cannot read

FIELD = "file"
"""The part of the form that holds the image."""
USE = "Research. Not a medical device, and not for clinical decisions."
FORMATS = ("DICOM", "PNG", "JPEG", "TIFF", "BMP")
PATHS = ("/predict", "/health", "/model", "/openapi.json")
_GONE = 499  # the client left before it was answered
_FORM = {"type": "object", "required": [FIELD], "properties": {FIELD: {"type": "string", "format": "binary"}}}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


def service(workers: Sequence[Worker], folder: Path, *, max_mb: float = 64, timeout: float = 30) -> FastAPI:
    """The application: ``POST /predict``, ``GET /health``, ``GET /model``. Errors are ``{"detail": one line}``.

    Args:
        workers: that have started, with the folder where they look for images.
        max_mb: 10^6 bytes that a request may have; more are not read (413).
        timeout: seconds that an image may take to come (408), to wait for a worker (503), and to be answered (504).
    """
    free: asyncio.Queue[Worker] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for worker in workers:
            free.put_nowait(worker)
        yield

    what = f"Findings of one image. {USE}"
    # Their pages would load a script from elsewhere.
    app = FastAPI(title="vivid serve", description=what, version=__version__, docs_url=None, redoc_url=None)
    app.router.lifespan_context = lifespan
    app.add_middleware(_Plainly)

    @app.post("/predict", openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        """The UMS record of one image, or why there is none."""
        path = folder / uuid.uuid4().hex
        try:
            name = await _receive(request, path, most=int(max_mb * 1e6), seconds=timeout)
            answer = await _answer(free, path.name, name, seconds=timeout)
        finally:
            path.unlink(missing_ok=True)
        if answer.status == UNREADABLE:
            raise HTTPException(422, answer.reason)
        return Response(json.dumps(asdict(answer), ensure_ascii=False), media_type="application/json")

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether an image would be answered."""
        able = sum(not worker.broken for worker in workers)
        told = {"status": "ok" if able else "no worker can load the bundle", "workers": able, "free": free.qsize()}
        return JSONResponse(told, 200 if able else 503)

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """What answers, and its limits."""
        limits = {"max_mb": max_mb, "timeout_s": timeout, "formats": FORMATS}
        return {**workers[0].model, "limits": limits, "intended_use": USE, "medical_device": False}

    return app


async def _receive(request: Request, path: Path, *, most: int, seconds: float) -> str:
    """Write the one file of a form to a path; returns the name that the client gave it."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, f"send the image as multipart/form-data: curl -F {FIELD}=@image.dcm")
    too_large = HTTPException(413, f"the request has over {most:,} bytes")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            raise too_large
        return message

    try:
        async with asyncio.timeout(seconds), Request(request.scope, counted).form(max_files=1, max_fields=0) as form:
            upload = form.get(FIELD)
            if not isinstance(upload, UploadFile):
                raise HTTPException(422, f"the form has no file called {FIELD}: curl -F {FIELD}=@image.dcm")
            await run_in_threadpool(_write, upload.file, path)
            return upload.filename or "image"
    except TimeoutError:
        raise HTTPException(408, f"the request took over {seconds:g} s to come") from None
    except FormParserError:  # which older versions of starlette let pass
        raise HTTPException(400, "the form is damaged") from None
    except OSError as error:
        logger.error("a request could not be stored: %s", error.strerror)
        raise HTTPException(507, "the server has no room for the image") from None


def _write(upload: BinaryIO, path: Path) -> None:
    with path.open("xb") as file:
        shutil.copyfileobj(upload, file)


async def _answer(free: "asyncio.Queue[Worker]", file: str, name: str, *, seconds: float) -> Answer:
    try:
        async with asyncio.timeout(seconds):
            worker = await free.get()
    except TimeoutError:
        raise HTTPException(503, "all workers are busy; try again", headers={"Retry-After": "10"}) from None
    try:
        return await run_in_threadpool(worker.answer, file, name, seconds=seconds)
    except TimeoutError:
        raise HTTPException(504, f"the image took over {seconds:g} s, and its answer was given up") from None
    except Ended as error:
        logger.error("a worker failed: %s", error)
        raise HTTPException(500, "the process that read the image failed; it starts again") from None
    except VividError as error:
        logger.error("a worker cannot start: %s", one_line(error))
        raise HTTPException(503, "the server cannot load its bundle any more") from None
    finally:
        free.put_nowait(worker)


class _Plainly:
    """Logs of a request its method, its path if it is one of ours, status and duration; of an error only its place.

    A request that is answered before it was read to its end is read no further: its connection is closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        coming = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])

        async def watched() -> Message:
            nonlocal coming
            message = await receive()
            coming = message.get("more_body", False)
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if coming:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await self.app(scope, watched, noted)
        except ClientDisconnect:
            status = _GONE
        except Exception as error:
            logger.error("a request failed: %s", place(error))
            if not status:
                await JSONResponse({"detail": "the server failed"}, 500)(scope, watched, noted)
        path = scope["path"] if scope["path"] in PATHS else "another path"
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "another method"
        logger.info("%s %s: %d in %.0f ms", method, path, status, 1000 * (time.monotonic() - began))
