"""A page on this machine: drop a photo, see its labels. Needs the extra `serve` (Starlette, uvicorn).

Only this machine reaches it: it listens on 127.0.0.1 and refuses requests under other names, which other pages in the
same browser could send. It reads no file but its own page, and writes none.
"""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wsseg_ray import networks
from wsseg_ray.datasets.pixels import encode_mask, photo_size, voc_palette
from wsseg_ray.errors import RecipeError
from wsseg_ray.network_file import Trained

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HERE = "127.0.0.1"
NAMES = [HERE, "localhost"]  # under which requests may come
MAX_BYTES = 50_000_000  # of a photo's file
MAX_PIXELS = 60_000_000  # of a photo: those of phones have up to 50 million


def serve(place: str, name: str | None, port: int) -> None:
    """Serve the page until the process is interrupted.

    Arguments:
        place: a run directory or a network's file; name: of the network, see `networks.open_network`.
    Raises RecipeError where the network or a package is not there.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise RecipeError("wsseg serve needs Starlette and uvicorn: pip install 'wsseg_ray[serve]'") from error
    uvicorn.run(application(networks.open_network(place, name)), host=HERE, port=port, log_level="warning")


def application(trained: Trained) -> Starlette:
    """The page, and what it asks: `POST /labels` with a photo's file as the body answers as `labelled` returns.

    What is wrong with a request is answered as JSON too, under `detail`.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    page = (Path(__file__).parent / "page.html").read_text().replace("NETWORK", trained.about.name)
    one_at_a_time = threading.Lock()  # a photo takes memory, and all cores

    def refused(status: int, why: str) -> Response:
        return JSONResponse({"detail": why}, status)

    def work(data: bytes) -> Response:
        with one_at_a_time:
            try:
                return JSONResponse(labelled(trained, data))
            except (ValueError, OSError) as error:
                return refused(422, f"no photo that can be used: {error}")

    async def show(request: Request) -> Response:
        return HTMLResponse(page)

    async def label(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers['host']}":
            return refused(403, "only this page may ask")
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MAX_BYTES:
                return refused(413, f"the file has more than {MAX_BYTES // 1_000_000} MB")
        return await run_in_threadpool(work, bytes(data))

    routes = [Route("/", show), Route("/labels", label, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=NAMES)])


def labelled(trained: Trained, data: bytes) -> dict[str, Any]:
    """What the page shows of a photo.

    Arguments:
        data: the photo's file.
    Returns `labels`, a palette PNG, and `colours`, a PNG with the classes' colours on a clear background, both in
    base64, and `classes`: `name`, `colour` (CSS) and `share` of the photo, largest first.
    Raises ValueError or OSError where the photo cannot be decoded or is too large.
    """
    height, width = photo_size(data)
    if height * width > MAX_PIXELS:
        raise ValueError(f"it has {height * width / 1e6:.0f} million pixels, more than {MAX_PIXELS // 1_000_000}")
    labels = networks.predict_photo(trained, data)
    palette = voc_palette()
    shares = {name: float((labels == value).mean()) for value, name in enumerate(trained.classes, 1)}
    found = [
        {"name": name, "colour": "#" + bytes(palette[value]).hex(), "share": shares[name]}
        for value, name in enumerate(trained.classes, 1)
        if shares[name]
    ]
    colours = np.dstack([palette[labels], np.where(labels > 0, 255, 0)]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours, "RGBA").save(file, "png")
    return {
        "labels": base64.b64encode(encode_mask(labels)).decode(),
        "colours": base64.b64encode(file.getvalue()).decode(),
        "classes": sorted(found, key=lambda one: -one["share"]),
    }
