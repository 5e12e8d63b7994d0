"""Milliseconds per training step, ours against PyTorch eager, on the same networks with the same weights and windows.

    python bench/trainer.py [--network demo ...] [--rounds 9] [--batch 64] [--steps-per-window 1800] [--threads 2]
                            [--compile] [--json FILE]

A step is forward, cross-entropy, backward and AdamW. The two are timed in turns in one process, one step each, so that
whatever else the machine does falls on both alike; the median counts. `demo` is the separable network of the demo
(stored kernels), `generated` the same with generated ones (PyTorch runs their generator too), `regular_cnn` the plain
convolutions of the published teacher.

`gflops` counts 3 x 2 x MACs x batch a step (forward, and the gradients of inputs and kernels), `gemm_share` sets it
against the product of two 1024 x 1024 float32 matrices with the same number of threads, measured in the same run.
`busy` is true if others were at work when it began: such numbers are not for publication. Without torch, its fields
are null and a line on stderr says NOT RUN.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

try:
    # Before ours, which asks OpenMP for threads that sleep while they wait: PyTorch is to run as it comes.
    import torch
except ImportError:
    torch = None

import numba  # noqa: E402
import numpy as np  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from pyhtpw.nets import Graph, Node, build  # noqa: E402
from pyhtpw.train import Model  # noqa: E402
from pyhtpw.train.checkpoint import environment  # noqa: E402
from pyhtpw.train.kernels import single_blas  # noqa: E402
from pyhtpw.train.losses import cross_entropy  # noqa: E402
from pyhtpw.train.optim import AdamW  # noqa: E402

if torch is not None:
    from torch_network import logits, tensors

WARM_UP = 2
"""Steps before the clock starts: compilation, allocation."""


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


def ours(graph: Graph, x: np.ndarray, y: np.ndarray) -> Callable[[], float]:
    """One step of the trainer; its loss."""
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

    return step


def theirs(graph: Graph, x: np.ndarray, y: np.ndarray, compiled: bool) -> Callable[[], float]:
    """One step of PyTorch, from the same weights; its loss."""
    params = tensors(Model(graph, seed=0).params)
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


def gemm_peak(threads: int) -> float:
    """GFLOP/s of a 1024^3 float32 product, the best of several."""
    a, b = (np.random.default_rng(i).standard_normal((1024, 1024)).astype(np.float32) for i in range(2))
    found = []
    with threadpool_limits(threads, user_api="blas"):
        for _ in range(12):
            start = time.perf_counter()
            a @ b
            found.append(2 * 1024**3 / (time.perf_counter() - start) / 1e9)
    return max(found)


def measure(name: str, args: argparse.Namespace, peak: float) -> dict[str, Any]:
    """All figures of one network."""
    graph = NETWORKS[name](args.steps_per_window)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((args.batch, *graph.input_shape)).astype(np.float32)
    y = rng.integers(0, graph.classes, args.batch)
    steps = {"ours": ours(graph, x, y)}
    if torch is not None:
        steps["torch"] = theirs(graph, x, y, False)
        if args.compile:
            steps["torch_compile"] = theirs(graph, x, y, True)
    first = {what: step() for what, step in steps.items()}
    for what, loss in first.items():
        assert abs(loss - first["ours"]) <= 1e-4 * abs(first["ours"]), f"{what} computes something else: {first}"
    times: dict[str, list[float]] = {what: [] for what in steps}
    for i in range(WARM_UP + args.rounds):
        for what, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= WARM_UP:
                times[what].append(1e3 * (time.perf_counter() - start))
    ms = {what: statistics.median(found) for what, found in times.items()}
    macs = sum(graph.macs().values())
    gflops = 6e-9 * macs * args.batch / (1e-3 * ms["ours"])
    return {
        "parameters": graph.parameter_count(),
        "macs": macs,
        "ours_ms": round(ms["ours"], 2),
        "torch_ms": round(ms["torch"], 2) if "torch" in ms else None,
        "torch_compile_ms": round(ms["torch_compile"], 2) if "torch_compile" in ms else None,
        "ratio": round(ms["torch"] / ms["ours"], 3) if "torch" in ms else None,
        "gflops": round(gflops, 1),
        "gemm_share": round(gflops / peak, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps-per-window", type=int, default=1800)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--json", type=Path, help="write here instead of to stdout")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    numba.set_num_threads(min(args.threads, numba.config.NUMBA_NUM_THREADS))
    if torch is None:
        print("NOT RUN: torch is missing; pip install torch --index-url https://download.pytorch.org/whl/cpu",
              file=sys.stderr)  # fmt: skip
    else:
        torch.set_num_threads(args.threads)
    peak = gemm_peak(args.threads)
    found = {name: measure(name, args, peak) for name in args.network or NETWORKS}
    report = {
        "ratio": found.get("demo", {}).get("ratio"),
        **found,
        "gemm_gflops": round(peak, 1),
        "batch": args.batch,
        "threads": args.threads,
        "rounds": args.rounds,
        "environment": {**environment(), "torch": None if torch is None else torch.__version__},
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
