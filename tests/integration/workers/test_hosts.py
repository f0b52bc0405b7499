"""Programs of every kind have a worker without doing anything for it, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from importlib.util import find_spec

import pytest
from host_kit import AT_ONCE, EMBED, MODEL, PATIENCE, finish, next_line, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("deserted")]

BOTH = "simulated simulated"


def needs(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: pip install {package}")


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["program.py"], None),
        (["-I", "program.py"], None),
        (["-E", "program.py"], None),
        (["-c", EMBED], None),
        (["-"], EMBED),
    ],
    ids=["script", "isolated", "without environment", "command", "stdin"],
)
def test_two_lines_are_a_program(place, arguments, stdin):
    """A program needs no guard and no end, wherever Python has it from."""
    place.write("program.py", EMBED)
    done = place.run(*arguments, stdin=stdin)
    assert (done.lines, done.err) == ([BOTH], "")


def test_the_prompt(place):
    """At the prompt it is the same; the worker is gone with the prompt."""
    done = place.run("-q", "-i", stdin=EMBED + "1 + 1\n")
    assert done.lines == [BOTH, "2"]
    assert "Traceback" not in done.err


def test_modules_in_the_current_folder_are_not_the_workers(place, tmp_path):
    """A worker imports no numpy.py that happens to lie where its host was started."""
    for name in ("numpy", "onnxruntime", "json", "signal"):
        place.write(f"{name}.py", "raise SystemExit('the wrong one')")
    elsewhere = tmp_path / "program.py"
    elsewhere.write_text(EMBED)
    assert place.run(elsewhere).lines == [BOTH]


def test_a_host_without_standard_streams(place):
    """Where the host has closed them, the worker's stream and log get other numbers than theirs."""
    place.write("program.py", f"import sys\nsys.stdout = open('told', 'w')\n{EMBED}")
    told = place.write("told", "")
    closed = place.start("program.py", stdin=None, preexec_fn=lambda: os.closerange(0, 3))
    assert finish(closed).code == 0
    assert told.read_text().split() == BOTH.split()


def test_the_thread_that_started_it_may_end(place):
    """A worker belongs to the process, not to the thread that had it started."""
    host = place.program("""
loading = threading.Thread(target=ai.load)
loading.start()
loading.join()
pid = worker().pid
say(all(embed() == "simulated" for _ in range(100)), worker().pid == pid, worker().restarts)
""")
    assert finish(host).lines == ["True True 0"]


REAPER = """
def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)
threading.Thread(target=reap, daemon=True).start()
"""


@pytest.mark.parametrize(
    "habit", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)", REAPER], ids=["ignores SIGCHLD", "reaps all"]
)
def test_a_host_that_hides_exit_codes(place, habit):
    """A worker's death is noticed and mended where its exit code never arrives."""
    host = place.program(f"""
{habit}
say(embed())
os.kill(worker().pid, signal.SIGKILL)
until(lambda: worker().last_death)
say(embed())
until_back()
say(worker().restarts)
""")
    assert finish(host).lines == ["simulated", "cpu", "1"]


MULTIPROCESSING = """
import multiprocessing, sys
import resilient_ai as rai

ai = rai.AIService()

def work(queue):
    served = ai.embed(["the sun"]).served_by
    queue.put((*served, multiprocessing.current_process().daemon))

if __name__ == "__main__":
    print(*ai.embed(["rain"]).served_by)
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    child = context.Process(target=work, args=(queue,), daemon=True)
    child.start()
    print(*queue.get())
    child.join()
    print(child.exitcode)
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_daemonic_children(place, method):
    """A child that may have no children of multiprocessing's has a worker of its own."""
    program = place.write("program.py", MULTIPROCESSING)
    assert place.run(program, method).lines == ["simulated", "simulated True", "0"]


def test_a_fork_has_a_worker_of_its_own(place):
    """The child starts another one; the parent's goes on untouched, even where the child is killed."""
    host = place.program("""
say(embed())
before = worker()
if (child := os.fork()) == 0:
    say(embed(), worker().pid != before.pid, worker().restarts)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
say(embed(), worker().pid == before.pid, worker().restarts)
""")
    assert finish(host).lines == ["simulated", "simulated True 0", "simulated True 0"]


def test_forks_under_traffic(place):
    """Whatever other threads are in when a process forks, parent and child both go on."""
    host = place.program("""
stop = threading.Event()
served = set()
def work():
    while not stop.is_set():
        served.add(embed())
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
until(lambda: served)
for _ in range(3):
    if (child := os.fork()) == 0:
        signal.alarm(20)
        say(embed())
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop.set()
[thread.join() for thread in threads]
say(*served, worker().restarts)
""")
    assert finish(host).lines == ["simulated"] * 3 + ["simulated 0"]


def test_a_fork_does_not_keep_the_parents_worker(place):
    """When the parent is killed its worker ends, though a child of the parent lives on and embeds."""
    host = place.program(
        """
embed()
if os.fork() == 0:
    say("forked")
    os.read(0, 1)
    say(embed())
    os._exit(0)
time.sleep(60)
""",
        stdin=subprocess.PIPE,
    )
    assert next_line(host) == "forked"
    host.kill()
    until(lambda: not place.workers(), AT_ONCE)
    assert finish(host, "!").out == "simulated\n"


def test_a_fork_knows_the_models_that_were_registered(place, tmp_path):
    """A model of one's own that was registered before a fork is there after it."""
    host = place.program(
        """
ai.registry.register_folder(sys.stdin.readline().strip(), name="my-own", pooling="mean", dimension=384)
say(embed())
if (child := os.fork()) == 0:
    try:
        say(embed())
    finally:
        os._exit(0)
os.waitpid(child, 0)
""",
        stdin=subprocess.PIPE,
        AI_MODEL_NAME="my-own",
        AI_MODEL_PATH=str(tmp_path / "other models"),
    )
    assert finish(host, str(place.store / MODEL)).lines == ["simulated", "simulated"]


WEB = """
import json, os
import resilient_ai as rai

ai = rai.AIService()
ai.embed(["loaded before the workers are forked"])

def tell():
    served_by = ai.embed(["the sun"]).served_by
    worker = ai.health().models[0].backends[0].worker
    return json.dumps({"host": os.getpid(), "worker": worker.pid, "served_by": served_by}).encode()

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [tell()]

async def asgi(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": tell()})
"""


def ask(place):
    """What a web server's process says of itself; None while there is none."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE)
        try:
            stream.connect(str(place.folder / "web.sock"))
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: stream.recv(4096), b""))
        except OSError:
            return None
    if not answer:
        return None
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told["served_by"] == ["simulated"]
    return told


def until_told_by_another(place, *known):
    """What a process of the server says that is none of the known ones."""
    hosts = [told["host"] for told in known]
    return until(lambda: (told := ask(place)) and told["host"] not in hosts and told)


@needs("gunicorn")
def test_gunicorn_with_a_service_from_before_the_fork(place):
    """Each of its processes has a worker of its own, which goes with it; a new process has a new one."""
    place.write("web.py", WEB)
    place.write("gunicorn.conf.py", "control_socket_disable = True")
    options = ["--preload", "--workers", "2", "--bind", "unix:web.sock"]
    server = place.start("-m", "gunicorn", *options, "web:wsgi")
    one = until_told_by_another(place)
    other = until_told_by_another(place, one)
    assert one["worker"] != other["worker"]
    os.kill(one["host"], signal.SIGKILL)
    until(lambda: one["worker"] not in {each.pid for each in place.workers()}, AT_ONCE)
    third = until_told_by_another(place, one, other)
    assert third["worker"] not in (one["worker"], other["worker"])
    server.terminate()
    assert finish(server).code == 0


@needs("uvicorn")
def test_uvicorn_with_reload(place):
    """Each time the program is loaded anew, the worker of its last process is gone."""
    web = place.write("web.py", WEB)
    options = ["--reload", "--reload-delay", "0.1", "--uds", "web.sock", "--lifespan", "off"]
    server = place.start("-m", "uvicorn", *options, "web:asgi")
    before = until_told_by_another(place)
    later = time.time() + 5
    os.utime(web, (later, later))
    after = until_told_by_another(place, before)
    assert [each.pid for each in place.workers()] == [after["worker"]]
    server.terminate()
    finish(server)


CELERY = """
import json, os
import resilient_ai as rai
from celery import Celery
from celery.signals import worker_ready

ai = rai.AIService()
ai.embed(["loaded before the pool is forked"])
app = Celery("tasks", broker="memory://")

@app.task
def embed():
    served_by = ai.embed(["the sun"]).served_by
    worker = ai.health().models[0].backends[0].worker
    with open("told", "a") as told:
        print(json.dumps([os.getpid(), worker.pid, *served_by]), file=told)

@worker_ready.connect
def send(**_):
    for _ in range(4):
        embed.delay()
"""


@needs("celery")
def test_celery_with_a_service_from_before_the_fork(place):
    """Each process of a prefork pool has one worker of its own for all of its tasks."""
    place.write("tasks.py", CELERY)
    told = place.write("told", "")
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    server = place.start("-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "-c", "2", *quiet)
    until(lambda: told.read_text().count("\n") == 4, tell=lambda: finish(server))
    tasks = [json.loads(line) for line in told.read_text().splitlines()]
    assert {served_by for _, _, served_by in tasks} == {"simulated"}
    assert len({(host, worker) for host, worker, _ in tasks}) == len({worker for _, worker, _ in tasks})
    assert len(place.workers()) == 1 + len({worker for _, worker, _ in tasks})
    server.kill()
    finish(server)
    until(lambda: not place.processes(), AT_ONCE)
    for left in place.temporary.glob("pymp-*"):
        left.rmdir()  # the pool's own, which is empty


NOTEBOOK = f"""
import nbformat
from nbclient import NotebookClient

cells = {EMBED.splitlines()}
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
NotebookClient(notebook, timeout=30, kernel_name="python3").execute()
print(*(output.text for output in notebook.cells[1].outputs))
"""


@needs("ipykernel")
@needs("nbclient")
def test_a_notebook(place):
    """A notebook's kernel has a worker, which is gone with it."""
    assert place.run("-c", NOTEBOOK).lines == [BOTH, ""]
