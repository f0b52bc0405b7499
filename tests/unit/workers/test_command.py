"""How a worker is started: it finds what its host finds, and nothing that it should not."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import resilient_ai
from resilient_ai._workers.host.command import worker_command, worker_env
from resilient_ai.errors import DeviceUnavailable

LIBRARY = str(Path(resilient_ai.__file__).parents[1])
MODULE = ["-m", "resilient_ai._workers.child"]
OTHER = "/opt/gpu/bin/python"


@pytest.fixture
def path(monkeypatch):
    """The host's `sys.path`, of which tests may make what they want."""
    monkeypatch.setattr(sys, "path", [LIBRARY])
    return sys.path


@pytest.fixture
def flags(monkeypatch):
    """The options that the host's interpreter was started with; none of them."""
    options = SimpleNamespace(ignore_environment=0, no_user_site=0, utf8_mode=0)
    monkeypatch.setattr(sys, "flags", options)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    return options


def module_folders(environ=(), *, python=None):
    """What the worker is told to look for modules in."""
    return worker_env(dict(environ), python=python)["PYTHONPATH"].split(os.pathsep)


# -- the command -----------------------------------------------------------------------------------


def test_a_worker_runs_on_the_interpreter_of_its_host():
    """Unless another one is named."""
    assert worker_command(None) == [sys.executable, *MODULE]
    assert worker_command(OTHER) == [OTHER, *MODULE]


@pytest.mark.parametrize("name", ["python3.12", "./env/bin/python", "env/bin/python"])
def test_an_interpreter_may_be_named_as_on_a_command_line(name):
    """What is a name to search for stays one, and so does a path."""
    assert worker_command(name)[0] == name


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch):
    """No shell reads configuration files."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert worker_command("~/gpu/bin/python")[0] == "/home/somebody/gpu/bin/python"


@pytest.mark.parametrize(
    "executable", ["", None, "/usr/sbin/uwsgi", "/opt/app/app", "/usr/lib/libreoffice/soffice.bin"]
)
def test_a_program_that_embeds_python_is_not_started_once_more(monkeypatch, executable):
    """It would be another copy of it, not a worker; both ways out are named."""
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(DeviceUnavailable, match=r"AI_WORKER_PYTHON=.*AI_GPU_IN_PROCESS=true"):
        worker_command(None)
    assert worker_command(OTHER) == [OTHER, *MODULE]


def test_a_frozen_program_is_not_started_once_more(monkeypatch):
    """Whatever its name."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DeviceUnavailable, match="AI_WORKER_PYTHON"):
        worker_command(None)


@pytest.mark.parametrize(
    "name", ["python", "python3.11", "pypy3", "Python", "vpython3", "python3.13t", "spack-python"]
)
def test_interpreters_go_by_many_names(monkeypatch, name):
    """As long as it is one."""
    monkeypatch.setattr(sys, "executable", f"/somewhere/bin/{name}")
    assert worker_command(None)[0] == f"/somewhere/bin/{name}"


# -- the environment -------------------------------------------------------------------------------


@pytest.mark.parametrize("python", [None, OTHER])
def test_every_worker_is_quick_to_speak_and_safe_from_the_current_folder(flags, path, python):
    """And loads CUDA lazily, and has ONNX Runtime report to nobody."""
    env = worker_env({"PATH": "/bin", "OMP_NUM_THREADS": "3", "LD_LIBRARY_PATH": "/cuda"}, python=python)
    env.pop("PYTHONPATH", None)
    env.pop("PYTHONUTF8", None)
    assert env == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "3",
        "LD_LIBRARY_PATH": "/cuda",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "CUDA_MODULE_LOADING": "LAZY",
        "ORT_DISABLE_TELEMETRY": "1",
    }


@pytest.mark.parametrize("python", [None, OTHER])
def test_what_the_user_said_counts(python):
    """Over what is only a default."""
    said = {"CUDA_MODULE_LOADING": "EAGER", "ORT_DISABLE_TELEMETRY": "0"}
    assert worker_env(said, python=python).items() >= said.items()


@pytest.mark.parametrize("python", [None, OTHER])
def test_a_worker_does_not_get_the_hosts_settings_nor_what_is_meant_for_a_prompt(python):
    """It reads no settings; a warning must not be its end."""
    env = worker_env(
        {
            "AI_USE_GPU": "always",
            "ai_model_name": "x",
            "AI_GATEWAY_KEY": "secret",
            "PYTHONWARNINGS": "error",
            "PYTHONINSPECT": "1",
            "PYTHONSTARTUP": "/home/x/.pythonrc",
            "AIRFLOW_HOME": "/airflow",
        },
        python=python,
    )
    assert [name for name in env if name.upper().startswith("AI_")] == []
    assert not env.keys() & {"PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSTARTUP"}
    assert env["AIRFLOW_HOME"] == "/airflow"


@pytest.mark.parametrize("python", [None, OTHER])
def test_the_hosts_environment_stays_as_it_is(python):
    """A worker's is made from it, not out of it."""
    environ = {"AI_USE_GPU": "always", "PYTHONPATH": "/x", "VIRTUAL_ENV": "/y"}
    before = dict(environ)
    worker_env(environ, python=python)
    assert environ == before


def test_another_interpreter_is_not_sent_to_the_hosts_modules(flags):
    """It has its own; what concerns any interpreter it keeps."""
    mine = dict.fromkeys(("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"), "/host")
    env = worker_env(mine | {"PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}, python=OTHER)
    assert "/host" not in env.values()
    assert (env["PYTHONUTF8"], env["PYTHONDONTWRITEBYTECODE"]) == ("1", "1")


def test_the_hosts_interpreter_may_be_named_by_its_path(path, tmp_path):
    """Then it is not another one; a link to it is: environments are links to the same file."""
    assert module_folders(python=sys.executable) == module_folders()
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert "PYTHONPATH" not in worker_env({}, python=str(link))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"flags.utf8_mode": 1}, {"PYTHONUTF8": "1"}),
        ({"flags.no_user_site": 1}, {"PYTHONUTF8": "0", "PYTHONNOUSERSITE": "1"}),
        ({"dont_write_bytecode": True}, {"PYTHONUTF8": "0", "PYTHONDONTWRITEBYTECODE": "1"}),
        ({"pycache_prefix": "/cache"}, {"PYTHONUTF8": "0", "PYTHONPYCACHEPREFIX": "/cache"}),
    ],
)
def test_options_of_the_host_hold_for_a_worker_on_the_same_interpreter(
    monkeypatch, flags, path, options, told
):
    """As far as they concern it; they are the host's own affair for another interpreter."""
    for name, value in options.items():
        target = flags if name.startswith("flags.") else sys
        monkeypatch.setattr(target, name.removeprefix("flags."), value)
    fixed = {"PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED"}
    env = worker_env({}, python=None)
    assert {name: env[name] for name in env if name.startswith("PYTHON") and name not in fixed} == told
    assert not worker_env({}, python=OTHER).keys() & told.keys()


@pytest.mark.parametrize("python", [None, OTHER])
def test_a_host_that_takes_no_orders_by_variables_passes_none_on(flags, path, python):
    """With -E and -I the variables of the interpreter have no effect on it, so they have none on its worker."""
    flags.ignore_environment = 1
    env = worker_env(
        {"PYTHONMALLOC": "debug", "PYTHONHOME": "/x", "PYTHONUTF8": "1", "HOME": "/h"}, python=python
    )
    assert not env.keys() & {"PYTHONMALLOC", "PYTHONHOME"}
    assert env.get("PYTHONUTF8", "0") == "0"
    assert env["HOME"] == "/h"


@pytest.mark.parametrize(
    ("bundle", "outside"),
    [
        ({"LD_LIBRARY_PATH": "/bundle:/cuda", "LD_LIBRARY_PATH_ORIG": "/cuda"}, {"LD_LIBRARY_PATH": "/cuda"}),
        ({"LD_LIBRARY_PATH": "/bundle"}, {}),
    ],
)
def test_the_libraries_of_a_bundle_are_not_another_interpreters(monkeypatch, bundle, outside):
    """A frozen program's worker runs on another interpreter, with the libraries of the system."""
    assert worker_env(bundle, python=OTHER).items() >= bundle.items()
    monkeypatch.setattr(sys, "_MEIPASS", "/bundle", raising=False)
    env = worker_env(bundle, python=OTHER)
    assert {name: env[name] for name in env if name.startswith("LD_")} == outside


# -- where modules are found -----------------------------------------------------------------------


def test_a_worker_looks_for_modules_where_its_host_does_in_the_same_order(path, tmp_path, monkeypatch):
    """Folders and archives that are there, in full, once each."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "relative").mkdir()
    zipfile.ZipFile(tmp_path / "app.pyz", "w").close()
    monkeypatch.chdir(tmp_path / "a")
    b, archive = str(tmp_path / "b"), str(tmp_path / "app.pyz")
    path[:] = [b, LIBRARY, "relative", archive, b, str(tmp_path / "gone"), 7, Path(b)]
    assert module_folders() == [b, LIBRARY, str(tmp_path / "a" / "relative"), archive]


def test_an_entry_that_a_variable_cannot_carry_is_left_out(path, tmp_path):
    """It would be read as two others."""
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a").mkdir()
    path.append(str(tmp_path / "a:b"))
    assert module_folders() == [LIBRARY]


@pytest.mark.parametrize("here", ["", ".", "{cwd}", "{cwd}/", "{link}"])
def test_the_current_folder_is_left_out_however_it_is_written(path, tmp_path, monkeypatch, here):
    """It may hold anything, under the name of any module."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    (tmp_path / "link").symlink_to(cwd)
    monkeypatch.chdir(cwd)
    path.insert(0, here.format(cwd=cwd, link=tmp_path / "link"))
    assert module_folders() == [LIBRARY]


def test_the_current_folder_stays_where_the_user_named_it(path, tmp_path, monkeypatch):
    """In full, that is: an empty or relative entry of PYTHONPATH is mostly an accident."""
    monkeypatch.chdir(tmp_path)
    path.insert(0, str(tmp_path))
    assert module_folders({"PYTHONPATH": f"/x{os.pathsep}{tmp_path}{os.sep}"}) == [str(tmp_path), LIBRARY]
    assert module_folders({"PYTHONPATH": os.pathsep}) == [LIBRARY]
    assert module_folders({"PYTHONPATH": "."}) == [LIBRARY]


def test_this_library_is_found_even_where_it_lies_in_the_current_folder(path, monkeypatch):
    """Host and worker run the same code, also from a checkout; what is not on the path is added to it."""
    monkeypatch.chdir(LIBRARY)
    assert module_folders() == [LIBRARY]
    for entries in ([str(Path(os.__file__).parent), ""], [str(Path(os.__file__).parent)]):
        path[:] = entries
        assert module_folders() == [str(Path(os.__file__).parent), LIBRARY]


def test_a_current_folder_that_was_deleted_is_no_obstacle(path, tmp_path, monkeypatch):
    """Daemons live in such."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    path[:] = ["", "relative", LIBRARY]
    assert module_folders() == [LIBRARY]


# -- with real interpreters ------------------------------------------------------------------------

LOOK = """
import json, sys
import resilient_ai
print(json.dumps({"file": resilient_ai.__file__, "path": sys.path, "prefix": sys.prefix}))
"""


def run(command, *options, **more):
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=60, check=False, **more
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def traps(tmp_path):
    """A folder whose modules end every interpreter that imports them."""
    folder = tmp_path / "traps"
    folder.mkdir()
    for name in ("json", "sitecustomize", "usercustomize", "resilient_ai", "numpy", "runpy"):
        (folder / f"{name}.py").write_text(f"import os\nos.write(2, b'trapped by {name}')\nos._exit(66)\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["", ".", "{traps}"])
def test_a_worker_imports_nothing_from_the_current_folder(traps, monkeypatch, spelling):
    """Whether the host would have or not."""
    monkeypatch.chdir(traps)
    monkeypatch.setattr(sys, "path", [spelling.format(traps=traps), *sys.path])
    python = worker_command(None)[0]
    env = worker_env(os.environ, python=None)
    seen = run([python, "-c", LOOK], env=env)
    assert Path(seen["file"]) == Path(resilient_ai.__file__)
    assert seen["prefix"] == sys.prefix
    # By name, too, which is how a worker is started.
    version = subprocess.run(
        [python, "-m", "resilient_ai", "--help"], env=env, capture_output=True, check=False
    )
    assert version.returncode == 0, version.stderr


@pytest.mark.slow
def test_a_worker_finds_modules_that_only_its_host_knows_of(tmp_path, monkeypatch):
    """Entries that the host has added while it runs, for instance."""
    (tmp_path / "only_here.py").write_text("where = __file__")
    monkeypatch.syspath_prepend(tmp_path)
    look = "import json, only_here; print(json.dumps(only_here.where))"
    assert run([sys.executable, "-c", look], env=worker_env(os.environ, python=None)) == str(
        tmp_path / "only_here.py"
    )


@pytest.mark.slow
def test_another_interpreter_runs_in_its_own_environment(traps, tmp_path):
    """With nothing of the host's on its path, whatever the host was told by variables."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = str(tmp_path / "env" / "bin" / "python")
    host = os.environ | {"PYTHONPATH": str(traps), "PYTHONHOME": str(traps), "VIRTUAL_ENV": str(traps)}
    look = "import json, sys; print(json.dumps({'prefix': sys.prefix, 'path': sys.path}))"
    seen = run([python, "-c", look], env=worker_env(host, python=python), cwd=traps)
    assert seen["prefix"] == str(tmp_path / "env")
    assert not {str(traps), LIBRARY, "", *(entry for entry in sys.path if "site-packages" in entry)} & set(
        seen["path"]
    )
