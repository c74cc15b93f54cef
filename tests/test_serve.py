"""The page: labels as `predict` gives them, and what it refuses."""

import base64
import io
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from wsseg_ray import networks, serve
from wsseg_ray.datasets.demo import CLASSES
from wsseg_ray.errors import RecipeError
from wsseg_ray.tables import IMAGES


@pytest.fixture(scope="module")
def trained(tiny_local):
    return networks.open_network(tiny_local[1].root, "SN_B")


@pytest.fixture
def page(trained) -> TestClient:
    return TestClient(serve.application(trained), base_url="http://127.0.0.1")


@pytest.fixture
def photo(tiny_local) -> bytes:
    row = next(row for row in tiny_local[1].rows(IMAGES) if row.split == "val")
    return Path(row.uri).read_bytes()


def test_the_page_names_the_network_and_needs_nothing_from_outside(page):
    text = page.get("/").text
    assert "SN_B: labels of a photo" in text and "NETWORK" not in text
    assert "http" not in text


def test_labels_are_those_of_predict(page, trained, photo):
    found = page.post("/labels", content=photo).json()
    expected = networks.predict_photo(trained, photo)
    with Image.open(io.BytesIO(base64.b64decode(found["labels"]))) as labels:
        assert (np.asarray(labels) == expected).all()
    with Image.open(io.BytesIO(base64.b64decode(found["colours"]))) as colours:
        assert ((np.asarray(colours)[..., 3] > 0) == (expected > 0)).all()
    shares = {one["name"]: one["share"] for one in found["classes"]}
    assert shares == {CLASSES[value - 1]: (expected == value).mean() for value in np.unique(expected) if value}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_what_is_refused(page, photo, monkeypatch):
    answer = page.post("/labels", content=b"no photo")
    assert answer.status_code == 422 and "no photo that can be used" in answer.json()["detail"]
    assert page.post("/labels", content=photo, headers={"origin": "http://elsewhere.example"}).status_code == 403
    assert page.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert page.get("/../recipe.py").status_code == page.get("/page.html").status_code == 404
    monkeypatch.setattr(serve, "MAX_PIXELS", 100)
    answer = page.post("/labels", content=photo)
    assert answer.status_code == 422 and "million pixels" in answer.json()["detail"]
    monkeypatch.setattr(serve, "MAX_BYTES", 10)
    assert page.post("/labels", content=photo).status_code == 413


def test_it_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RecipeError, match="pip install 'wsseg_ray\\[serve\\]'"):
        serve.serve("run", None, 8800)


@pytest.fixture
def address(trained) -> Iterator[str]:
    """The page as `wsseg serve` serves it, on a free port."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(serve.application(trained), host=serve.HERE, port=0, log_level="error"))
    listening = socket.create_server((serve.HERE, 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://{serve.HERE}:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.mark.parametrize("width", [400, 1400])
def test_a_photo_is_labelled_in_a_browser(address, photo, tmp_path, width):
    browsers = pytest.importorskip("playwright.sync_api", reason="pip install playwright, to look with a real browser")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "a.jpg").write_bytes(photo)
    (tmp_path / "b.txt").write_text("no photo")
    with browsers.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page, wrong = browser.new_page(viewport={"width": width, "height": 900}), []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        page.set_input_files("#file", tmp_path / "a.jpg")
        page.wait_for_selector("#shown:not([hidden])")
        assert page.get_attribute("#save", "download") == "a.png" and not wrong
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.set_input_files("#file", tmp_path / "b.txt")
        page.wait_for_selector("#said.wrong")
        assert "b.txt: no photo that can be used" in page.inner_text("#said") and page.is_hidden("#shown")
        browser.close()
