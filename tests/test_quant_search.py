"""The search for heads within a budget, with a score that is cheap and known."""

from itertools import product

import numpy as np
import pytest
from spec_size import image_bytes, sections
from test_quant import quantised, trained

from pyhtpw.errors import ConfigError
from pyhtpw.quant import fit
from pyhtpw.quant.generator import kernel_of
from pyhtpw.quant.search import auto_heads, kernel_bytes
from pyhtpw.train import Model

CANDIDATES = {
    "pw": (
        "stored",
        "stored:bits=4",
        "stored:bits=2",
        "tiled:hidden=0,tile=8,dz=4",
        "tiled:hidden=0,tile=8,dz=6,code_bits=6",
    ),
    "pw1": ("stored", "stored:bits=4", "tiled:hidden=0,tile=8,dz=4"),
    "depthwise": ("stored", "stored:bits=4", "stored:bits=2"),
    "fc": ("stored:bits=4", "stored"),
}


@pytest.fixture(scope="module")
def case():
    graph, model, x = trained(net="separable", steps=60)
    return graph, model.state(), x


def score_of(graph, params, sensitivity=None):
    """1 minus the errors of all kernels in units of their rows, weighted per layer: additive, and known."""
    kernels = Model(graph, params).kernels()
    count = {"calls": 0}

    def score(integer):
        count["calls"] += 1
        total = 0.0
        for op in integer.ops:
            if op.name not in kernels:
                continue
            depthwise = op.kind == "depthwise"
            wanted, found = (
                kernels[op.name].astype(float),
                kernel_of(integer, op).reshape(kernels[op.name].shape).astype(float),
            )
            wanted, found = (
                (k.T if depthwise else k).reshape(k.shape[1 if depthwise else 0], -1) for k in (wanted, found)
            )
            fit_ = (wanted * found).sum(1) ** 2 / ((wanted**2).sum(1) * np.maximum((found**2).sum(1), 1))
            total += (sensitivity or {}).get(op.name, 1.0) * float(np.mean(1 - fit_))
        return 1 - total / 10

    return score, count


def search(case, budget, evaluations=24, **options):
    graph, params, x = case
    score, count = score_of(graph, params, options.pop("sensitivity", None))
    options.setdefault("candidates", CANDIDATES)
    choice = auto_heads(
        graph, params, budget, score, size=image_bytes, evaluations=evaluations,
        quantise=lambda g, p: quantised(g, Model(g, p), x), **options,
    )  # fmt: skip
    assert count["calls"] <= evaluations
    return choice, score


def test_estimated_bytes_are_near_the_real_ones(case):
    graph, _, x = case
    for heads in (
        {}, {"pw": "stored:bits=2"}, {"pw": "tiled", "depthwise": "tiled:hidden=0"}, {"pw": "seeded", "pw1": "seeded"},
        {"pw": "codebook:entries=32,tile=4"}, {"pw": "codebook:of=generated,entries=32,tile=4"}, {"pw": "factorised:share=a"},
        {"pw": "factorised", "pw1": "dense:hidden=0"},
    ):  # fmt: skip
        other = graph.with_heads(heads)
        parts = sections(quantised(other, Model(other, seed=1), x))
        real = sum(parts.get(tag, 0) for tag in ("WGHT", "GENR", "HEAD", "CODE"))
        assert abs(kernel_bytes(other) - real) <= 40, heads


def test_no_budget_to_speak_of_stores_everything(case):
    choice, _ = search(case, 10**6)
    assert choice.heads["pw"] == choice.heads["pw1"] == choice.heads["depthwise"] == "stored"
    assert choice.score == max(t.score for t in choice.tried)


@pytest.fixture(scope="module")
def every_mix(case):
    """Bytes and score of all 90 mixes."""
    graph, params, x = case
    score, _ = score_of(graph, params)
    found = []
    for specs in product(*CANDIDATES.values()):
        other, made, _ = fit.fit_network(graph, params, dict(zip(CANDIDATES, specs, strict=True)))
        integer = quantised(other, Model(other, made), x)
        found.append((image_bytes(integer), score(integer)))
    return found


@pytest.mark.parametrize("budget", [1250, 1500, 1900])
def test_the_choice_fits_and_is_the_best_of_all_mixes(case, every_mix, budget):
    choice, score = search(case, budget, evaluations=60)
    assert choice.bytes == image_bytes(choice.model) <= budget
    assert choice.score == score(choice.model)
    assert choice.score >= max(found for size, found in every_mix if size <= budget) - 0.002
    assert max(t.score for t in choice.tried if t.score is not None and t.bytes <= budget) == choice.score


def test_sensitive_layers_keep_their_bits(case):
    budget = 1500
    choice, _ = search(case, budget, sensitivity={"pw2": 0.01, "pw3": 0.01, "pw1": 0.01})
    assert choice.heads["depthwise"] == "stored"
    other, _ = search(case, budget, sensitivity={f"dw{i}": 0.001 for i in (1, 2, 3)})
    assert other.heads["depthwise"] != "stored"


def test_same_arguments_same_choice_and_progress(case):
    reports = []
    first, _ = search(case, 1500, evaluations=12, progress=reports.append)
    again, _ = search(case, 1500, evaluations=12)
    assert first.heads == again.heads
    assert [t.score for t in first.tried] == [t.score for t in again.tried]
    assert [r["done"] for r in reports] == sorted(r["done"] for r in reports)
    assert len(reports) == len(first.tried)
    assert {r["of"] for r in reports} == {12}
    assert reports[0]["stage"] == "base"
    assert reports[-1]["done"] <= 12


def test_few_evaluations_still_give_something_that_fits(case):
    choice, _ = search(case, 1250, evaluations=2)
    assert choice.bytes <= 1250


def test_an_impossible_budget_names_the_smallest_size(case):
    with pytest.raises(ConfigError, match=r"budget of 500 bytes .* smallest image is (\d+) bytes") as caught:
        search(case, 500)
    smallest = int(str(caught.value).split("image is ")[1].split()[0])
    choice, _ = search(case, smallest)
    assert choice.bytes == smallest
    with pytest.raises(ConfigError, match="smallest image"):
        search(case, smallest - 1)


def test_seeds_and_layers_in_the_choice(case):
    graph, _, _ = case
    candidates = {"pw3": ["seeded:tile=8,dz=6"], "pw2": ["stored:bits=4"]}
    choice, _ = search(case, 10**6, candidates=candidates)
    assert choice.heads["pw2"] == "stored:bits=4"
    assert choice.graph.node("pw3").head.text() == choice.heads["pw3"]
    assert choice.graph.node("pw1").head.text() == "stored"
    assert graph.with_heads(choice.heads) == choice.graph
    assert set(choice.params) == set(choice.graph.parameter_shapes())


def test_scores_that_are_not_finite_are_worst(case):
    graph, params, x = case
    choice = auto_heads(
        graph, params, 10**6, lambda m: np.nan if any(op.name == "pw2" and op.weights.bits == 8 for op in m.ops) else 0.5,
        size=image_bytes, quantise=lambda g, p: quantised(g, Model(g, p), x), candidates={"pw": ["stored", "stored:bits=4"]},
    )  # fmt: skip
    assert choice.heads == {"pw": "stored:bits=4"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"evaluations": 1}, "evaluations is 1"),
        ({"candidates": {}}, "no candidates"),
        ({"candidates": {"pw": "stored"}}, "give a list"),
        ({"candidates": {"pw": []}}, "give a list"),
        ({"candidates": {"pwx": ["stored"]}}, "pwx"),
        ({"candidates": {"pw": ["tiled:x=1"]}}, "no key 'x'"),
    ],
)
def test_bad_arguments(case, options, said):
    with pytest.raises(ConfigError, match=said):
        search(case, 1500, **options)


def test_default_candidates_exist_for_every_kind(case, monkeypatch):
    monkeypatch.setattr(fit, "ADAM_STEPS", 3)
    choice, _ = search(case, 1400, evaluations=20, candidates=None)
    assert set(choice.heads) == {"conv", "depthwise", "pw1", "pw", "fc"}
    assert choice.bytes <= 1400
