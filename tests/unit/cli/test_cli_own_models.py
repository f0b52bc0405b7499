"""Models of one's own on the command line: added, tried, converted."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from cli_kit import rows_of, run
from typer.testing import CliRunner

from graph_kit import FLOAT, write_export, write_graph
from resilient_ai._adapters.cli import app
from resilient_ai._adapters.cli.session import Session
from resilient_ai.errors import ModelCorrupt
from tokenizer_kit import small_tokenizer


@pytest.fixture
def home(tmp_path):
    """A folder with a model of one's own, which needs no card."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(small_tokenizer().to_str())
    write_export(folder / "model.onnx", ("sentence_embedding", FLOAT, "first"))
    return folder


def run_for_real(*arguments):
    """Run the program with the service that it has in earnest."""
    return CliRunner().invoke(app, [str(each) for each in arguments], obj=Session())


class TestAdd:
    def test_what_is_added_is_told(self, service, home):
        """What was found out of the model is shown, and how to use it; the list has it from then on."""
        result = run(service, "models", "add", home, "--name", "own", "--json")
        assert result.exit_code == 0
        [row] = rows_of(result)
        assert (row["name"], row["kind"], row["dimension"], row["path"]) == ("own", "embedding", 4, str(home))
        assert "AI_MODEL_NAME=own" in result.stderr
        assert "own" in {each["name"] for each in rows_of(run(service, "models", "list", "--json"))}

    def test_it_is_tried_on_the_cpu(self, service, home):
        """A model is loaded and answers once before it counts as added, unless that is not wanted."""
        run(service, "models", "add", home)
        assert ("embed", {"model": "mine"}) in service.calls
        assert service.settings.use_gpu == "never"
        service.calls.clear()
        run(service, "models", "add", home, "--no-check")
        assert service.calls == []

    def test_one_that_does_not_answer(self, service, home, monkeypatch):
        """A model that fails when it is tried is not added."""

        def fail(*_, **__):
            raise ModelCorrupt("no good")

        monkeypatch.setattr(service, "embed", fail)
        result = run(service, "models", "add", home)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "no good" in result.stderr
        assert "mine" not in {row["name"] for row in rows_of(run(service, "models", "list", "--json"))}

    def test_a_line_is_missing(self, service, tmp_path):
        """What the files leave open is told with the line to write, and exit code 2."""
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
        write_export(folder / "model.onnx", ("last_hidden_state", FLOAT, "tokens"))
        result = run(service, "models", "add", folder)
        assert result.exit_code == 2
        assert 'card.toml, such as: pooling = "mean"' in result.stderr

    def test_removed(self, service, home):
        """What was added can be removed; its files are left alone."""
        run(service, "models", "add", home)
        assert run(service, "models", "remove", "mine", "--yes").exit_code == 0
        assert (home / "model.onnx").is_file()
        assert run(service, "models", "path", "mine").exit_code == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["embedding", "reranker"])
    def test_for_real(self, home, monkeypatch, kind):
        """A real model answers for real, and one whose graph fails in a run is refused with its error."""
        monkeypatch.setenv("AI_OFFLINE", "true")
        if kind == "reranker":
            write_graph(home / "model.onnx", "no_and_yes")
        else:
            write_export(home / "model.onnx", ("last_hidden_state", FLOAT, "tokens"), positions=True)
            (home / "card.toml").write_text('pooling = "mean"')
        result = run_for_real("models", "add", home)
        assert (result.exit_code, rows_of(result)[0]["kind"]) == (0, kind)
        write_graph(home / "model.onnx", "words")
        (home / "card.toml").write_text('kind = "reranker"')
        result = run_for_real("models", "add", home)
        assert result.exit_code == 1
        assert "one score a document" in result.stderr


class TestConvert:
    @pytest.fixture
    def weights(self, tmp_path):
        """A folder with the weights of a tiny BERT and what its authors say of it."""
        folder = tmp_path / "tiny"
        folder.mkdir()
        (folder / "tokenizer.json").write_text(small_tokenizer().to_str())
        write_tiny_bert(folder)
        (folder / "card.toml").write_text('pooling = "mean"\nquery_prompt = "query: {text}"')
        return folder

    @pytest.mark.slow
    def test_it_can_be_used_by_its_name(self, service, weights, tmp_path):
        """The graph lies in the model folder with tokenizer and card, is known by its name and can be run."""
        result = run(service, "models", "convert", weights, "--json")
        assert result.exit_code == 0, result.stderr
        [row] = rows_of(result)
        assert (row["name"], row["family"], row["precision"]) == ("tiny-fp32", "bert", "fp32")
        made = tmp_path / "models" / "tiny-fp32"
        assert row["graph"] == str(made / "model.onnx")
        assert row["bytes"] == (made / "model.onnx").stat().st_size
        assert row["peak_memory_bytes"] > 1 << 20
        [told] = rows_of(run(service, "models", "show", "tiny-fp32", "--json"))
        assert (told["dimension"], told["pooling"], told["query_prompt"]) == (64, "mean", "query: {text}")
        onnx.checker.check_model(onnx.load(made / "model.onnx"))

    @pytest.mark.slow
    def test_elsewhere_and_in_halves(self, service, weights, tmp_path):
        """The output may be any folder, and the numbers half as long; what is there is not overwritten."""
        arguments = ("--output", tmp_path / "out", "--precision", "fp16", "--card-name", "half", "--json")
        result = run(service, "models", "convert", weights, *arguments)
        assert result.exit_code == 0, result.stderr
        full = rows_of(run(service, "models", "convert", weights, "--json"))[0]["bytes"]
        assert rows_of(result)[0]["bytes"] < 0.8 * full
        assert 'name = "half"' in (tmp_path / "out" / "card.toml").read_text()
        again = run(service, "models", "convert", weights, *arguments)
        assert again.exit_code == 2
        assert "is there already" in again.stderr

    @pytest.mark.slow
    def test_by_name(self, service, weights, tmp_path, monkeypatch):
        """A model that is known is converted by its name, and shown as a table to a person."""
        (tmp_path / "models").mkdir()
        weights.rename(tmp_path / "models" / "mine")
        monkeypatch.setattr("resilient_ai._adapters.cli.own_models.wants_json", lambda *, asked: asked)
        result = run(service, "models", "convert", "mine")
        assert result.exit_code == 0, result.stderr
        shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
        assert (shown["name"], shown["kind"]) == ("mine-fp32", "embedding")
        assert shown["bytes"].endswith("kB")

    def test_what_has_no_weights(self, service, home):
        """A folder with a graph alone needs no converting, and the command for it is told."""
        result = run(service, "models", "convert", home)
        assert result.exit_code == 2
        assert f"resilient-ai models add {home}" in result.stderr


def write_tiny_bert(folder, hidden=64, layers=2, wide=128):
    """Seeded weights and the configuration of a BERT."""
    from safetensors.numpy import save_file

    vocabulary = small_tokenizer().get_vocab_size()
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {
        "embeddings.word_embeddings.weight": (vocabulary, hidden),
        "embeddings.position_embeddings.weight": (32, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
    }
    linear = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (wide, hidden),
        "output.dense": (hidden, wide),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        place = f"encoder.layer.{layer}"
        norms += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
        for name, shape in linear.items():
            shapes |= {f"{place}.{name}.weight": shape, f"{place}.{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    rng = np.random.default_rng(0)
    save_file(
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )


@pytest.mark.slow
class TestQuantize:
    @pytest.fixture
    def model(self, tmp_path):
        """A model in the model folder, with weights that are worth it."""
        folder = tmp_path / "models" / "mine"
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text(small_tokenizer().to_str())
        write_tiny_bert(folder)
        (folder / "card.toml").write_text('pooling = "mean"')
        return folder

    def test_the_report(self, service, model, tmp_path):
        """The comparison is shown, for people or as JSON, with the place of the graph."""
        shown = run(service, "models", "quantize", "mine", "--force")
        assert shown.exit_code == 0, shown.stderr
        assert "int8 against fp32, 96 texts" in shown.stdout
        assert "AI_PRECISION=int8" in shown.stderr
        [row] = rows_of(run(service, "models", "quantize", model, "--force", "--json"))
        assert row["recipe"] == "mixed"
        assert row["graph"] in shown.stdout
        assert str(tmp_path / "models" / ".state" / "mine") in row["graph"]

    def test_on_texts_of_ones_own(self, service, model, tmp_path):
        """The texts of a file are what is compared; blank lines are none, and too few are refused."""
        (tmp_path / "few.txt").write_text("one\n\ntwo\n")
        result = run(service, "models", "quantize", "mine", "--texts", tmp_path / "few.txt")
        assert result.exit_code == 2
        assert "2 texts tell too little" in result.stderr
        (tmp_path / "many.txt").write_text("".join(f"text {n} is warm\n\n" for n in range(20)))
        result = run(
            service,
            "models",
            "quantize",
            "mine",
            "--texts",
            tmp_path / "many.txt",
            "--recipe",
            "precise",
            "--force",
            "--json",
        )
        assert rows_of(result)[0]["texts"] == 20
        assert rows_of(result)[0]["recipe"] == "precise"

    def test_one_that_does_not_agree(self, service, model, monkeypatch):
        """A graph whose answers do not agree is refused with what to do, and exit code 2."""
        from resilient_ai._serving import quantizing

        real = quantizing.measure
        monkeypatch.setattr(quantizing, "measure", lambda *paths, **rest: real(*paths, **rest, limit=1.1))
        result = run(service, "models", "quantize", "mine")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "not good enough" in result.stderr
        assert run(service, "models", "quantize", "mine", "--force").exit_code == 0
