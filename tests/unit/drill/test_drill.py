"""A drill from beginning to end, over fakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from drill_kit import MODEL, FakeService
from typer.testing import CliRunner

import resilient_ai as rai
from resilient_ai._adapters.cli.failures import Program
from resilient_ai._adapters.cli.session import Session
from resilient_ai._adapters.drill import command
from resilient_ai._adapters.drill.devices import drill_settings
from resilient_ai._adapters.drill.run import DrillOptions, run_drill
from resilient_ai.testing import FakeBackend

pytestmark = pytest.mark.slow


def settings(folder, **values):
    fixed = {"model_name": MODEL, "reranker_name": "late-interaction", "model_path": folder}
    return rai.AISettings.load(environ={}, cwd=folder, **(fixed | values))


def drill(folder, *, make_service=None, **options):
    options = {"seconds": 0.3, "threads": 2} | options
    make = make_service or (lambda own: FakeService(own, folder))
    return run_drill(settings(folder), DrillOptions(**options), make_service=make)


def test_faults_that_are_survived_are_counted_as_such(tmp_path):
    """Under an error and NaN every call ends right, the CPU answers, and the device comes back."""
    report = drill(tmp_path, faults=("poisoned", "nan"))
    assert report.passed
    for fault in report.faults:
        assert fault.requests == fault.right > 0
        assert 0 <= fault.first_answer_ms < 1000
        assert 0 <= fault.back_on_device_s < 10
    assert [fault.fault for fault in report.faults] == ["poisoned", "nan"]
    assert report.service["device"] == "simulated"
    assert report.service["agreement"] == pytest.approx(1.0)


def test_a_callers_errors_reach_the_caller_and_the_device_stays(tmp_path):
    """Under a fault that is the caller's there are typed errors, and no first answer to wait for."""
    (fault,) = drill(tmp_path, faults=("caller",)).faults
    assert fault.typed_errors > 0
    assert fault.wrong == fault.lost == 0
    assert fault.first_answer_ms is None


def test_wrong_values_that_nobody_looks_for_are_reported(tmp_path):
    """With verify=off plausible wrong values get through, and the drill says so."""
    report = drill(tmp_path, faults=("wrong_values",), verify="off")
    assert report.faults[0].wrong > 0
    assert not report.passed
    assert report.service["verify"] == "off"


def test_nothing_is_judged_by_a_cpu_that_is_not_sure(tmp_path):
    """Where the CPU gives a text another vector each time, the drill refuses to count."""
    rng = np.random.default_rng(0)

    def noise(batch):
        width = 16 if batch.task == "embed" else 1
        values = rng.standard_normal((batch.rows, width)).astype(np.float32)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    with pytest.raises(rai.DeviceFailed, match="twice"):
        drill(
            tmp_path,
            make_service=lambda own: FakeService(own, tmp_path, cpu=FakeBackend("cpu", 16, noise)),
        )


def test_there_must_be_a_device_to_drill(tmp_path):
    """Without a GPU the error says why there is none and what to set."""
    with pytest.raises(rai.ConfigurationError, match="AI_USE_GPU=simulated"):
        drill(tmp_path, make_service=lambda own: FakeService(own, tmp_path, first=False))


@pytest.mark.parametrize(
    "options",
    [{"faults": ("typo",)}, {"seconds": 0}, {"seconds": float("nan")}, {"threads": 0}],
    ids=["unknown fault", "no time", "NaN", "nobody"],
)
def test_options_that_make_no_sense_are_refused(options):
    """Before anything is loaded."""
    with pytest.raises(rai.ConfigurationError):
        DrillOptions(**options)


@pytest.mark.parametrize(
    ("given", "used"), [("auto", "simulated"), ("never", "simulated"), ("always", "always")]
)
def test_a_simulated_gpu_is_drilled_unless_a_real_one_is_asked_for(tmp_path, given, used):
    """The service under drill permits faults, keeps no cache, recovers soon, and that is said."""
    told = []
    own = drill_settings(
        settings(tmp_path, use_gpu=given, recovery_time_ms=60_000),
        verify="every",
        keep_recovery=False,
        tell=told.append,
    )
    assert own.use_gpu == used
    assert own.allow_fault_injection
    assert own.cache_size == 0
    assert own.recovery_time == 1.0
    assert len(told) == (1 if given == "always" else 2)


def test_recovery_can_be_kept_and_is_never_made_longer(tmp_path):
    """--keep-recovery keeps the configured time; a shorter one than a second always stays."""

    def recovery(milliseconds, *, keep):
        given = settings(tmp_path, recovery_time_ms=milliseconds)
        return drill_settings(given, verify="every", keep_recovery=keep, tell=str).recovery_time_ms

    assert recovery(60_000, keep=True) == 60_000
    assert recovery(200, keep=False) == 200


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command in a program of its own, over a fake service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_MODEL_PATH", str(tmp_path))
    app = typer.Typer(cls=Program, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    command.register(app)

    def invoke(*arguments):
        session = Session(make_service=lambda own: FakeService(own, tmp_path))
        options = ["--model", MODEL, "--reranker", "late-interaction", "--seconds", "0.3", *arguments]
        return CliRunner().invoke(app, ["drill", *options], obj=session)

    return invoke


def test_the_command_prints_one_json_object_and_nothing_else(run):
    """With --json stdout is the report; progress is on stderr; exit code 0 when all went well."""
    done = run("--json", "--fault", "nan")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [fault["fault"] for fault in found["faults"]] == ["nan"]
    assert found["service"]["verify"] == "every"
    assert "nan: on" in done.stderr


def test_the_command_prints_a_table_and_fails_with_the_drill(run):
    """Without --json stdout is a table; wrong answers make the exit code 1."""
    done = run("--quiet", "--fault", "wrong_values", "--verify", "off")
    assert done.exit_code == 1
    assert done.stdout.startswith("fault")
    assert "FAILED" in done.stdout
    assert done.stderr == ""


def test_the_command_refuses_two_choices_of_faults(run):
    """--quick chooses the faults, and so does --fault: a wrong use, exit code 2."""
    done = run("--quick", "--fault", "nan")
    assert done.exit_code == 2
    assert "--quick" in done.stderr
