"""What is tried on a real card, one function each. Each runs in a process of its own that may die of it.

A function tells what it finds as it finds it, so that what came before a crash or a hang is kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpu_kernels import Kernels, eaten_memory, free_memory, open_context
from resilient_ai._inference.arenas import share_arena
from resilient_ai._inference.runtime import load_runtime, preload_libraries, read_build
from resilient_ai._inference.session import GpuOptions, Session
from resilient_ai._resilience.failures import Classifier
from resilient_ai._workers.child import cuda, preflight
from resilient_ai._workers.child.driver import Attribute
from resilient_ai._workers.messages import DeviceSpec

__all__ = ["DRIVER", "EXPERIMENTS", "MARK", "PREFLIGHT", "READY_TO_BE_KILLED", "SHARED", "run_experiment"]

MARK = "EVIDENCE "
READY_TO_BE_KILLED = "ready to be killed"
DRIVER, SHARED, PREFLIGHT = "bytes free, by the driver alone", "Multi-Process Service", "preflight"

MB = 1 << 20
SMALL, LARGE = (4, 64), (128, 512)  # rows, tokens: the large one needs gigabytes
SETTLING = 0.3  # seconds after a launch, until its error has come


def tell(what: str, found: object) -> None:
    print(MARK + json.dumps({"what": what, "found": str(found)}), flush=True)


def attempt(what: str, work: Callable[[], object]) -> bool:
    """Do it; tell the answer, or the error and what it is taken for. Says whether it went well."""
    started = time.perf_counter()
    try:
        answer = work()
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is what was looked for
        failure = Classifier().classify(exc)
        cause = exc.__cause__
        tell(what, f"{type(exc).__name__}: {exc}")
        tell(f"{what}: class", type(cause or exc).__module__ + "." + type(cause or exc).__qualname__)
        tell(f"{what}: taken for", f"{failure.failure_class}, pattern {failure.pattern}")
        return False
    shown = "went well" if answer is None else answer
    if isinstance(answer, np.ndarray):
        shown = f"went well, {answer.shape}"
    tell(what, f"{shown} ({time.perf_counter() - started:.3f} s)")
    return True


def run_experiment(name: str, graph: Path) -> None:
    EXPERIMENTS[name](graph)


# --- Without a card, too --------------------------------------------------------------------------


def card(_: Path) -> None:
    """Is there a card, and can it be used?"""
    build = read_build()
    tell("build", f"{build.package} {build.version}, CUDA {build.cuda}")
    for line in preload_libraries():
        tell("preloading", line)
    if attempt(DRIVER, lambda: free_memory(open_context(0)[0])):
        tell(SHARED, "yes" if _is_shared() else "no")
    attempt(PREFLIGHT, lambda: look(0))


def _is_shared() -> bool:
    pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    return (pipes / "control").exists() or open_context(0)[0].card(0).attribute(Attribute.MPS_ENABLED) == 1


def hidden(graph: Path) -> None:
    """What does a process hear from which every card is hidden?"""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _refused(graph, 0)


def absent(graph: Path) -> None:
    """What does one hear that asks for card 99?"""
    _refused(graph, 99)


def _refused(graph: Path, number: int) -> None:
    attempt(PREFLIGHT, lambda: look(number))
    attempt("our session", lambda: open_session(graph, device_id=number).providers)
    runtime, options = load_runtime(), load_runtime().SessionOptions()
    providers = [("CUDAExecutionProvider", {"device_id": str(number)})]
    attempt(
        "ONNX Runtime alone",
        lambda: runtime.InferenceSession(str(graph), options, providers=providers).get_providers(),
    )


# --- Memory ---------------------------------------------------------------------------------------


def limit(graph: Path) -> None:
    """What is the text at the arena's limit, and does the session live on?"""
    session = open_session(graph, memory_limit=256 * MB)
    attempt("small batch", lambda: use(session, SMALL))
    attempt("large batch", lambda: use(session, LARGE))
    tell("context", cuda.context_fault())
    attempt("small batch afterwards", lambda: use(session, SMALL))


def eater(graph: Path) -> None:
    """What is the text when another process has taken the memory, and is all well when it is gone?"""
    session = open_session(graph)
    attempt("small batch", lambda: use(session, SMALL))
    with eaten_memory(leave=128 * MB) as left:
        tell("left free", f"{left / MB:.0f} MB")
        attempt("large batch", lambda: use(session, LARGE))
        tell("context", cuda.context_fault())
        attempt("small batch meanwhile", lambda: use(session, SMALL))
        attempt("another session meanwhile", lambda: open_session(graph).providers)
    time.sleep(SETTLING)
    attempt("large batch afterwards", lambda: use(session, LARGE))


def own_arenas(graph: Path) -> None:
    """How much memory do two sessions hold, and what does shrinking give back?"""
    _two_sessions(graph)


def shared_arena(graph: Path) -> None:
    """How much do they hold with one arena for both, and are their answers the same?"""
    attempt("sharing", lambda: share_arena(GpuOptions()))
    _two_sessions(graph)


def _two_sessions(graph: Path) -> None:
    used = memory_meter()
    first, second = open_session(graph), open_session(graph)
    tell("notes", first.notes)
    wanted = [use(session, SMALL) for session in (first, second)]
    tell("two sessions", used())
    for session in (first, second):
        use(session, LARGE)
    tell("after a large batch on each", used())
    for session in (first, second):
        use(session, SMALL, shrink=True)
    tell("after shrinking", used())
    tell("notes", first.notes)
    apart: list[float] = []

    def work(session: Session, right: Any) -> None:
        apart.extend(float(np.abs(use(session, SMALL) - right).max()) for _ in range(50))

    both = [threading.Thread(target=work, args=pair) for pair in zip((first, second), wanted, strict=True)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    tell("both at once, 50 runs each: largest difference", f"{max(apart):.2g} of {len(apart)}")


# --- A context that is gone -----------------------------------------------------------------------


def trap(graph: Path) -> None:
    """What does a kernel that traps do to ONNX Runtime?"""
    _poison(graph, lambda kernels: kernels.trap())


def out_of_bounds(graph: Path) -> None:
    """And one that writes where nothing is?"""
    _poison(graph, lambda kernels: kernels.out_of_bounds())


def allocation(graph: Path) -> None:
    """Does a dead context read as out of memory, when the arena has to grow first?"""
    session, kernels = open_session(graph), Kernels()
    attempt("small batch", lambda: use(session, SMALL))
    kernels.out_of_bounds()
    time.sleep(SETTLING)
    attempt("large batch, the first call afterwards", lambda: use(session, LARGE))
    tell("context", cuda.context_fault())


def _poison(graph: Path, poison: Callable[[Kernels], None]) -> None:
    session, kernels = open_session(graph), Kernels()
    attempt("small batch", lambda: use(session, SMALL))
    tell("context before", cuda.context_fault())
    poison(kernels)
    time.sleep(SETTLING)
    attempt("the next batch", lambda: use(session, SMALL))
    attempt("the one after it", lambda: use(session, SMALL))
    attempt("a large batch", lambda: use(session, LARGE))
    started = time.perf_counter()
    tell("context afterwards", cuda.context_fault())
    tell("asking took", f"{(time.perf_counter() - started) * 1e3:.1f} ms")
    tell("memory", cuda.memory())
    attempt("a new session in this process", lambda: open_session(graph).providers)
    tell("freeing the session", "begins")
    session.close()
    gc.collect()
    tell("freeing the session", "done; now the process ends in the ordinary way")


def forked(graph: Path) -> None:
    """What does a forked child hear from the session of its parent?"""
    session = open_session(graph)
    attempt("small batch", lambda: use(session, SMALL))
    real = session._session
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        attempt("its old session, in the child", lambda: real.run(None, feeds(session, SMALL)) and None)
        attempt("ours, in the child", lambda: use(session, SMALL))
        attempt("a new one, in the child", lambda: open_session(graph).providers)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    tell("the child ended with", os.waitstatus_to_exitcode(status))
    attempt("the parent afterwards", lambda: use(session, SMALL))


# --- A card that never ends -----------------------------------------------------------------------


def spin(graph: Path) -> None:
    """A kernel that never ends: does a run block, does it hold the GIL, can it be stopped?"""
    session, kernels, runtime = open_session(graph), Kernels(), load_runtime()
    attempt("small batch", lambda: use(session, SMALL))
    options = runtime.RunOptions()
    real, given = session._session, feeds(session, SMALL)
    kernels.spin()
    run = threading.Thread(
        target=attempt, args=("the run behind it", lambda: len(real.run(None, given, options))), daemon=True
    )
    run.start()
    run.join(1.0)
    tell("a run after one second", "blocks" if run.is_alive() else "is back")
    tell("turns of this thread in half a second", f"{_turns(0.5):,}")
    options.terminate = True
    run.join(2.0)
    tell("two seconds after terminate", "still blocks" if run.is_alive() else "is back")
    tell("context", cuda.context_fault(2.0))
    tell("memory", cuda.memory())
    tell(READY_TO_BE_KILLED, "yes")
    time.sleep(600)


def released(graph: Path) -> None:
    """And when it does end after all, does everything go on?"""
    session, kernels = open_session(graph), Kernels()
    attempt("small batch", lambda: use(session, SMALL))
    kernels.spin()
    threading.Timer(2.0, kernels.release).start()
    attempt("a batch behind two seconds of nothing", lambda: use(session, SMALL))
    tell("context", cuda.context_fault())
    attempt("small batch afterwards", lambda: use(session, SMALL))


def bare_trap(_: Path) -> None:
    """What does the probe say of a dead context, without ONNX Runtime in the process?"""
    kernels, runtime = Kernels(), load_cudart()
    tell("context before", cuda.context_fault(runtime=runtime))
    tell("memory before", cuda.memory(runtime=runtime))
    kernels.trap()
    time.sleep(SETTLING)
    started = time.perf_counter()
    tell("context afterwards", cuda.context_fault(runtime=runtime))
    tell("asking took", f"{(time.perf_counter() - started) * 1e3:.1f} ms")
    tell("memory afterwards", cuda.memory(runtime=runtime))


def bare_spin(_: Path) -> None:
    """And of one that is busy for ever, and how long does that process take to die?"""
    kernels, runtime = Kernels(), load_cudart()
    kernels.spin()
    tell("context", cuda.context_fault(2.0, runtime=runtime))
    tell("memory", cuda.memory(runtime=runtime))
    tell(READY_TO_BE_KILLED, "yes")
    time.sleep(600)


def load_cudart() -> Any:
    """The CUDA runtime, wherever this environment has it."""
    preload_libraries()
    wheels = sorted(Path(np.__file__).parents[1].glob("nvidia/*/lib/libcudart.so.*"))
    for name in (*map(str, wheels), "libcudart.so.13", "libcudart.so.12"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise FileNotFoundError("libcudart.so is nowhere to be found")


def _turns(seconds: float) -> int:
    turns, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        turns += 1
    return turns


# --- Figures --------------------------------------------------------------------------------------


def start(graph: Path) -> None:
    """How long does a worker take from exec to its first answer, and what does its context hold?"""
    driver, _ = open_context(0)
    before = free_memory(driver)
    for _ in range(3):
        began = time.perf_counter()
        command = [sys.executable, __file__, str(graph)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
            for line in iter(worker.stdout.readline, ""):
                used = (before - free_memory(driver)) / MB
                tell(line.strip(), f"{time.perf_counter() - began:.2f} s after exec, holds {used:.0f} MB")
                if line.startswith("answer"):
                    break
            worker.kill()
        time.sleep(SETTLING)


def be_a_worker(graph: Path) -> None:
    """What `start` watches."""
    print("imports", flush=True)
    look(0)
    print("context", flush=True)
    session = open_session(graph)
    print("session", flush=True)
    use(session, SMALL)
    print("answer", flush=True)
    sys.stdin.read()


def nodes(graph: Path) -> None:
    """Which nodes stay on the CPU?"""
    for fuse in (False, True):
        session = Session(graph, threads=1, gpu=GpuOptions(), fuse=fuse)
        tell(f"nodes, {'fused' if fuse else 'as built'}", dict(session.nodes))
    options = load_runtime().SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    attempt(
        "with disable_cpu_ep_fallback",
        lambda: (
            load_runtime()
            .InferenceSession(str(graph), options, providers=["CUDAExecutionProvider"], enable_fallback=0)
            .get_providers()
        ),
    )


def probe(graph: Path) -> None:
    """What does it cost to ask a healthy context?"""
    session = open_session(graph)
    use(session, SMALL)
    for name, ask in (("context_fault", cuda.context_fault), ("memory", cuda.memory)):
        seconds = []
        for _ in range(200):
            started = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - started)
        median, slowest = np.percentile(seconds, (50, 99)) * 1e3
        tell(f"{name}, healthy", f"median {median:.3f} ms, p99 {slowest:.3f} ms")


def agreement(graph: Path) -> None:
    """How near are the card's vectors to the CPU's, with TF32 and without, and how fast is it?"""
    usual = Session(graph, threads=os.cpu_count() or 1, fuse=False)
    right = unit(use(usual, (32, 128)))
    for tf32 in (True, False):
        session = open_session(graph, tf32=tf32)
        vectors = unit(use(session, (32, 128)))
        cosine = float((vectors * right).sum(-1).min())
        seconds = []
        for _ in range(20):
            started = time.perf_counter()
            use(session, (32, 128))
            seconds.append(time.perf_counter() - started)
        tell(
            f"{'TF32' if tf32 else 'full float32'}",
            f"least cosine {cosine:.8f}, largest difference {np.abs(vectors - right).max():.2g}, "
            f"32 x 128 tokens in {np.median(seconds) * 1e3:.2f} ms",
        )


# --- What they share ------------------------------------------------------------------------------


def look(number: int) -> preflight.CardInfo | None:
    return preflight.inspect(DeviceSpec(name="gpu", kind="cuda", card=number))


def open_session(graph: Path, **options: Any) -> Session:
    return Session(graph, threads=1, gpu=GpuOptions(**options), fuse=False)


def feeds(session: Session, shape: tuple[int, int]) -> dict[str, Any]:
    ids = np.random.default_rng(1).integers(5, 5000, shape)
    return {name: ids if name == "input_ids" else np.ones_like(ids) for name in session.inputs}


def use(session: Session, shape: tuple[int, int], *, shrink: bool = False) -> Any:
    """The first row of numbers of the first output, which is enough to compare."""
    output = next(iter(session.outputs))
    return session.run([output], feeds(session, shape), shrink=shrink)[0]


def unit(vectors: Any) -> Any:
    flat = vectors.reshape(len(vectors), -1)
    return flat / np.linalg.norm(flat, axis=-1, keepdims=True)


def memory_meter() -> Callable[[], str]:
    """Tells how much more of the card's memory is in use than at first."""
    driver, context = open_context(0)
    before = free_memory(driver)

    def used() -> str:
        driver.call("cuCtxSetCurrent", context)
        return f"{(before - free_memory(driver)) / MB:.0f} MB more than at first"

    return used


EXPERIMENTS: dict[str, Callable[[Path], None]] = {
    work.__name__: work
    for work in (
        *(card, hidden, absent, nodes, agreement, probe, start, limit, eater, own_arenas, shared_arena),
        *(forked, trap, out_of_bounds, allocation, released, spin, bare_trap, bare_spin),
    )
}

if __name__ == "__main__":
    be_a_worker(Path(sys.argv[1]))
