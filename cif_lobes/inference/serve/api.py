"""POST /transcribe: a recording in, its transcript out."""

import asyncio
import os
import pathlib
import shutil
import tempfile

import soundfile
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from cif_lobes.inference.formats import FORMATS
from cif_lobes.inference.serve.worker import Busy, phrases

MEDIA_TYPES = {"json": "application/json"}  # all others are text


class _TooLarge(Exception):
    """The body passes the limit."""


def make_app(worker, max_megabytes=200, max_wait=600):
    """The application.

    `curl -F file=@a.wav http://localhost:7860/transcribe`, or the file as the body itself,
    `curl --data-binary @a.wav`. Fields beside the file, or behind a question mark:
    `format` (json if it is not given), `channel`, and `hotwords`, a phrase a line.
    What cannot be heard gets status 400, what is too large 413, and where too many wait,
    or an answer takes longer than max_wait, 503.

    Arguments
    ---------
    worker : cif_lobes.inference.serve.worker.Worker
    max_megabytes : float
        Of a body.
    max_wait : float
        Seconds from the last byte of a recording to its answer.

    Returns
    -------
    fastapi.FastAPI
    """
    app = FastAPI(title="cif-lobes", description="Recordings to transcripts.")

    @app.exception_handler(HTTPException)
    async def plain(request, error):
        return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)

    @app.post("/transcribe", description=make_app.__doc__.split("\n\n")[1])
    async def transcribe(request: Request):
        with tempfile.TemporaryDirectory() as folder:
            try:
                path, name, fields = await _receive(
                    request, max_megabytes * 1e6, folder
                )
            except _TooLarge:
                raise HTTPException(
                    413,
                    f"more than {max_megabytes:g} MB: send it in parts, or as FLAC or Opus",
                ) from None
            write, channel = _read_fields(fields)
            try:
                future = worker.transcribe(
                    str(path), phrases(fields["hotwords"]), channel
                )
                transcript = await asyncio.wait_for(
                    asyncio.wrap_future(future), max_wait
                )
            except Busy as error:
                raise HTTPException(503, str(error), {"Retry-After": "60"}) from None
            except asyncio.TimeoutError:
                raise HTTPException(
                    503, f"no answer after {max_wait:g} s", {"Retry-After": "60"}
                ) from None
            except (OSError, ValueError, soundfile.SoundFileError) as error:
                cause = str(error).replace(f"{path}", name)
                raise HTTPException(400, cause) from None
        kind = fields["format"]
        return Response(
            write(name, transcript), media_type=MEDIA_TYPES.get(kind, "text/plain")
        )

    return app


def _read_fields(fields):
    """What writes the format, and the channel."""
    if fields["format"] not in FORMATS:
        raise HTTPException(
            400, f"format {fields['format']!r}: one of {', '.join(FORMATS)}"
        )
    channel = fields["channel"]
    if channel is not None and not (channel.isdecimal() and int(channel) > 0):
        raise HTTPException(400, f"channel {channel!r}: a number from 1")
    return FORMATS[fields["format"]], channel and int(channel)


async def _receive(request, max_bytes, folder):
    """Write the recording into a folder; its path, its name, the fields beside it.

    Bytes are counted as they come: a header may be wrong or missing.
    """
    received = 0

    async def counted():
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _TooLarge
        return message

    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise _TooLarge
    fields = {
        "format": "json",
        "channel": None,
        "hotwords": None,
        **request.query_params,
    }
    limited, path = Request(request.scope, counted), pathlib.Path(folder, "recording")
    if not request.headers.get("content-type", "").startswith("multipart/"):
        with open(path, "wb") as file:
            async for chunk in limited.stream():
                await run_in_threadpool(file.write, chunk)
        return path, path.name, fields
    form = await limited.form(max_files=1)
    upload = form.get("file")
    if not hasattr(upload, "file"):
        raise HTTPException(400, "no field `file`: curl -F file=@a.wav ...")
    with open(path, "wb") as file:
        await run_in_threadpool(shutil.copyfileobj, upload.file, file)
    fields.update((key, value) for key, value in form.items() if isinstance(value, str))
    # A name from outside is for messages and answers, and never a path.
    name = os.path.basename((upload.filename or "").replace("\0", "")) or path.name
    return path, name, fields
