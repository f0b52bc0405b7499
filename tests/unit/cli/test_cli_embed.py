from __future__ import annotations

import sys

import numpy as np
import pytest
from cli_kit import DIMENSIONS, rows_of, run, vector_of

from resilient_ai import DeviceFailed


def test_embed_arguments_go_to_stdout_as_json_lines(service):
    """Each argument gives one JSON line whose vector is bit for bit the service's."""
    result = run(service, "embed", "one", "two", "--with-text")
    rows = rows_of(result)
    assert result.exit_code == 0
    assert [(row["index"], row["text"]) for row in rows] == [(0, "one"), (1, "two")]
    assert np.array_equal(np.array(rows[1]["vector"], np.float32), vector_of("two"))
    assert set(rows[0]) == {"index", "text", "vector", "tokens", "truncated", "device"}
    assert service.closed == 1


def test_embed_stdout_has_no_text_unless_asked(service):
    """Texts appear in the output only with --with-text."""
    assert "text" not in rows_of(run(service, "embed", "one"))[0]


def test_embed_reads_lines_from_stdin(service):
    """Without arguments stdin is read; line ends and a byte order mark are no part of a text, empty lines are texts."""
    result = run(service, "embed", "--with-text", stdin=b"\xef\xbb\xbfone\r\n\r\n two \nlast")
    assert [row["text"] for row in rows_of(result)] == ["one", "", " two ", "last"]


def test_embed_line_separators_of_unicode_do_not_split_a_text(service):
    """Only a line feed ends a line."""
    result = run(service, "embed", "--with-text", "--input", "-", stdin="a\u2028b\x85c\x0cd\n".encode())
    assert [row["text"] for row in rows_of(result)] == ["a\u2028b\x85c\x0cd"]


def test_embed_jsonl_field(service, tmp_path):
    """--jsonl-field takes the text from that field of each record, and skips empty lines."""
    file = tmp_path / "in.jsonl"
    file.write_text('{"body": "one", "id": 1}\n\n{"body": "zwei \\u00fc"}\n', encoding="utf-8")
    result = run(service, "embed", "--with-text", "--input", file, "--jsonl-field", "body")
    assert [row["text"] for row in rows_of(result)] == ["one", "zwei ü"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"other": 1}', "line 2: no field 'body'; there are 'other'"),
        (b"[1]", "line 2: a JSON list"),
        (b"{", "line 2: not a JSON record"),
        (b'{"body": 3}', "line 2: the field 'body' is int"),
        (b'{"body": "\\ud800"}', "line 2: byte 1 (0xed) is not UTF-8"),
    ],
)
def test_embed_jsonl_errors_name_the_line(service, line, complaint):
    """A record that gives no text is the caller's error, with its line."""
    result = run(service, "embed", "--jsonl-field", "body", stdin=b'{"body": "ok"}\n' + line + b"\n")
    assert result.exit_code == 2
    assert "error[invalid_input]: stdin, " + complaint in result.stderr


def test_embed_invalid_utf8_is_an_error_with_its_line(service):
    """Bytes that are no UTF-8 end the run with file, line and byte."""
    result = run(service, "embed", stdin=b"fine\nab\xffc\n")
    assert result.exit_code == 2
    assert "stdin, line 2: byte 3 (0xff) is not UTF-8" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_embed_invalid_utf8_can_be_replaced(service):
    """--errors replace puts U+FFFD for what is no UTF-8."""
    result = run(service, "embed", "--with-text", "--errors", "replace", stdin=b"ab\xffc\n")
    assert [row["text"] for row in rows_of(result)] == ["ab\ufffdc"]


def test_embed_utf16_is_named(service):
    """A UTF-16 file is recognised, and the message says how to convert it."""
    result = run(service, "embed", stdin="text\n".encode("utf-16"))
    assert result.exit_code == 2
    assert "iconv -f UTF-16" in result.stderr


def test_embed_options_that_are_not_given_override_nothing(service, monkeypatch):
    """The environment decides what no option was given for."""
    monkeypatch.setenv("AI_MODEL_NAME", "from-environment")
    monkeypatch.setenv("AI_BATCH_SIZE", "7")
    run(service, "embed", "text")
    assert (service.settings.model_name, service.settings.batch_size) == ("from-environment", 7)
    assert service.calls[-1][1] == {
        "input_type": "document",
        "instruction": None,
        "dimensions": None,
        "normalize": None,
        "timeout": None,
    }


def test_embed_options_reach_the_service(service, tmp_path):
    """Every option has its effect on the settings or on the call."""
    options = ["--model", "m", "--model-path", tmp_path, "--batch-size", "3", "--input-type", "query"]
    more = ["--instruction", "do", "--dimensions", "2", "--no-normalize", "--timeout", "1.5"]
    result = run(service, "embed", "text", *options, *more)
    assert len(rows_of(result)[0]["vector"]) == 2
    assert (service.settings.model_name, service.settings.model_path) == ("m", tmp_path)
    assert service.settings.batch_size == 3
    assert service.calls[-1][1] == {
        "input_type": "query",
        "instruction": "do",
        "dimensions": 2,
        "normalize": False,
        "timeout": 1.5,
    }


def test_embed_config_file_is_read(service, tmp_path):
    """--config names the TOML file."""
    (tmp_path / "my.toml").write_text('model_name = "from-file"\n')
    run(service, "--config", tmp_path / "my.toml", "embed", "text")
    assert service.settings.model_name == "from-file"


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_embed_npy(service, tmp_path, count):
    """A .npy file holds exactly the vectors of all lines, also of none, and numpy reads it."""
    lines = [f"line {number}" for number in range(count)]
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in lines))
    result = run(service, "embed", "-i", "in.txt", "-o", "out.npy")
    assert (result.exit_code, result.stdout) == (0, "")
    expected = np.array([vector_of(line) for line in lines], np.float32).reshape(-1, DIMENSIONS)
    assert np.array_equal(np.load("out.npy"), expected)
    assert np.load("out.npy").shape == (count, DIMENSIONS)
    assert f"out.npy: {count} vectors" in result.stderr


@pytest.mark.parametrize("count", [0, 3, 8192, 8193])
def test_embed_parquet(service, tmp_path, count):
    """A Parquet file holds all rows in order, texts if asked for, in row groups of bounded size."""
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in.txt").write_text("".join(f"line {number}\n" for number in range(count)))
    assert run(service, "embed", "-i", "in.txt", "-o", "out.parquet", "--with-text").exit_code == 0
    file = parquet.ParquetFile("out.parquet")
    table = file.read()
    assert table.column("index").to_pylist() == list(range(count))
    assert table.column("text").to_pylist() == [f"line {number}" for number in range(count)]
    assert file.num_row_groups <= count // 8192 + 1
    if count:
        last = np.array(table.column("vector")[count - 1].as_py(), np.float32)
        assert np.array_equal(last, vector_of(f"line {count - 1}"))
    assert table.schema.metadata[b"model"] == b"fake"


def test_embed_parquet_without_pyarrow_names_the_command(service, monkeypatch):
    """Without pyarrow the run ends before any work, with the command that installs it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run(service, "embed", "text", "-o", "out.parquet")
    assert result.exit_code == 2
    assert "pip install 'resilient-ai[parquet]'" in result.stderr
    assert service.calls == []


def test_embed_format_wins_over_the_suffix(service, tmp_path):
    """--format decides whatever the file is called."""
    run(service, "embed", "text", "-o", "out.bin", "--format", "npy")
    assert np.load("out.bin").shape == (1, DIMENSIONS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["text", "-o", "out.csv"], "--format"),
        (["text", "--format", "npy"], "cannot go to stdout"),
        (["text", "--input", "in.txt"], "not both"),
        (["text", "-o", "out.npy", "--with-text"], "no place for texts"),
        (["text", "-o", "nowhere/out.npy"], "No such file or directory"),
        (["text", "-o", "."], "is a folder"),
        (["--input", "absent.txt"], "No such file or directory"),
        (["--input", "."], "Is a directory"),
        (["text", "--dimensions", "0"], "dimensions"),
        (["text", "--nonsense"], "--nonsense"),
        (["text", "-o", "/dev/null", "--format", "npy"], "jsonl only"),
    ],
)
def test_embed_usage_errors(service, arguments, complaint):
    """Wrong usage is one line on stderr, exit code 2, and no call to the service."""
    result = run(service, "embed", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (result.stdout, service.calls) == ("", [])


def test_embed_failure_in_the_middle_leaves_the_old_file(service, tmp_path):
    """When a part fails, the target is what it was before and no other file is left."""
    (tmp_path / "in.txt").write_text("text\n" * 1000)
    (tmp_path / "out.npy").write_bytes(b"before")
    service.fail_at, service.error = 512, DeviceFailed("the device is gone")
    result = run(service, "embed", "-i", "in.txt", "-o", "out.npy")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error[device_failed]: the device is gone"
    assert (tmp_path / "out.npy").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]
    assert service.closed == 1


def test_embed_parquet_failure_is_quiet(service, tmp_path):
    """A Parquet file that is given up leaves nothing, and nothing to say at collection."""
    pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in.txt").write_text("text\n" * 1000)
    service.fail_at, service.error = 512, DeviceFailed("the device is gone")
    result = run(service, "embed", "-i", "in.txt", "-o", "out.parquet")
    assert result.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt"]


def test_embed_quiet_says_nothing(service, tmp_path):
    """--quiet leaves stderr empty when all is well."""
    assert run(service, "embed", "text", "-o", "out.npy", "--quiet").stderr == ""


def test_embed_says_how_many_texts_were_cut(service):
    """The summary counts the texts that were longer than the model takes."""
    result = run(service, "embed", "short", "x" * 50, "-o", "out.jsonl")
    assert "1 of the texts were longer" in result.stderr


def test_embed_fetches_a_missing_model_first(service, monkeypatch):
    """A model that is not at hand is fetched before the first call, and that is said."""
    monkeypatch.setenv("AI_MODEL_NAME", "m")
    service.missing = {"m"}
    result = run(service, "embed", "text")
    assert service.registry.pulled == ["m"]
    assert result.stderr == "fetching m ...\n"
    assert len(rows_of(result)) == 1
