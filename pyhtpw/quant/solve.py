"""The small optimisation problems behind `pyhtpw.quant.fit`: codes on an integer grid, matrices by least squares,
k-means.

Letters: R rows (tiles), t weights of a row, d numbers of a code. ``x`` (R, t) is what to reproduce, ``weight`` (R, t)
>= 0 how much each element matters (0 for what is cut off a last tile). Everything is float64 and deterministic.
"""

from __future__ import annotations

import numpy as np

RIDGE = 1e-9
"""Part of the mean diagonal that is added to every system, so that dimensions that nothing uses do no harm."""


def loss(x: np.ndarray, weight: np.ndarray, found: np.ndarray) -> float:
    """Weighted squared error."""
    return float(np.sum(weight * (x - found) ** 2))


def least_squares_matrix(x: np.ndarray, weight: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The matrix (t, d) for which h (R, d) times its transpose is nearest to x."""
    d = h.shape[1]
    if np.ptp(weight, axis=1).max() == 0:  # rows count as a whole: one system for all columns
        gram = (h * weight[:, :1]).T @ h
        right = (h * weight[:, :1]).T @ x
        return np.linalg.solve(gram + _ridge(gram[None])[0], right).T
    gram = np.einsum("rt,ri,rj->tij", weight, h, h, optimize=True)
    right = np.einsum("rt,ri->ti", weight * x, h, optimize=True)
    return np.linalg.solve(gram + _ridge(gram), right[:, :, None]).reshape(-1, d)


def _ridge(gram: np.ndarray) -> np.ndarray:
    diagonal = np.trace(gram, axis1=1, axis2=2) / gram.shape[1]
    return (RIDGE * diagonal + 1e-30)[:, None, None] * np.eye(gram.shape[1])


def descend(
    x: np.ndarray, weight: np.ndarray, matrix: np.ndarray, codes: np.ndarray, top: int, sweeps: int
) -> np.ndarray:
    """Codes (R, d), whole numbers in [-top, top], improved one dimension at a time: never worse than those given."""
    codes = codes.copy()
    rest = x - codes @ matrix.T
    for _ in range(sweeps):
        moved = False
        for j in range(codes.shape[1]):
            column = matrix[:, j]
            curvature = weight @ column**2
            slope = (weight * rest) @ column
            # the best whole number of a parabola is the one nearest to its vertex
            vertex = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
            new = np.clip(np.rint(codes[:, j] + vertex), -top, top)
            change = new - codes[:, j]
            if change.any():
                rest -= change[:, None] * column
                codes[:, j] = new
                moved = True
        if not moved:
            break
    return codes


def reach_top(x: np.ndarray, weight: np.ndarray, matrix: np.ndarray, codes: np.ndarray, top: int) -> np.ndarray:
    """Codes with at least one number of magnitude `top`, which fixes the step of the whole grid; the one that it
    costs least."""
    if np.abs(codes).max(initial=0) >= top:
        return codes
    rest = x - codes @ matrix.T
    best, at = np.inf, (0, 0, top)
    curvature, slope = weight @ matrix**2, (weight * rest) @ matrix
    for sign in (top, -top):
        change = sign - codes
        cost = change**2 * curvature - 2 * change * slope
        i = np.unravel_index(np.argmin(cost), cost.shape)
        if cost[i] < best:
            best, at = cost[i], (*i, sign)
    codes = codes.copy()
    codes[at[0], at[1]] = at[2]
    return codes


def alternate(x: np.ndarray, weight: np.ndarray, dz: int, top: int, rounds: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Codes (R, dz) in [-top, top] and the matrix (t, dz) of a linear head, by alternating least squares.

    Starts from the singular value decomposition, all dimensions brought to equal spread, since all have the same
    grid. Each half-step lowers the loss, so that it ends where neither helps.
    """
    rows = len(x)
    made = x * (weight > 0)
    for again in (
        True,
        True,
        True,
        False,
    ):  # real codes first: plain singular values, then a few rounds with the weights
        u, _, _ = np.linalg.svd(made, full_matrices=False)
        start = np.zeros((rows, dz))
        start[:, : min(dz, u.shape[1])] = u[:, :dz]
        if again:
            matrix = least_squares_matrix(x, weight, start)
            made = least_squares_matrix(x.T, weight.T, matrix) @ matrix.T
    spread = np.sqrt(np.mean(start**2, axis=0))
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    start /= np.where(spread > 0, spread, 1)
    # standard deviations that the grid spans: few bits want a fine step and clip, many want all of it
    for reach in (2.0, 2.7, 3.6, np.abs(start).max(initial=0) or 1.0):
        codes = np.clip(np.rint(start * top / reach), -top, top)
        before = np.inf
        for _ in range(rounds):
            matrix = least_squares_matrix(x, weight, codes)
            codes = descend(x, weight, matrix, codes, top, 2)
            now = loss(x, weight, codes @ matrix.T)
            if now > before * (1 - 1e-4):
                break
            before = now
        codes = reach_top(x, weight, matrix, codes, top)
        matrix = least_squares_matrix(x, weight, codes)
        now = loss(x, weight, codes @ matrix.T)
        if best is None or now < best[0]:
            best = now, codes, matrix
    return best[1], best[2]


def codes_for_matrix(
    x: np.ndarray, weight: np.ndarray, matrix: np.ndarray, top: int, rounds: int = 8
) -> tuple[np.ndarray, float]:
    """Codes (R, d) in [-top, top] and the positive gain for which gain * codes @ matrix.T is nearest to x; the matrix
    stays."""
    real = np.linalg.lstsq(matrix, (x * (weight > 0)).T, rcond=None)[0].T
    largest = np.abs(real).max(initial=0)
    if largest == 0:
        codes = np.zeros_like(real)
        codes[0, 0] = top
        return codes, 1e-12
    best: tuple[float, np.ndarray, float] | None = None
    for reach in (0.35, 0.5, 0.7, 1.0):
        gain = largest * reach / top
        codes = np.clip(np.rint(real / gain), -top, top)
        for i in range(rounds):
            codes = descend(x, weight, matrix * gain, codes, top, 2)
            if i == rounds - 1:
                codes = reach_top(x, weight, matrix * gain, codes, top)
            made = codes @ matrix.T
            gain = max(float(np.sum(weight * made * x) / np.sum(weight * made**2)), 1e-12)
        now = loss(x, weight, gain * made)
        if best is None or now < best[0]:
            best = now, codes, gain
    return best[1], best[2]


def k_means(
    x: np.ndarray, weight: np.ndarray, entries: int, seed: int, rounds: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Table (entries, t) and ids (R,) of a codebook: weighted k-means from a k-means++ start.

    With no more rows than entries every row gets its own, and what is left of the table is 0.
    """
    rows, t = x.shape
    table = np.zeros((entries, t))
    if rows <= entries:
        table[:rows] = x
        return table, np.arange(rows)
    rng = np.random.default_rng([seed, entries])
    centre = x[rng.integers(rows)]
    nearest = np.full(rows, np.inf)
    for k in range(entries):
        table[k] = centre
        nearest = np.minimum(nearest, np.sum(weight * (x - centre) ** 2, axis=1))
        total = nearest.sum()
        centre = x[rng.choice(rows, p=nearest / total)] if total > 0 else x[rng.integers(rows)]
    ids = np.full(rows, -1)
    for _ in range(rounds):
        new, cost = assign(x, weight, table)
        if (new == ids).all():
            break
        ids = new
        table, empty = means(x, weight, ids, table)
        for k in empty:  # an entry that nobody picks takes over the row that is served worst
            worst = int(np.argmax(cost))
            table[k], cost[worst] = x[worst], -1
    return table, assign(x, weight, table)[0]


def assign(x: np.ndarray, weight: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest entry of every row, and the weighted squared distance to it."""
    cost = (weight * x**2).sum(1)[:, None] - 2 * (weight * x) @ table.T + weight @ (table**2).T
    ids = np.argmin(cost, axis=1)
    return ids, cost[np.arange(len(x)), ids]


def means(x: np.ndarray, weight: np.ndarray, ids: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weighted mean of the rows that pick each entry (the old value where nothing weighs), and the entries that
    none picks."""
    top, bottom = np.zeros_like(table), np.zeros_like(table)
    np.add.at(top, ids, weight * x)
    np.add.at(bottom, ids, weight)
    empty = np.setdiff1d(np.arange(len(table)), ids)
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), table), empty
