"""Milliseconds per training step, ours against PyTorch eager, on the same networks with the same weights and windows.

    python bench/trainer.py [--network demo ...] [--rounds 9] [--batch 64] [--steps-per-window 1800] [--threads 2]
                            [--no-compile] [--json FILE]

A step is forward, cross-entropy, backward and AdamW. Each contender lives in a process of its own, as it would in use, with the
settings and threads that it chooses by itself. They work in turns, a few steps each, so that whatever else the machine does falls on
all alike; between turns the machine rests, since threads that spin while they wait would take the other's cores. The first step of a
turn is not timed; the median of the others counts. `demo` is the separable network of the demo (stored kernels), `generated` the same
with generated ones (PyTorch runs their generator too), `regular_cnn` the plain convolutions of the published teacher.

`gflops` counts 3 x 2 x MACs x batch a step (forward, and the gradients of inputs and kernels), `gemm_share` sets it against the
product of two 1024 x 1024 float32 matrices with the same number of threads, measured in the same run. `memory` is how much a fresh
process of ours grew, from the moment the windows were there to its largest, beside the activations that a step saves; `..._beside_code`
leaves out what a step of one window takes, which is the kernels' code and BLAS.
`generator_share` is the part of a step that generator and heads take, of the `generated` network. `second_start_s` is the time from
the birth of a process, with the kernels' code cached, to the end of its first step. `data` is a real training run on memory-mapped
windows: how long its steps waited for theirs. `busy` is true if others were at work when it began: such numbers are not for
publication. What cannot run is null, with the reason under `not_run` and on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ENVIRONMENT = dict(os.environ)
"""As it was before the trainer set how its own threads wait: every contender begins with this."""

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from pyhtpw.nets import Graph, Node, build  # noqa: E402

TURN = 4
"""Steps of a turn."""

REST = 0.06
"""Seconds between turns: longer than the threads of PyTorch's OpenMP spin."""

LIMIT = 300
"""Seconds that a contender may take for anything."""


def plain_cnn(t: int) -> Graph:
    """Convolutions of the published teacher: 64k7, 128k5, 256k3, 512k3, 512k3, max pool 2 after the first four."""
    nodes, source = [], "input"
    for i, (width, taps) in enumerate(((64, 7), (128, 5), (256, 3), (512, 3), (512, 3)), start=1):
        nodes.append(Node(f"conv{i}", "conv", (source,), width, taps, norm="batch", relu=True))
        source = f"conv{i}"
        if i < 5:
            nodes.append(Node(f"max{i}", "maxpool", (source,), width, 2, 2))
            source = f"max{i}"
    nodes.append(Node("pool", "avgpool", (source,), 512))
    nodes.append(Node("hidden", "pointwise", ("pool",), 256, relu=True))
    nodes.append(Node("fc", "fc", ("hidden",), 2))
    return Graph("regular_cnn", (t, 1), 2, tuple(nodes))


NETWORKS: dict[str, Callable[[int], Graph]] = {
    "demo": lambda t: build("separable", t=t, kernel=9, stem_kernel=15),
    "generated": lambda t: build("hypertinypw", t=t, kernel=9, stem_kernel=15),
    "regular_cnn": plain_cnn,
}


def ours(graph: Graph, x: np.ndarray, y: np.ndarray) -> tuple[Callable[[], float], Any]:
    """One step of the trainer, which gives its loss, and the model."""
    from pyhtpw.train import Model
    from pyhtpw.train.kernels import single_blas
    from pyhtpw.train.losses import cross_entropy
    from pyhtpw.train.optim import AdamW

    model = Model(graph, seed=0)
    optimiser = AdamW(model, 0.01)
    count = 0

    def step() -> float:
        nonlocal count
        count += 1
        with single_blas():
            loss, dlogits = cross_entropy(model.forward(x, training=True), y)
            model.backward(dlogits)
            optimiser.step(count, 1e-3)
        return loss

    return step, model


def theirs(graph: Graph, x: np.ndarray, y: np.ndarray, compiled: bool) -> Callable[[], float]:
    """One step of PyTorch, from the same weights; its loss."""
    import torch
    from torch_network import logits, tensors

    from pyhtpw.train.model import initial_params

    start = {name: value.astype(np.float32) for name, value in initial_params(graph, 0).items()}
    params = tensors(start)
    optimiser = torch.optim.AdamW([p for p in params.values() if p.requires_grad], lr=1e-3, weight_decay=0.01)
    windows, labels = torch.from_numpy(x), torch.from_numpy(y)
    network = torch.compile(logits) if compiled else logits

    def step() -> float:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(graph, params, windows), labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


# -- a contender's own process -----------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Bytes in memory now (VmRSS) or at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def work(kind: str, name: str, args: argparse.Namespace) -> None:
    """Answers requests from stdin with JSON lines: "step N" with the milliseconds of N steps, and what only ours knows."""
    graph = NETWORKS[name](args.steps_per_window)
    if kind == "ours":
        import numba

        from pyhtpw.train import Model  # noqa: F401  imports are not memory of training

        numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    else:
        import torch

        torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.batch, *graph.input_shape)).astype(np.float32)
    y = rng.integers(0, graph.classes, args.batch)
    before = warm = model = None
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the largest so far is forgotten
        before = resident("VmRSS")
        if kind == "ours":  # with one window: code, tables of BLAS, stacks of threads
            ours(graph, x[:1], y[:1])[0]()
            warm = resident("VmRSS")
    except OSError:
        pass  # not Linux
    if kind == "ours":
        step, model = ours(graph, x, y)
    else:
        step = theirs(graph, x, y, kind == "torch_compile")
    answer({"loss": step(), "version": None if kind == "ours" else torch.__version__})
    for line in sys.stdin:
        request, _, number = line.strip().partition(" ")
        if request == "step":
            times = []
            for _ in range(int(number)):
                start = time.perf_counter()
                step()
                times.append(1e3 * (time.perf_counter() - start))
            answer(times)
        elif request == "memory":
            if before is None:
                answer(None)
                continue
            most, saved = resident("VmHWM"), model.saved_bytes
            answer({
                "grown_bytes": most - before,
                "grown_bytes_beside_code": most - warm,
                "saved_activation_bytes": saved,
                "ratio": round((most - before) / saved, 3),
                "ratio_beside_code": round((most - warm) / saved, 3),
            })  # fmt: skip
        elif request == "generator":
            answer(generator_share(step, model))


def generator_share(step: Callable[[], float], model: Any, steps: int = 15) -> float | None:
    """The part of a step in which generator and heads work; None without any."""
    expander = model._expander
    if expander is None:
        return None
    spent = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            found = function(*arguments)
            spent[0] += time.perf_counter() - start
            return found

        return call

    for method in ("forward", "backward", "kernel_grads"):
        setattr(expander, method, timed(getattr(expander, method)))
    shares = []
    for _ in range(steps):
        spent[0] = 0.0
        start = time.perf_counter()
        step()
        shares.append(spent[0] / (time.perf_counter() - start))
    for method in ("forward", "backward", "kernel_grads"):
        delattr(expander, method)
    return round(statistics.median(shares), 4)


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


class Contender:
    """The other end: a process, asked one thing at a time."""

    def __init__(self, kind: str, name: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", kind, "--network", name, "--batch", str(args.batch)]
        command += ["--steps-per-window", str(args.steps_per_window), "--threads", str(args.threads)]
        self._errors = tempfile.TemporaryFile("w+")
        born = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=ENVIRONMENT
        )
        self.first = self._read()
        self.start_s = time.perf_counter() - born

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(LIMIT)
            self._errors.seek(0)
            said = [text for text in self._errors.read().splitlines() if text.strip()]
            raise RuntimeError(said[-1] if said else f"ended with status {self._process.returncode}")
        return json.loads(line)

    def ask(self, request: str) -> Any:
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(LIMIT)


# -- the whole ---------------------------------------------------------------------------------------------------------


def gemm_peak(threads: int) -> float:
    """GFLOP/s of a 1024^3 float32 product, the best of several."""
    a, b = (np.random.default_rng(i).standard_normal((1024, 1024)).astype(np.float32) for i in range(2))
    found = []
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads, user_api="blas"):
        for _ in range(12):
            start = time.perf_counter()
            a @ b
            found.append(2 * 1024**3 / (time.perf_counter() - start) / 1e9)
    return max(found)


def measure(name: str, args: argparse.Namespace, peak: float, not_run: list[str]) -> dict[str, Any]:
    """All figures of one network."""
    graph = NETWORKS[name](args.steps_per_window)
    contenders = {}
    for kind in ("ours", "torch", *(["torch_compile"] if args.compile else [])):
        try:
            contenders[kind] = Contender(kind, name, args)
        except RuntimeError as error:
            if kind == "ours":
                raise
            not_run.append(f"{name}, {kind}: {error}")
            print(f"NOT RUN: {not_run[-1]}", file=sys.stderr)
    own = contenders["ours"]
    for what, contender in contenders.items():
        found = contender.first["loss"]
        assert abs(found - own.first["loss"]) <= 1e-4 * abs(own.first["loss"]), f"{what} computes something else: {found}"
    own.ask("step 3")
    memory = own.ask("memory")
    times: dict[str, list[float]] = {what: [] for what in contenders}
    for i in range(1 + args.rounds):
        for what, contender in contenders.items():
            time.sleep(REST)
            found = contender.ask(f"step {TURN}")
            if i:
                times[what] += found[1:]
    share = own.ask("generator")
    versions = [contender.first["version"] for what, contender in contenders.items() if what != "ours"]
    for contender in contenders.values():
        contender.close()
    ms = SimpleNamespace(torch=None, torch_compile=None)
    for what, found in times.items():
        setattr(ms, what, statistics.median(found))
    macs = sum(graph.macs().values())
    gflops = 6e-9 * macs * args.batch / (1e-3 * ms.ours)
    return {
        "parameters": graph.parameter_count(),
        "macs": macs,
        "ours_ms": round(ms.ours, 2),
        "ours_ms_least": round(min(times["ours"]), 2),
        "torch_ms": ms.torch and round(ms.torch, 2),
        "torch_ms_least": ms.torch and round(min(times["torch"]), 2),
        "torch_compile_ms": ms.torch_compile and round(ms.torch_compile, 2),
        "ratio": ms.torch and round(ms.torch / ms.ours, 3),
        "ratio_compile": ms.torch_compile and round(ms.torch_compile / ms.ours, 3),
        "gflops": round(gflops, 1),
        "gemm_share": round(gflops / peak, 3),
        "memory": memory,
        "generator_share": share,
        "torch": versions[0] if versions else None,
    }


def second_start(args: argparse.Namespace) -> float:
    """Seconds from the birth of a process to the end of its first step; an earlier one has filled the cache."""
    found = []
    for _ in range(2):
        contender = Contender("ours", "generated", args)
        found.append(contender.start_s)
        contender.close()
    return round(found[1], 2)


def loading(args: argparse.Namespace, steps: int = 60, windows: int = 20000) -> dict[str, Any]:
    """A training run on memory-mapped windows with augmentation: seconds of it, and those in which steps waited for windows."""
    from pyhtpw.train import TrainConfig, train

    graph = NETWORKS["demo"](args.steps_per_window)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        stored = np.lib.format.open_memmap(path, "w+", np.float32, (windows, *graph.input_shape))
        for start in range(0, windows, 1000):
            stored[start : start + 1000] = rng.standard_normal(stored[start : start + 1000].shape, np.float32)
        stored.flush()
        del stored
        labels = rng.integers(0, graph.classes, windows)
        split = SimpleNamespace(x=np.load(path, mmap_mode="r"), y=labels)
        few = SimpleNamespace(x=split.x[:64], y=labels[:64])
        config = TrainConfig(steps=steps, batch=args.batch, eval_every=steps, augment={"amplitude": 0.2, "shift": 4})
        marks: list[float] = []
        result = train(graph, split, few, config, Path(folder) / "run", progress=lambda _: marks.append(time.perf_counter()))
    ms = 1e3 * statistics.median(np.diff(marks))
    waited = 1e3 * result.waited / steps
    return {
        "windows": windows,
        "bytes": windows * args.steps_per_window * 4,
        "step_ms": round(ms, 2),
        "waited_ms": round(waited, 3),
        "waited_share": round(waited / ms, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps-per-window", type=int, default=1800)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile as well")
    parser.add_argument("--json", type=Path, help="write here instead of to stdout")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.network[0], args)
        return 0
    from pyhtpw.train.checkpoint import environment

    load = os.getloadavg()[0]
    not_run: list[str] = []
    peak = gemm_peak(args.threads)
    found = {name: measure(name, args, peak, not_run) for name in args.network or NETWORKS}
    report = {
        "ratio": found.get("demo", {}).get("ratio"),
        **found,
        "generator_share": found.get("generated", {}).get("generator_share"),
        "second_start_s": second_start(args),
        "data": loading(args),
        "gemm_gflops": round(peak, 1),
        "batch": args.batch,
        "threads": args.threads,
        "rounds": args.rounds,
        "environment": environment(),
        "not_run": not_run,
        "load": round(load, 2),
        "busy": load > 0.3,
    }
    text = json.dumps(report, indent=1) + "\n"
    if args.json:
        args.json.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
