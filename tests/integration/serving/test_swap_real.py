"""Real models, small ones, replaced under traffic: on the CPU, and in a worker process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import resilient_ai as rai
from tokenizer_kit import small_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(110)]

DIMENSION = 16
TEXTS = ["the sun is warm", "rain", "the cold rain is a b c d"]
WAIT = 30
TOKENIZER = small_tokenizer()
VERSIONS = 8


def table(version):
    """What a version gives for each token."""
    shape = (TOKENIZER.get_vocab_size(), DIMENSION)
    return np.random.default_rng(version).normal(size=shape).astype(np.float32)


def write_version(folder, version, *, table_of=table):
    """Write a model whose vectors are the means of its tokens'; the graph comes by a rename, as it should."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(TOKENIZER.to_str())
    (folder / "card.toml").write_text('pooling = "mean"')
    values = table_of(version)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "longest"])],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", TensorProto.FLOAT, ["rows", "longest", DIMENSION]
            )
        ],
        [numpy_helper.from_array(values, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / ".model.onnx.part"))
    (folder / ".model.onnx.part").rename(folder / "model.onnx")


def right_answer(version):
    rows = [table(version)[TOKENIZER.encode(text).ids].mean(axis=0) for text in TEXTS]
    return np.array([row / np.linalg.norm(row) for row in rows])


RIGHT = [right_answer(version) for version in range(VERSIONS)]


def version_of(answer):
    """Which version gave all of an answer."""
    (found,) = [n for n, right in enumerate(RIGHT) if np.abs(answer.vectors - right).max() < 1e-5]
    return found


@pytest.fixture(params=["never", "simulated"])
def ai(request, tmp_path):
    write_version(tmp_path / "models" / "mine", 0)
    settings = rai.AISettings.load(
        environ={},
        cwd=tmp_path,
        model_name="mine",
        reranker_name="late-interaction",
        model_path=tmp_path / "models",
        use_gpu=request.param,
        offline=True,
        cache_size=0,
        parallel_workers=1,
        recovery_time_ms=1000,
    )
    with rai.AIService(settings) as service:
        service.load()
        yield service


def test_replaced_under_traffic(ai, tmp_path):
    """Eight threads call while new files come.

    No call fails, each has one version's vectors, none an older version's than the one before, and the
    device that should serve serves them all.
    """
    stop, barrier = threading.Event(), threading.Barrier(9)

    def work():
        answers = []
        barrier.wait()
        while not stop.is_set():
            answers.append(ai.embed(TEXTS, timeout=WAIT))
        return answers

    with ThreadPoolExecutor(8) as threads:
        ended = [threads.submit(work) for _ in range(8)]
        barrier.wait()
        for version in range(1, VERSIONS):
            write_version(tmp_path / "models" / "mine", version)
            assert ai.reload(timeout=WAIT) == ("mine",)
            for _ in range(20):
                assert version_of(ai.embed(TEXTS, timeout=WAIT)) == version
        stop.set()
        every = [each.result(WAIT) for each in ended]
    for answers in every:
        versions = [version_of(answer) for answer in answers]
        assert versions == sorted(versions)
        assert not any(answer.degraded for answer in answers)
    assert all(len(answers) > VERSIONS for answers in every)
    device = "cpu" if ai.settings.use_gpu == "never" else "simulated"
    assert {name for answers in every for answer in answers for name in answer.served_by} == {device}
    worker = ai.health().models[0].backends[0].worker
    if worker is not None:  # one and the same, with the last of them loaded alone
        until(lambda: len(ai.health().models[0].backends[0].worker.models) == 1)
        assert worker.restarts == 0


def test_a_broken_one(ai, tmp_path):
    """Files of a model that answers wrongly never serve; the present one goes on, and so does its worker."""
    write_version(tmp_path / "models" / "mine", 1, table_of=lambda version: table(version) * np.nan)
    with pytest.raises(rai.ModelCorrupt, match="does not answer rightly"):
        ai.reload(timeout=WAIT)
    answer = ai.embed(TEXTS, timeout=WAIT)
    assert (version_of(answer), answer.degraded) == (0, False)
    write_version(tmp_path / "models" / "mine", 2)
    assert ai.reload(timeout=WAIT) == ("mine",)
    assert version_of(ai.embed(TEXTS, timeout=WAIT)) == 2


def test_one_model_after_another(tmp_path, ai):
    """With room for one model in memory, two are used in turn, each loaded when it is needed."""
    write_version(tmp_path / "models" / "other", 3)
    limited = rai.AISettings.load(
        environ={},
        cwd=tmp_path,
        model_name="mine",
        reranker_name="late-interaction",
        model_path=tmp_path / "models",
        use_gpu=ai.settings.use_gpu,
        offline=True,
        cache_size=0,
        parallel_workers=1,
        keep_models=1,
    )
    with rai.AIService(limited) as service:
        for _ in range(2):
            assert version_of(service.embed(TEXTS, timeout=WAIT)) == 0
            assert version_of(service.embed(TEXTS, timeout=WAIT, model="other")) == 3
        until(lambda: [model.name for model in service.health().models] == ["other"])


def until(so):
    pause = threading.Event()
    for _ in range(1000):
        if so():
            return
        pause.wait(0.01)
    raise AssertionError("it does not come about")
