"""The page of the gateway, in a browser, and its metrics."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from gateway_rank import Rank

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson"):
    pytest.importorskip(package)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = os.environ.get("MPISERVE_TEST_PICTURES")  # a folder for what the page looks like


@pytest.fixture(scope="module")
def rank(tmp_path_factory):
    with Rank(tmp_path_factory.mktemp("gateway"), address="127.0.0.1:0") as made:
        yield made


class Browser:
    """Chromium without a window, which obeys messages on descriptors 3 and 4."""

    def __init__(self, folder: Path) -> None:
        (its_in, self._out), (self._in, its_out) = os.pipe(), os.pipe()
        command = [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]
        command += [f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]

        def give():
            # Both are above 4 before they become 3 and 4.
            ends = [os.dup(os.dup(os.dup(end))) for end in (its_in, its_out)]
            os.dup2(ends[0], 3), os.dup2(ends[1], 4)

        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        fds = (3, 4, its_in, its_out)
        self._process = subprocess.Popen(command, preexec_fn=give, pass_fds=fds, **quiet)
        os.close(its_in), os.close(its_out)
        self._reader = os.fdopen(self._in, "rb")
        self._number, self._session = 0, {}
        self.console: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        data = b""
        while not data.endswith(b"\0"):
            byte = self._reader.read(1)
            assert byte, "the browser has ended"
            data += byte
        answer = json.loads(data[:-1])
        if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
            self.console.append(json.dumps(answer["params"]))
        return answer

    def run(self, script):
        """Run a script of the page, and wait for what it promises."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script):
        """Wait until something of the page is true."""
        wait = "new Promise((done) => setTimeout(done, 20))"
        return self.run(
            f"(async () => {{ let v; while (!(v = ({script}))) await {wait}; return v }})()"
        )

    def keys(self, *names, text=""):
        """Press keys, then type a text."""
        codes = {"Tab": 9, "Enter": 13}
        for name in names:
            key = {"key": name, "windowsVirtualKeyCode": codes[name]}
            self.call(
                "Input.dispatchKeyEvent", type="keyDown", text="\r" * (name == "Enter"), **key
            )
            self.call("Input.dispatchKeyEvent", type="keyUp", **key)
        if text:
            self.call("Input.insertText", text=text)

    def picture(self, name):
        if PICTURES:
            for mode in ("light", "dark"):
                feature = {"name": "prefers-color-scheme", "value": mode}
                self.call("Emulation.setEmulatedMedia", features=[feature])
                data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
                Path(PICTURES, f"{name}-{mode}.png").write_bytes(base64.b64decode(data))

    def close(self):
        self._process.kill()
        self._process.wait()
        self._reader.close()
        os.close(self._out)


@pytest.fixture
def browser(tmp_path):
    if not BROWSER:
        pytest.skip("no chromium here")
    made = Browser(tmp_path)
    yield made
    made.close()


@pytest.mark.timeout(90)
def test_services_are_shown_and_tried_with_the_keyboard(rank, browser):
    browser.call("Page.navigate", url=f"{rank.endpoint.url}/docs")
    browser.until("document.activeElement && document.activeElement.id === 'token'")
    browser.picture("enter")
    browser.keys(text="wrong")
    browser.keys("Enter")
    assert "token is needed" in browser.until("!at('problem').hidden && at('problem').textContent")
    browser.until(
        "document.activeElement.id === 'token' && !document.querySelector('#enter button').disabled"
    )
    browser.keys(text=rank.endpoint.token)
    browser.keys("Enter")
    browser.until("!at('found').hidden && document.activeElement.id === 'again'")
    text = browser.run("at('services').innerText")
    assert "x: FP32 [-1, 3]" in text and "no weights" in text and "ready" in text
    browser.run("document.querySelector('[aria-label=\"Try int64\"]').focus()")
    browser.keys("Enter")
    browser.until("document.activeElement.id === 'values0'")
    browser.run("values0.select()")
    browser.keys(text="[4611686018427387903, 2, -3]")
    browser.keys("Tab", "Enter")
    # Larger than the numbers of JavaScript, and right all the same.
    shown = browser.until(
        "document.querySelector('pre') && document.querySelector('pre').innerText"
    )
    assert shown == "9223372036854775806, 4, -6"
    browser.picture("answer")
    browser.run("values0.value = '1, 2'; at('ask').requestSubmit()")
    assert "2 values" in browser.until("!at('problem').hidden && at('problem').textContent")
    browser.run("values0.value = '1, <img src=x>, 2'; at('ask').requestSubmit()")
    assert "<img" in browser.until(
        "at('problem').textContent.includes('img') && at('problem').textContent"
    )
    browser.picture("problem")
    kept = "localStorage.length + sessionStorage.length + document.cookie.length"
    assert browser.run(kept) == 0
    assert rank.endpoint.token not in browser.run("document.documentElement.outerHTML + location")
    assert [line for line in browser.console if '"source": "network"' not in line] == []
    # What is not a file of the page is not run.
    inline = (
        "document.body.append(Object.assign(document.createElement('script'), {text: 'x1 = 1'}))"
    )
    assert browser.run(f"{inline}; typeof x1") == "undefined"


def test_the_files_are_there_without_the_token_and_say_nothing(rank):
    for path in ("/docs", "/docs/page.js", "/docs/page.css"):
        status, body, headers = ask(rank, path, "")
        assert status == 200 and rank.endpoint.token.encode() not in body
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"http://" not in body and b"https://" not in body
    assert ask(rank, "/docs/../server.py", "")[0] == 401
    assert ask(rank, "/docs/page_files", f"Bearer {rank.endpoint.token}")[0] == 404


def test_metrics_are_read_by_the_client_library(rank):
    parser = pytest.importorskip("prometheus_client.parser")
    infer = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1] * 3}]}
    )
    assert rank.ask("/v2/models/float32/infer", infer.encode())[0] == 200
    assert rank.ask("/v2/models/float32/versions/1/ready")[0] == 200
    assert ask(rank, "/metrics", "")[0] == ask(rank, "/metrics", "Bearer x")[0] == 401
    status, text, headers = ask(rank, "/metrics", f"Bearer {rank.endpoint.token}")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name.removeprefix("mpiserve_gateway_"), *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    run = "0000000000000001"
    route = "/v2/models/{name}/infer"
    assert found["requests_total", run, "http", "POST", route, "200"] >= 1
    ready = "/v2/models/{name}/versions/{version}/ready"
    assert found["requests_total", run, "http", "GET", ready, "200"] == 1
    assert found["requests_total", run, "http", "GET", "none", "401"] >= 2
    assert found["refused_total", run, "token"] >= 2
    assert found["token_requests_total", run, "job"] >= 2
    assert found["received_bytes_total", run, "http"] >= len(infer)
    assert found["sent_bytes_total", run, "http"] > 0
    assert found["job_requests_total", run, "float32"] >= 1
    assert found["requests_under_way", run, "http"] == 1  # this one
    assert rank.endpoint.token not in text.decode()


def ask(rank, path, authorization):
    client = http.client.HTTPConnection(rank.endpoint.url.removeprefix("http://"), timeout=20)
    client.request("GET", path, headers={"Authorization": authorization})
    reply = client.getresponse()
    return reply.status, reply.read(), dict(reply.headers)
