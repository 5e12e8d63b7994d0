"""Trained networks mapped onto heads: planted solutions are found again, exact ones are exact, and the function
survives."""

from dataclasses import replace

import numpy as np
import pytest
from test_quant import EVERYTHING, agreement, quantised, trained

from pyhtpw.errors import ConfigError
from pyhtpw.nets import build
from pyhtpw.quant import fit, solve
from pyhtpw.quant.fit import fit_network, kernel_error
from pyhtpw.train import Model, check_params
from pyhtpw.train.heads import SEED_UNIT, seeded_matrix

RNG = np.random.default_rng(0)
ONES = np.ones((300, 8))


def network(**options):
    """A stored network, its parameters with gains of different size, and windows."""
    graph, model, x = trained(net="separable", steps=60, **options)
    params = model.state()
    for name, value in params.items():
        if name.endswith(".gamma"):
            value[:] = np.random.default_rng(len(name)).uniform(0.3, 3, value.shape)
    return graph, params, x


def planted(codes, matrix):
    return codes @ matrix.T


# -- solvers -----------------------------------------------------------------------------------------------------------


def test_alternate_finds_planted_codes():
    codes = RNG.integers(-7, 8, (300, 3)).astype(float)
    x = planted(codes, RNG.standard_normal((8, 3)))
    found, matrix = solve.alternate(x, ONES, 4, 7)
    assert np.abs(found).max() == 7
    assert (found == np.rint(found)).all()
    assert solve.loss(x, ONES, found @ matrix.T) < 0.02 * solve.loss(x, ONES, 0)


def test_alternate_beats_rounding_the_singular_values():
    x = RNG.standard_normal((300, 8))
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    codes = np.rint(u[:, :3] / np.abs(u[:, :3]).max() * 7)
    plain = solve.loss(x, ONES, codes @ solve.least_squares_matrix(x, ONES, codes).T)
    found, matrix = solve.alternate(x, ONES, 3, 7)
    best = float((s[3:] ** 2).sum())  # nothing of rank 3 is better
    assert best < solve.loss(x, ONES, found @ matrix.T) < best + 0.7 * (plain - best)


def test_descend_never_gets_worse_and_ends_where_no_step_helps():
    x, matrix = RNG.standard_normal((40, 8)), RNG.standard_normal((8, 3))
    weight = RNG.uniform(0.1, 2, x.shape)
    before = np.zeros((40, 3))
    codes = solve.descend(x, weight, matrix, before, 7, 50)
    best = solve.loss(x, weight, codes @ matrix.T)
    assert best < solve.loss(x, weight, before @ matrix.T)
    for j in range(3):
        for step in (-1, 1):
            moved = codes.copy()
            moved[:, j] = np.clip(moved[:, j] + step, -7, 7)
            per_row = (weight * (x - moved @ matrix.T) ** 2).sum(1) - (weight * (x - codes @ matrix.T) ** 2).sum(1)
            assert (per_row >= -1e-9).all()


def test_least_squares_with_weights_of_elements():
    h, true = RNG.standard_normal((50, 3)), RNG.standard_normal((8, 3))
    weight = RNG.uniform(0, 2, (50, 8))
    weight[:5] = 0
    x = h @ true.T
    x[:5] = 99
    np.testing.assert_allclose(solve.least_squares_matrix(x, weight, h), true, atol=1e-6)


def test_reach_top():
    x, matrix = RNG.standard_normal((20, 4)) * 0.01, RNG.standard_normal((4, 2))
    codes = solve.reach_top(x, np.ones((20, 4)), matrix, np.zeros((20, 2)), 7)
    assert (np.abs(codes) == 7).sum() == 1
    assert (codes != 0).sum() == 1


def test_codes_for_a_given_matrix_find_the_planted_ones():
    matrix = RNG.standard_normal((12, 4))
    codes = RNG.integers(-7, 8, (60, 4)).astype(float)
    codes[0, 0] = 7
    found, gain = solve.codes_for_matrix(0.03 * planted(codes, matrix), np.ones((60, 12)), matrix, 7)
    assert gain == pytest.approx(0.03)
    np.testing.assert_array_equal(found, codes)


def test_k_means():
    table = RNG.standard_normal((6, 8)) * 5
    ids = RNG.integers(0, 6, 300)
    x = table[ids] + 0.01 * RNG.standard_normal((300, 8))
    found, chosen = solve.k_means(x, ONES, 6, 0)
    assert np.abs(found[chosen] - x).max() < 0.06
    same, own = solve.k_means(x[:5], ONES[:5], 9, 0)
    np.testing.assert_array_equal(same[own], x[:5])
    tied, picked = solve.k_means(np.zeros((30, 2)), np.ones((30, 2)), 4, 0)
    assert (tied[picked] == 0).all()


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["dense", "dense:hidden=0", "factorised", "factorised:share=none,hidden=8+4", "factorised:share=a,rank=3"]
)
def test_heads_of_single_codes_are_exact(spec):
    graph, params, x = network()
    other, found, report = fit_network(graph, params, dict.fromkeys(EVERYTHING, spec))
    check_params(other, found)
    assert max(report.errors.values()) < 1e-6
    np.testing.assert_allclose(Model(other, found).infer(x), Model(graph, params).infer(x), rtol=0.01, atol=0.01)


def test_shared_a_is_the_best_common_subspace():
    graph = build("separable", t=60, stem=8, widths=(10, 10, 10, 10), strides=(1, 1, 1, 1))
    params = Model(graph, seed=1).state()
    _, _, full = fit_network(graph, params, {"pw": "factorised:share=a,rank=3"})
    _, _, less = fit_network(graph, params, {"pw": "factorised:share=a,rank=2"})
    names = ["pw2", "pw3", "pw4"]
    assert max(full.errors[n] for n in names) < 1e-6
    rows = np.stack(
        [params[f"{n}.weight"] / np.sqrt((params[f"{n}.weight"] ** 2).mean(1, keepdims=True)) for n in names]
    )
    least = np.linalg.svd(rows.reshape(3, -1), compute_uv=False)[2] / np.linalg.norm(rows)
    found = np.sqrt(np.mean([less.errors[n] ** 2 for n in names]))
    assert found == pytest.approx(least, rel=0.02)


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        ("tiled:hidden=0,tile=12,dz=12,code_bits=8", 0.02),
        ("tiled:tile=12,hidden=24,dz=12,code_bits=8", 0.02),
        ("tiled:tile=12,hidden=24+30,dz=12,code_bits=8", 0.02),
        ("seeded:tile=8,dz=12,code_bits=6", 0.2),
        ("codebook:entries=256,tile=6", 0.02),
        ("codebook:entries=256,tile=6,of=generated,dz=6,hidden=0,code_bits=8", 0.02),
    ],
)
def test_with_room_enough_the_function_survives(spec, least):
    graph, params, x = network()
    other, found, report = fit_network(graph, params, {"pw": spec, "pw1": "stored:bits=4"}, calibration=x)
    assert set(report.errors) == set(graph.kernel_shapes())
    assert max(report.errors["pw2"], report.errors["pw3"]) < least
    assert 0.05 < report.errors["pw1"] < 0.2
    assert report.errors["dw1"] < 0.01
    plain, made = Model(graph, params), Model(other, found)
    for c in range(2):
        assert np.corrcoef(plain.infer(x)[:, c], made.infer(x)[:, c])[0, 1] > 0.97
    integer = quantised(other, made, x)
    assert agreement(integer, made, x) > 0.85  # pw1 in 4 bits
    again = fit_network(graph, params, {"pw": spec, "pw1": "stored:bits=4"}, calibration=x)[1]
    assert all(again[name].tobytes() == found[name].tobytes() for name in found)


def test_hidden_layers_are_no_worse_than_the_linear_head_that_they_start_from():
    graph, params, _ = network()
    errors = {
        hidden: kernel_error(*fit_network(graph, params, {"pw": f"tiled:tile=8,dz=2,hidden={hidden}"})[::2])
        for hidden in ("0", "4", "16", "16+16")
    }
    assert errors["4"] <= errors["0"] * 1.001
    assert errors["16"] < 0.97 * errors["0"]
    assert errors["16+16"] < 0.97 * errors["0"]


def test_seeds_are_tried_and_told():
    graph = build("separable", t=60, stem=8, widths=(12, 16), strides=(1, 1))
    model = Model(graph, seed=1)
    matrix = seeded_matrix(7, 16, 4) / SEED_UNIT
    codes = np.random.default_rng(3).integers(-7, 8, (12, 4))
    codes[0, 0] = 7
    model.params["pw2.weight"][:] = (0.1 * codes @ matrix.T).reshape(16, 12)
    rows = model.params["pw2.weight"]
    rows /= np.sqrt((rows**2).mean(1, keepdims=True))  # spoils the plant a little: rows are of equal size now
    other, _, report = fit_network(graph, model.state(), {"pw": "seeded:tile=16,dz=4,seed=2"})
    assert report.seeds == {"head": 7}
    assert other.node("pw2").head.seed == 7
    only = fit_network(graph, model.state(), {"pw": "seeded:tile=16,dz=4,seed=8"})[2]
    assert report.errors["pw2"] < 0.7 * only.errors["pw2"]


def test_two_seeded_heads_never_become_one():
    graph, params, _ = network()
    heads = {"pw": "seeded:tile=16,dz=4,seed=1", "pw1": "seeded:tile=16,dz=4,seed=2"}
    other, _, report = fit_network(graph, params, heads)
    assert len(other.plan.heads) == 2
    assert len(set(report.seeds.values())) == 2


def test_codes_of_dense_heads_keep_off_a_shared_grid():
    graph, params, _ = network()
    heads = {
        "pw": "tiled:tile=8,dz=4,hidden=12,group=g",
        "fc": "dense:hidden=12,group=g",
        "pw1": "factorised:hidden=12,group=g",
    }
    other, _, report = fit_network(graph, params, heads)
    assert len(other.plan.generators) == 1
    assert max(report.errors["fc"], report.errors["pw1"]) < 1e-6
    alone = fit_network(graph, params, {"pw": heads["pw"]})[2]
    assert report.errors["pw3"] == pytest.approx(alone.errors["pw3"], rel=0.05)


def test_elements_count_by_the_variance_of_their_inputs():
    graph, params, _ = network()
    heads = {"pw": "tiled:hidden=0,tile=12,dz=3"}
    variance = {"pw2": np.where(np.arange(16) < 4, 10.0, 0.01), "pw3": np.ones(24)}
    wanted = graph.with_heads(heads)
    errors = []
    for given in (None, variance):
        other, found, _ = fit_network(graph, params, heads, input_variance=given)
        assert other == wanted
        made = Model(other, found).kernels()["pw2"]
        target = params["pw2.weight"] / np.sqrt((params["pw2.weight"] ** 2).mean(1, keepdims=True) * 16 / 2)
        errors.append(np.linalg.norm((made - target)[:, :4]))
    assert errors[1] < 0.7 * errors[0]
    with pytest.raises(ConfigError, match="input variance of 'pw3' has shape"):
        fit_network(graph, params, heads, input_variance={"pw3": np.ones(3)})


def test_calibration_corrects_the_statistics():
    """Over several seeds: a single fit may end in another valley for a last digit's sake."""
    graph, params, x = network()
    plain = Model(graph, params).activations(x)["pw3"].reshape(-1, 24)
    off = np.zeros(2)
    for seed in range(4):
        for at, calibration in enumerate((x, None)):
            other, found, _ = fit_network(graph, params, {"pw": "tiled:tile=8,dz=6"}, calibration=calibration, seed=seed)
            made = Model(other, found).activations(x)["pw3"].reshape(-1, 24)
            off[at] += np.linalg.norm(made.mean(0) - plain.mean(0))
    assert off[0] < 0.3 * off[1]


def test_generated_networks_can_be_fitted_anew(monkeypatch):
    monkeypatch.setattr(fit, "ADAM_STEPS", 5)
    graph, model, x = trained(heads={"pw": "tiled:tile=8,hidden=0"})
    _, found, report = fit_network(graph, model.state(), {"pw": "dense", "depthwise": "tiled"})
    assert max(report.errors["pw2"], report.errors["pw3"]) < 1e-6
    assert all(np.isfinite(value).all() for value in found.values())
    stored, same, _ = fit_network(graph, model.state(), {"pw": "stored"})
    np.testing.assert_allclose(Model(stored, same).infer(x), model.infer(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="lack"):
        fit_network(replace(graph, name="x"), {}, {"pw": "dense"})
