"""What an image is, drawn: its layers with what each takes, and the kernels that its generator makes, with their tiles and codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyhtpw.image.integer import Codebook, Dense, Factorised
from pyhtpw.image.reader import ParsedOp, code_values
from pyhtpw.report import plots
from pyhtpw.report.architecture import LayerCost, layers
from pyhtpw.report.plots import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION, Plot
from pyhtpw.report.sources import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KERNELS = 12  # heat maps of one image; more would bury the page
PLAIN = {"8": "|", "4": "x", "2": "+"}  # marks of plain storage
LINES = 96  # tile borders drawn at most along a side


def architecture(source: Source) -> Plot | None:
    """A bar per layer: bytes beside plain storage, instructions where a board was measured, and SRAM."""
    found = layers(source)
    if not found:
        return None
    counted = found[0].instructions is not None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 1.5 + 0.36 * len(found)))
    axes = figure.subplots(1, 3 if counted else 2, sharey=True, width_ratios=[2.2, 1, 1] if counted else [2.2, 1])
    _bytes(axes[0], found)
    if counted:
        axes[1].barh(range(len(found)), [each.instructions or 0 for each in found], 0.6, color=GREEN)
        axes[1].set_title("Instructions of one inference")
    _sram(axes[-1], found)
    for each in axes:
        each.grid(visible=False, axis="y")
        each.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        each.tick_params(axis="y", length=0)
        each.set_ylim(len(found) - 0.4, -0.6)
        each.locator_params(axis="x", nbins=5 if each is axes[0] else 3)
    axes[0].set_yticks(range(len(found)), [f"{each.name}  {'x'.join(map(str, each.shape[-2:]))}" for each in found])
    plots._mark(axes[0], source.report)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=8, columnspacing=1.2, handlelength=1.2)
    heaviest = max(found, key=lambda each: each.bytes)
    made = [each for each in found if each.codes]
    said = f"{len(found)} layers. Most bytes: {heaviest.name}, {heaviest.bytes:,}. "
    if made:
        said += (
            f"Generated kernels of {len(made)} layers take {sum(e.codes + e.share for e in made):,} bytes for "
            f"{sum(e.weights for e in made):,} weights. "
        )
    most = max(found, key=lambda each: each.activation)
    return Plot(
        figure, f"Architecture: {said}Largest activations: {most.name}, {most.activation:,} bytes. All figures are in the table below."
    )


def _bytes(axes: Axes, found: list[LayerCost]) -> None:
    left = [0] * len(found)
    for key, colour, label in (
        ("stored", BLUE, "kernel, stored"),
        ("codes", VERMILLION, "kernel, codes"),
        ("share", ORANGE, "kernel, share of generator and head"),
        ("rest", PURPLE, "record, multipliers, shifts, biases"),
    ):
        sizes = [getattr(each, key) for each in found]
        if any(sizes):
            axes.barh(range(len(found)), sizes, 0.6, left=left, color=colour, label=label, edgecolor="white", linewidth=0.4)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for bits, mark in PLAIN.items():
        points = [(each.plain[bits] + each.rest, i) for i, each in enumerate(found) if each.plain]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                mark,
                color=INK,
                markersize=8 if mark == "|" else 5.5,
                markeredgewidth=1.4,
                linestyle="none",
                label=f"if stored at {bits} bits",
            )
    axes.set_title("Bytes of the image")
    axes.set_xlim(left=0)


def _sram(axes: Axes, found: list[LayerCost]) -> None:
    activation, cached = [each.activation for each in found], [each.cached for each in found]
    axes.barh(range(len(found)), activation, 0.6, color=SKY, label="activations")
    axes.barh(
        range(len(found)),
        cached,
        0.6,
        left=activation,
        color="white",
        edgecolor=BLUE,
        hatch="////",
        linewidth=0.8,
        label="kernel, made once",
    )
    axes.set_title("SRAM, bytes")
    axes.legend(loc="lower right", fontsize=7.5)


def tile_of(source: Source, op: ParsedOp) -> int | None:
    """Weights of one tile of a generated kernel; None where one code makes the whole of it."""
    head = source.image.parsed.heads[op.head]  # type: ignore[union-attr]
    return None if isinstance(head, (Dense, Factorised)) or not op.tiles else -(-op.weights // op.tiles)


def kernels(source: Source) -> dict[str, Plot]:
    """A heat map of every generated kernel (at most `KERNELS`), beside its codes: name -> plot."""
    if source.image is None:
        return {}
    made, names = source.image.kernels(), source.layer_names()
    found = {}
    for op in source.image.parsed.ops:
        if op.generated and len(found) < KERNELS:
            found[f"kernel-{op.index}"] = _kernel(source, op, names[op.index], made[op.index].reshape(op.weight_shape))
    return found


def _kernel(source: Source, op: ParsedOp, name: str, weights: np.ndarray) -> Plot:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    colours = LinearSegmentedColormap.from_list(
        "signed", [BLUE, "white", VERMILLION]
    )  # told apart by the colour-blind, and by lightness from 0
    rows = weights.reshape(len(weights), -1) if weights.ndim > 1 else weights.reshape(1, -1)
    head = source.image.parsed.heads[op.head]  # type: ignore[union-attr]
    codes, ids = code_values(source.image.parsed, op), isinstance(head, Codebook)  # type: ignore[union-attr]
    figure = Figure(figsize=(8.2, 3.4))
    left, right, bars = figure.subplots(1, 3, width_ratios=[2, 1.15, 1])
    shown = left.imshow(rows, cmap=colours, vmin=-127, vmax=127, aspect="auto", interpolation="none")
    left.set(title=f"{name}: {' x '.join(map(str, weights.shape))}", xlabel="input channel", ylabel="output channel")
    figure.colorbar(shown, ax=left, fraction=0.05, pad=0.02).set_label("int8 weight")
    tile = tile_of(source, op)
    if tile:
        _borders(left, rows.shape, tile)
    grid = codes.reshape(-1, 1) if codes.ndim == 1 else codes
    # ids have no sign and no size: a sequence of lightness; codes are signed
    if ids:
        drawn = right.imshow(grid, cmap="cividis", aspect="auto", interpolation="none")
    else:
        limit = max(1, 1 << (op.code_bits - 1))
        drawn = right.imshow(grid, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
    figure.colorbar(drawn, ax=right, fraction=0.08, pad=0.03)
    what = "ids of the codebook" if ids else f"codes, {op.code_bits} bits"
    right.set(title=what, ylabel="tile" if tile else "layer", xlabel="" if ids else "number of the code")
    if ids:
        right.set_xticks([])
    bars.hist(weights.ravel(), bins=range(-128, 130, 8), color=MUTED)
    bars.set(title="weights", xlabel="int8", yticks=[])
    for axes in (left, right):
        axes.grid(visible=False)
    tiles = f" of {tile} weights" if tile else ""
    alt = (
        f"Kernel of {name}, {' x '.join(map(str, weights.shape))}, made by a {op.source} head from {op.tiles or 1} tiles{tiles}: "
        f"weights from {int(weights.min())} to {int(weights.max())}, mean {weights.mean():.1f}, {np.mean(weights == 0):.1%} zero. "
        f"{op.code_values} {'ids' if ids else 'code values'} of {op.code_width} bits, "
        f"{int(codes.min())} to {int(codes.max())}."
    )
    return Plot(figure, alt)


def _borders(axes: Axes, shape: tuple[int, ...], tile: int) -> None:
    """Borders of tiles, which run along rows and on into the next; none where they would be too many to see."""
    height, width = shape
    style: dict[str, Any] = {"color": INK, "linewidth": 0.35, "alpha": 0.55}
    if width % tile == 0 and width // tile <= LINES and height <= LINES:
        for x in range(tile, width, tile):
            axes.axvline(x - 0.5, **style)
        for y in range(1, height):
            axes.axhline(y - 0.5, **style)
    elif tile % width == 0 and height // (tile // width) <= LINES:
        for y in range(tile // width, height, tile // width):
            axes.axhline(y - 0.5, **style)
    elif height * width // tile <= LINES:
        for start in range(tile, height * width, tile):
            y, x = divmod(start, width)
            axes.plot([x - 0.5, x - 0.5], [y - 0.5, y + 0.5], **style)
