"""The values: what is accepted from each origin, which origin wins, what they mean."""

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from setting_cases import FILE_KEYS, KEYS, VALID, as_environment, as_toml, held

from resilient_ai.errors import ConfigurationError
from resilient_ai.settings import AISettings

SHARED_FOLDER = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ORIGINS = ("keyword", "environment", "file")


def load(folder, *, keyword=None, environment=None, file=None):
    path = folder / "given.toml"
    path.write_text(as_toml(file or {}), encoding="utf-8")
    environ = {"AI_CONFIG_FILE": str(path)} | as_environment(environment or {})
    return AISettings.load(environ=environ, cwd=folder, **(keyword or {}))


def test_the_cases_cover_every_setting():
    """A setting without cases here is not tested at all."""
    assert set(VALID) == set(KEYS)


def test_the_documented_defaults(tmp_path):
    """With nothing set, the settings are what the documentation promises."""
    found = AISettings.load(environ={}, cwd=tmp_path)
    assert {key: str(getattr(found, key)) for key in KEYS} == {
        "model_name": "qwen3emb",
        "reranker_name": "qwen3_reranker",
        "model_path": "models",
        "model_mirror": "None",
        "offline": "False",
        "precision": "auto",
        "keep_models": "0",
        "memory_limit_mb": "0",
        "max_length": "512",
        "normalize": "True",
        "batch_size": "32",
        "token_budget": "512",
        "start": "auto",
        "spin": "True",
        "cpu_engine": "auto",
        "use_gpu": "auto",
        "gpu_device_id": "0",
        "gpu_memory_fraction": "0.8",
        "gpu_allow_growth": "True",
        "use_tensorrt": "auto",
        "gpu_token_budget": "16384",
        "gpu_exclusive": "False",
        "gpu_in_process": "False",
        "worker_python": "None",
        "worker_phase_ms": "120000",
        "worker_idle_ms": "0",
        "parallel_workers": "4",
        "fallback": "cpu",
        "fallback_timeout_ms": "30000",
        "error_threshold": "3",
        "recovery_time_ms": "300000",
        "max_retries": "2",
        "auto_retry": "True",
        "hedge": "False",
        "agreement": "0.0",
        "verify": "sampled",
        "timeout_ms": "0",
        "queue_size": "1024",
        "cache_size": "1000",
        "memory_pool_size": "512",
        "log_level": "warning",
        "config_file": "config/resilient_ai.toml",
        "allow_fault_injection": "False",
        "fault_plan": "None",
    }


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("key", FILE_KEYS)
@SHARED_FOLDER
@given(data=st.data())
def test_every_setting_is_accepted_from_every_origin(tmp_path, key, origin, data):
    """A valid value is held unchanged, and its origin is told, wherever it was written."""
    value = data.draw(VALID[key])
    layers = {origin: {key: value}}
    if key == "fault_plan":
        layers.setdefault("environment", {})["allow_fault_injection"] = True
    found = load(tmp_path, **layers)
    assert held(getattr(found, key)) == (Path(value) if isinstance(value, Path) else value)
    line = next(line for line in found.report() if line.name == key)
    assert line.origin.startswith(origin)


@SHARED_FOLDER
@given(
    values=st.fixed_dictionaries({}, optional={key: VALID[key] for key in FILE_KEYS if key != "fault_plan"})
)
def test_all_origins_give_the_same_settings(tmp_path, values):
    """Keywords, environment and file are three spellings of one thing: equal settings, equal hash."""
    path = tmp_path / "given.toml"
    by_keyword, by_environment, by_file = (load(tmp_path, **{origin: values}) for origin in ORIGINS)
    assert by_keyword == by_environment == by_file
    assert len({by_keyword, by_environment, by_file}) == 1
    assert {key: held(getattr(by_file, key)) for key in values} == values
    assert by_file.loaded_file == path


@SHARED_FOLDER
@given(
    values=st.fixed_dictionaries(
        {
            key: st.fixed_dictionaries({}, optional=dict.fromkeys(ORIGINS, VALID[key]))
            for key in (
                "batch_size",
                "model_name",
                "normalize",
                "gpu_memory_fraction",
                "use_gpu",
                "log_level",
            )
        }
    )
)
def test_the_strongest_origin_wins(tmp_path, values):
    """Each key by itself: keyword over environment over file over default, equal values or not."""
    layers = {
        origin: {key: given[origin] for key, given in values.items() if origin in given} for origin in ORIGINS
    }
    found = load(tmp_path, **layers)
    lines = {line.name: line for line in found.report()}
    for key, written in values.items():
        winner = next((origin for origin in ORIGINS if origin in written), "default")
        assert lines[key].origin.startswith(winner)
        assert getattr(found, key) == written.get(winner, AISettings.model_fields[key].default)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("blank", ["", "  "])
def test_an_empty_variable_is_an_unset_one(tmp_path, key, blank):
    """`AI_X=` means the default, for every variable."""
    assert AISettings.load(environ={f"AI_{key.upper()}": blank}, cwd=tmp_path) == AISettings.load(
        environ={}, cwd=tmp_path
    )


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "TRUE", "Yes", " on "])
def test_words_for_yes(tmp_path, word):
    """Every documented word for yes, in any case, switches a flag on."""
    found = AISettings.load(environ={"AI_OFFLINE": word, "AI_USE_TENSORRT": word}, cwd=tmp_path)
    assert (found.offline, found.use_tensorrt) == (True, "true")


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "FALSE", "No", " off "])
def test_words_for_no(tmp_path, word):
    """Every documented word for no, in any case, switches a flag off."""
    found = AISettings.load(environ={"AI_NORMALIZE": word, "AI_USE_TENSORRT": word}, cwd=tmp_path)
    assert (found.normalize, found.use_tensorrt) == (False, "false")


@pytest.mark.parametrize("written", [True, 1, "true"])
def test_a_flag_in_its_own_type(tmp_path, written):
    """TOML and keywords may write flags as booleans, numbers or words."""
    found = AISettings.load(environ={}, cwd=tmp_path, offline=written, use_tensorrt=written)
    assert (found.offline, found.use_tensorrt) == (True, "true")


@pytest.mark.parametrize(
    ("written", "ids"),
    [("0", (0,)), (3, (3,)), ("2, 0", (2, 0)), ([1, 0], (1, 0)), ((1,), (1,)), ("007", (7,))],
)
def test_cards_keep_their_order(tmp_path, written, ids):
    """One card or several, as number, text or list; the order is the user's."""
    assert AISettings.load(environ={}, cwd=tmp_path, gpu_device_id=written).gpu_device_ids == ids


def test_choices_in_any_case(tmp_path):
    """A choice may be written in any case."""
    found = AISettings.load(environ={"AI_USE_GPU": "NEVER", "AI_LOG_LEVEL": "Info"}, cwd=tmp_path)
    assert (found.use_gpu, found.log_level) == ("never", "info")


def test_times_in_seconds(tmp_path):
    """Lower layers get seconds, and no deadline is None rather than zero."""
    found = AISettings.load(
        environ={"AI_FALLBACK_TIMEOUT_MS": "1500", "AI_RECOVERY_TIME_MS": "0"}, cwd=tmp_path, timeout_ms=250
    )
    assert (found.gpu_timeout, found.recovery_time, found.default_timeout) == (1.5, 0.0, 0.25)
    assert AISettings.load(environ={}, cwd=tmp_path).default_timeout is None


def test_the_home_folder(tmp_path, monkeypatch):
    """A path that starts with ~ starts in the user's home folder."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert AISettings.load(environ={}, cwd=tmp_path, model_path="~/m").model_path == Path("/home/someone/m")


def test_the_process_environment_by_default(tmp_path, monkeypatch):
    """`AISettings()` reads the environment and the working folder of the process."""
    monkeypatch.setenv("AI_BATCH_SIZE", "7")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/resilient_ai.toml").write_text("max_length = 9\nbatch_size = 8\n")
    monkeypatch.chdir(tmp_path)
    found = AISettings(model_name="all-MiniLM-L6-v2", use_gpu="never")
    assert (found.batch_size, found.max_length, found.model_name, found.use_gpu) == (
        7,
        9,
        "all-MiniLM-L6-v2",
        "never",
    )
    assert found.loaded_file == tmp_path / "config/resilient_ai.toml"


def test_the_default_file_need_not_exist(tmp_path):
    """Nobody has to have a configuration file."""
    assert AISettings.load(environ={}, cwd=tmp_path).loaded_file is None


def test_the_default_place_may_be_something_else(tmp_path):
    """A file named `config` is not ours, and no reason to fail."""
    (tmp_path / "config").write_text("")
    assert AISettings.load(environ={}, cwd=tmp_path).loaded_file is None


def test_a_keyword_chooses_the_file(tmp_path):
    """The keyword wins over AI_CONFIG_FILE, and relative paths start in the working folder."""
    (tmp_path / "a.toml").write_text("batch_size = 5\n")
    found = AISettings.load(environ={"AI_CONFIG_FILE": "absent.toml"}, cwd=tmp_path, config_file="a.toml")
    assert found.batch_size == 5


def test_none_reads_no_file(tmp_path):
    """`config_file=None` leaves even the default file unread."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/resilient_ai.toml").write_text("batch_size = 5\n")
    assert AISettings.load(environ={}, cwd=tmp_path, config_file=None).batch_size == 32


def test_a_byte_order_mark_is_no_key(tmp_path):
    """A file saved with a byte order mark reads like one without."""
    (tmp_path / "a.toml").write_text("batch_size = 5\r\n", encoding="utf-8-sig")
    assert AISettings.load(environ={"AI_CONFIG_FILE": "a.toml"}, cwd=tmp_path).batch_size == 5


def test_settings_are_frozen(tmp_path):
    """What was checked once stays as it was."""
    found = AISettings.load(environ={}, cwd=tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        found.batch_size = 0


def test_copies_are_equal(tmp_path):
    """A pickled or copied instance has the same values and the same report."""
    found = AISettings.load(
        environ={"AI_BATCH_SIZE": "7", "AI_BATCHSIZE": "1", "AI_MODEL_MIRROR": "https://u:p@host"},
        cwd=tmp_path,
    )
    for other in (pickle.loads(pickle.dumps(found)), copy.copy(found), copy.deepcopy(found)):
        assert other == found
        assert other.report() == found.report()
        assert other.unknown == found.unknown
    assert found != found.model_dump()


PLAN = '{"faults": []}'


def test_a_fault_plan_needs_its_permission(tmp_path):
    """A plan that was left behind in an environment never comes into force by itself."""
    with pytest.raises(ConfigurationError, match=r"AI_FAULT_PLAN = .*AI_ALLOW_FAULT_INJECTION=true"):
        AISettings.load(environ={"AI_FAULT_PLAN": PLAN}, cwd=tmp_path)
    permitted = AISettings.load(environ={"AI_FAULT_PLAN": PLAN}, cwd=tmp_path, allow_fault_injection=True)
    assert permitted.fault_plan_json() == PLAN


def test_a_fault_plan_in_a_file(tmp_path):
    """A plan that is a path is read when it is asked for; a missing file is told by its name."""
    (tmp_path / "plan.json").write_text(PLAN)
    common = {"environ": {}, "cwd": tmp_path, "allow_fault_injection": True}
    assert AISettings.load(**common).fault_plan_json() is None
    assert AISettings.load(**common, fault_plan=str(tmp_path / "plan.json")).fault_plan_json() == PLAN
    with pytest.raises(ConfigurationError, match=r"absent\.json.* AI_FAULT_PLAN"):
        AISettings.load(**common, fault_plan=str(tmp_path / "absent.json")).fault_plan_json()


def test_the_mirror_whole(tmp_path):
    """Whoever opens the connection gets the URL with its credentials."""
    assert (
        AISettings.load(environ={}, cwd=tmp_path, model_mirror="https://u:p@h").mirror_url == "https://u:p@h"
    )
    assert AISettings.load(environ={}, cwd=tmp_path).mirror_url is None
