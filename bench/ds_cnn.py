"""The peer of the keyword comparisons: a two-dimensional DS-CNN in float, trained and run by PyTorch, scored by our protocol.

Network: Zhang Y et al., "Hello Edge: Keyword Spotting on Microcontrollers", arXiv:1711.07128: a 10x4 convolution, four blocks of
depthwise 3x3 and 1x1 convolutions, each with batch normalisation and ReLU, mean over time and coefficients, a linear layer.
128 channels; strides (2,2) in the convolution and in the first block. On 101 frames of 40 coefficients and 6 classes it has
78,342 parameters. It sees the very batches that a network of this package sees with the same seed (windows, order, augmentation),
with the same optimiser (AdamW, warm-up, half cosine, clipping) and the same choice of checkpoint (best macro-F1 of validation).

    python bench/ds_cnn.py results/plan/keywords-official6.toml ds-cnn --data-dir DATA      # every seed that is not done

The plan's model says ``net = "external"`` and gives ``steps`` and, in ``train``, what differs from `DEFAULTS`. A seed that is
stopped goes on from its last checkpoint. Needs PyTorch, which is no dependency of the package.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pyhtpw.data import Dataset
from pyhtpw.errors import ConfigError, HtpwError
from pyhtpw.evaluate import metrics
from pyhtpw.evaluate.choices import LOG
from pyhtpw.experiment.external import score_external
from pyhtpw.experiment.plan import Model, Plan, load_plan
from pyhtpw.experiment.runner import Folders, done, load_dataset
from pyhtpw.image.writer import save
from pyhtpw.pipeline import prepare_folder
from pyhtpw.train.batches import Sampler, load_batch
from pyhtpw.train.optim import BETAS, learning_rate

DEFAULTS: dict[str, Any] = {
    "batch": 64, "lr": 3e-3, "weight_decay": 0.05, "warmup": 100, "clip": 1.0, "balance": "none", "eval_every": 500, "augment": {},
}  # fmt: skip


class DsCnn(nn.Sequential):
    """(N, 1, T, C) to (N, classes)."""

    def __init__(self, classes: int, channels: int = 128, strides: tuple[int, ...] = (2, 1, 1, 1)) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, channels, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        for stride in strides:
            layers += [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
                       nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def images(x: np.ndarray) -> torch.Tensor:
    """Windows (N, T, C) as one channel; channels last is PyTorch's fast layout here."""
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))[:, None].to(memory_format=torch.channels_last)


@torch.no_grad()
def probabilities(net: DsCnn, x: np.ndarray, batch: int = 128) -> np.ndarray:
    """(N, classes) float64."""
    net.eval()
    parts = [net(images(x[i : i + batch])).double().softmax(1).numpy() for i in range(0, len(x), batch)]
    return np.concatenate(parts)


def train(data: Dataset, settings: dict[str, Any], steps: int, seed: int, folder: Path, config: str) -> tuple[bytes, DsCnn, dict[str, Any]]:
    """The checkpoint that validation chooses, the network holding it, and the facts of its training."""
    torch.manual_seed(seed)
    net = DsCnn(len(data.classes)).to(memory_format=torch.channels_last)
    kernels = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": kernels, "weight_decay": settings["weight_decay"]},
                                   {"params": others, "weight_decay": 0.0}], lr=settings["lr"], betas=BETAS)
    sampler = Sampler(data.train.y, len(data.classes), settings["balance"])
    state: dict[str, Any] = {"config": config, "step": 0, "seconds": 0.0, "best": None, "curve": []}
    last = folder / "last.pt"
    if last.is_file():
        state = torch.load(last, weights_only=False)
        if state.get("config") != config:
            raise ConfigError(f"{last}: is the checkpoint of another configuration: remove its folder, or give another --work")
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"])
    began = time.monotonic()
    for step in range(state["step"], steps):
        net.train()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, settings["lr"], settings["warmup"])
        x, y, _ = load_batch(data.train, sampler, seed, step, settings["batch"], settings["augment"])
        loss = nn.functional.cross_entropy(net(images(x)), torch.from_numpy(y))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), settings["clip"])
        optimiser.step()
        if (step + 1) % settings["eval_every"] == 0 or step + 1 == steps:
            p = probabilities(net, data.val.x)
            reached = metrics.macro_f1(data.val.y, p.argmax(1), classes=len(data.classes), mask=data.val.score_mask)
            state["curve"].append({"step": step + 1, "loss": round(loss.item(), 5), "val_macro_f1": reached})
            print(f"seed {seed}: step {step + 1:,} of {steps:,}, loss {loss.item():.3f}, validation macro-F1 {reached:.4f}", flush=True)
            if state["best"] is None or reached > state["best"][0]:
                buffer = io.BytesIO()
                torch.save(net.state_dict(), buffer)
                state["best"] = (reached, step + 1, buffer.getvalue())
            out = io.BytesIO()
            now = time.monotonic()
            state["seconds"] += now - began
            began = now
            torch.save({**state, "step": step + 1, "net": net.state_dict(), "optimiser": optimiser.state_dict(),
                        "rng": torch.get_rng_state()}, out)
            save(out.getvalue(), last)
    _, best_step, checkpoint = state["best"]
    net.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
    facts = {"steps": steps, "best_step": best_step, "seconds": round(state["seconds"], 1), "config": settings, "curve": state["curve"],
             "torch": torch.__version__, "threads": torch.get_num_threads()}
    return checkpoint, net, facts


def run(plan: Plan, model: Model, seed: int, data: Dataset, folders: Folders, command: str) -> dict[str, Any]:
    """Train or resume one seed, and score it."""
    unknown = sorted(set(model.train) - set(DEFAULTS))
    if unknown:
        raise ConfigError(f"{plan.name}: model {model.name}: train has the unknown entry {unknown[0]!r}: it takes {', '.join(DEFAULTS)}")
    steps = model.steps or plan.steps
    if not steps:
        raise ConfigError(f"{plan.name}: model {model.name}: nothing says how many steps: set steps")
    folder = prepare_folder(folders.run(plan.name, model.name, seed))
    checkpoint, net, facts = train(data, {**DEFAULTS, **model.train}, steps, seed, folder, plan.config_sha256(model, seed))
    save(checkpoint, folder / "best.pt")
    return score_external(plan, model.name, seed, data, folders, checkpoint=checkpoint, p_val=probabilities(net, data.val.x),
                          p_test=probabilities(net, data.test.x), parameters=sum(p.numel() for p in net.parameters()),
                          training=facts, command=command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--work", type=Path, default=Path("out/results"))
    parser.add_argument("--seed", type=int, action="append", help="repeatable; default: all of the plan")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = load_plan(args.plan)
    model = plan.model(args.model)
    strange = [seed for seed in args.seed or [] if seed not in plan.seeds_of(model)]
    if strange:
        raise ConfigError(f"{plan.name}: model {model.name}: seed {strange[0]} is none of the plan's: {list(plan.seeds_of(model))}")
    folders = Folders(args.work, args.out, args.out / LOG)
    data = load_dataset(plan, args.data_dir, args.cache_dir)
    command = shlex.join(["python", "bench/ds_cnn.py", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:])])
    for seed in args.seed or plan.seeds_of(model):
        if done(plan, model, seed, folders):
            print(f"{model.name}, seed {seed}: done already")
            continue
        result = run(plan, model, seed, data, folders, command)
        print(json.dumps({"model": model.name, "seed": seed, "parameters": result["network"]["parameters"],
                          "validation": result["validation"]["accuracy"], "test": result["test"]["accuracy"]}))


if __name__ == "__main__":
    try:
        main()
    except HtpwError as error:
        sys.exit(f"ds_cnn: {error}")
