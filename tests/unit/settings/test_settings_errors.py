"""The errors: one for everything that is wrong, each problem under the name the user wrote."""

import traceback

import pytest
from setting_cases import FILE_KEYS, INVALID, KEYS, toml_value

from resilient_ai.errors import ConfigurationError
from resilient_ai.settings import AISettings, UnknownVariable
from resilient_ai.settings.fields import allowed

CASES = [(key, value) for key in KEYS for value in INVALID[key]]
TEXT_CASES = [(k, v) for k, v in CASES if isinstance(v, str) and v.strip() and "\0" not in v]
FILE_CASES = [(k, v) for k, v in CASES if k in FILE_KEYS and not isinstance(v, tuple)]


def short(value):
    return repr(value)[:30]


def problems(environ=None, cwd=None, **keywords):
    with pytest.raises(ConfigurationError) as caught:
        AISettings.load(environ=environ or {}, cwd=cwd, **keywords)
    return str(caught.value)


def expect(message, subject, key):
    assert message.startswith("A setting cannot be used."), message
    assert f"- {subject} = " in message
    assert message.endswith(f"allowed: {allowed(AISettings.model_fields[key])}")


def test_the_cases_cover_every_setting():
    """A setting without a refused value here would accept anything."""
    assert set(INVALID) == set(KEYS)
    assert all(INVALID.values())


@pytest.mark.parametrize(("key", "value"), CASES, ids=short)
def test_a_wrong_keyword(tmp_path, key, value):
    """A wrong keyword is named as a keyword, with what is allowed."""
    keywords = {"allow_fault_injection": True} | {key: value}
    expect(problems(cwd=tmp_path, **keywords), f"keyword {key}", key)


@pytest.mark.parametrize(("key", "value"), TEXT_CASES, ids=short)
def test_a_wrong_variable(tmp_path, key, value):
    """A wrong variable is named as it stands in the environment, with what is allowed."""
    variable = f"AI_{key.upper()}"
    environ = {"AI_ALLOW_FAULT_INJECTION": "1"} | {variable: value}
    expect(problems(environ, tmp_path), variable, key)


@pytest.mark.parametrize(("key", "value"), FILE_CASES, ids=short)
def test_a_wrong_key_in_the_file(tmp_path, key, value):
    """A wrong key is named with its file, with what is allowed."""
    path = tmp_path / "a.toml"
    text = toml_value(value)
    path.write_text(f"{key} = {text}\n" + "allow_fault_injection = true\n" * (key != "allow_fault_injection"))
    expect(problems({"AI_CONFIG_FILE": str(path)}, tmp_path), f"{key} in {path}", key)


def test_all_problems_at_once(tmp_path):
    """One error lists what is wrong in every origin, and quotes each value."""
    (tmp_path / "a.toml").write_text('batch_sise = 3\nmax_length = "long"\n[zzzz]\nfraction = 2\n')
    message = problems(
        {"AI_CONFIG_FILE": "a.toml", "AI_CACHE_SIZE": "-1"}, tmp_path, use_gpu="perhaps", modl_name="x"
    )
    where = tmp_path / "a.toml"
    assert message.splitlines()[0].startswith("6 settings cannot be used.")
    assert set(message.splitlines()[1:]) == {
        f"  - batch_sise in {where}: there is no such setting; did you mean batch_size?",
        f"  - max_length in {where} = 'long': allowed: a whole number from 1 to 1048576",
        f"  - zzzz in {where}: there is no such setting; docs/configuration.md lists them all",
        "  - AI_CACHE_SIZE = '-1': allowed: a whole number from 0 to 100000000",
        "  - keyword use_gpu = 'perhaps': allowed: one of auto, always, never, simulated",
        "  - keyword modl_name: there is no such setting; did you mean model_name?",
    }


def test_none_is_a_wrong_value(tmp_path):
    """None is refused where a setting cannot be unset, rather than taken for the default."""
    assert "keyword batch_size = None" in problems(cwd=tmp_path, batch_size=None)


@pytest.mark.parametrize("name", ["_env_file", "_env_prefix", "_secrets_dir", "report"])
def test_no_keyword_reaches_the_machinery(tmp_path, name):
    """Options of the settings library are no settings of this one."""
    assert f"keyword {name}: there is no such setting" in problems(cwd=tmp_path, **{name: "x"})


def test_the_variable_spelling_in_a_file(tmp_path):
    """Who writes the variable's name as a key is told the key."""
    (tmp_path / "a.toml").write_text("AI_BATCH_SIZE = 3\n")
    assert "did you mean batch_size?" in problems(cwd=tmp_path, config_file="a.toml")


def test_a_long_value_is_cut(tmp_path):
    """A message stays readable when the value is not."""
    assert len(problems(cwd=tmp_path, batch_size="9" * 10_000)) < 300


@pytest.mark.parametrize("named", [{"environ": {"AI_CONFIG_FILE": "no.toml"}}, {"config_file": "no.toml"}])
def test_a_named_file_must_exist(tmp_path, named):
    """A file that was asked for and is not there is an error that names who asked, and the place."""
    message = problems(cwd=tmp_path, **named)
    subject = "AI_CONFIG_FILE" if "environ" in named else "keyword config_file"
    assert f"{subject} = '{tmp_path / 'no.toml'}': there is no such file" in message


def test_a_folder_is_no_file(tmp_path):
    """A path that cannot be read as a file is told with the system's reason."""
    message = problems({"AI_CONFIG_FILE": str(tmp_path)}, tmp_path)
    assert f"AI_CONFIG_FILE: {tmp_path} cannot be read (Is a directory)" in message


def test_an_unreadable_default_file(tmp_path):
    """The default file is passed over when it is absent, never when it is there and unreadable."""
    (tmp_path / "config/resilient_ai.toml").mkdir(parents=True)
    assert "cannot be read (Is a directory)" in problems(cwd=tmp_path)


def test_an_unknown_home(tmp_path):
    """A file in the home folder of nobody is refused like any wrong value."""
    message = problems({"AI_CONFIG_FILE": "~no_such_user_here/a.toml"}, tmp_path)
    assert (
        "AI_CONFIG_FILE = '~no_such_user_here/a.toml': the home folder that ~ stands for is not known"
        in message
    )


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"batch_size = 3\nmax_length = = 4\n", "line 2, column 14"),
        (b"batch_size = 3\nbatch_size = 4\n", "line 2, column 15"),
        (b"a = 1\nmodel_name = [", "line 2, column 15"),
        (b'a = 1\nmodel_name = "\xff"\n', "line 2, column 15"),
    ],
    ids=["syntax", "twice", "end", "utf-8"],
)
def test_broken_toml(tmp_path, content, place):
    """A file that is no TOML is told with its line and column, beside the other problems."""
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    message = problems({"AI_CONFIG_FILE": str(path), "AI_BATCH_SIZE": "x"}, tmp_path)
    assert f"- {path}, {place}: " in message
    assert "AI_BATCH_SIZE = 'x'" in message


def test_a_file_cannot_name_the_file(tmp_path):
    """`config_file` in the file would come too late, and is refused rather than ignored."""
    (tmp_path / "a.toml").write_text('config_file = "b.toml"\n')
    message = problems(cwd=tmp_path, config_file="a.toml")
    assert f"config_file in {tmp_path / 'a.toml'}: a file cannot name the file" in message


def test_unknown_variables_are_reported(tmp_path):
    """An AI_ variable of somebody else is no error; it is listed with the nearest name of ours."""
    found = AISettings.load(
        environ={
            "AI_BATCHSIZE": "1",
            "AI_ZZZZ": "hunter2",
            "AI_EMPTY": "",
            "OTHER": "1",
            "ai_batch_size": "x",
        },
        cwd=tmp_path,
    )
    assert found.unknown == (
        UnknownVariable("AI_BATCHSIZE", "AI_BATCH_SIZE"),
        UnknownVariable("AI_ZZZZ", None),
    )
    assert "hunter2" not in str(found.report())


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://jo:hunter2@host/m",
        "jo:hunter2@host",
        "https://jo:hun/ter2@host:x/",
        "hunter2",
        "https://jo:hunter2@",
    ],
)
@pytest.mark.parametrize("origin", ["keyword", "environment", "file"])
def test_no_error_shows_a_secret(tmp_path, origin, mirror):
    """Neither the message nor the traceback with its causes repeats a credential."""
    (tmp_path / "a.toml").write_text(f"model_mirror = {toml_value(mirror)}\n" if origin == "file" else "")
    environ = {"AI_CONFIG_FILE": "a.toml"} | ({"AI_MODEL_MIRROR": mirror} if origin == "environment" else {})
    with pytest.raises(ConfigurationError) as caught:
        AISettings.load(
            environ=environ, cwd=tmp_path, **({"model_mirror": mirror} if origin == "keyword" else {})
        )
    shown = "".join(traceback.TracebackException.from_exception(caught.value).format())
    assert "model_mirror" in shown.lower()
    assert not {"hunter2", "hun", "ter2"} & set(
        shown.replace("@", ":").replace("/", ":").replace("'", ":").split(":")
    )


def test_a_misspelt_secret_is_not_shown(tmp_path):
    """Under an unknown name the value is not repeated, since it may be a secret."""
    assert "hunter2" not in problems(cwd=tmp_path, model_miror="https://jo:hunter2@host")
