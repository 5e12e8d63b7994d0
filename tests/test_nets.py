"""Network definitions: shapes, counts, JSON, and errors that name the node."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhtpw import nets
from pyhtpw.errors import ConfigError
from pyhtpw.nets import Graph, Node, same_padding
from pyhtpw.nets.graph import is_running


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9))
def test_same_padding_covers_every_window(t, k, s):
    out, left = same_padding(t, k, s)
    assert out == int(np.ceil(t / s))
    right = (out - 1) * s + k - t - left  # negative when the stride steps over the end
    assert left >= 0
    if right > 0:
        assert right - left in (0, 1)
    else:
        assert left == 0


def test_default_network():
    graph = nets.build("hypertinypw", t=1800)
    shapes = graph.shapes()
    assert shapes["input"] == (1800, 1)
    assert shapes["stem"] == (450, 16)
    assert [shapes[f"pw{i}"] for i in range(1, 6)] == [(225, 32), (113, 64), (57, 64), (57, 64), (57, 64)]
    assert shapes["pool"] == (1, 64)
    assert shapes["fc"] == (1, 2)
    names = [node.name for node in graph.nodes]
    assert " ".join(names) == "stem dw1 pw1 dw2 pw2 dw3 pw3 dw4 pw4 add4 dw5 pw5 add5 pool fc"
    assert [node.name for node in graph.generated_nodes()] == ["pw2", "pw3", "pw4", "pw5"]
    assert graph.node("add4").inputs == ("pw3", "pw4")
    assert graph.node("add4").relu
    assert not graph.node("pw4").relu
    assert graph.node("pw3").relu


def test_parameters_and_cost_of_a_small_network():
    heads = {"pw": "tiled:dz=2,hidden=5+3,tile=7"}
    graph = nets.build("hypertinypw", t=20, stem=4, widths=(6, 8), strides=(2, 1), heads=heads)
    shapes = graph.parameter_shapes()
    assert shapes["stem.weight"] == (4, 9, 1)
    assert shapes["dw1.weight"] == (5, 4)
    assert shapes["pw1.weight"] == (6, 4)
    assert shapes["pw2.codes"] == (7, 2)  # 48 weights in tiles of 7
    assert "pw2.weight" not in shapes
    assert shapes["generator.0.weight"] == (5, 2)
    assert shapes["generator.1.weight"] == (3, 5)
    assert shapes["generator.1.bias"] == (3,)
    assert shapes["head.weight"] == (7, 3)
    assert shapes["fc.weight"] == (2, 8)
    assert shapes["fc.bias"] == (2,)
    assert shapes["pw2.gamma"] == shapes["pw2.beta"] == shapes["pw2.mean"] == shapes["pw2.var"] == (8,)
    stored = 36 + 20 + 24 + 30 + 18  # kernels: stem, dw1, pw1, dw2, fc with bias
    assert graph.parameter_count() == stored + 2 * (4 + 4 + 6 + 6 + 8) + 14 + 10 + 5 + 15 + 3 + 21
    assert not any(is_running(name) for name in graph.trained_names())
    assert graph.macs() == {
        "stem": 5 * 36, "dw1": 3 * 20, "pw1": 3 * 24, "dw2": 3 * 30, "pw2": 3 * 48, "fc": 16,
    }  # fmt: skip
    assert graph.generator_macs() == 7 * (10 + 15 + 21)


def test_separable_differs_only_in_where_kernels_come_from():
    plain = nets.build("separable", t=100)
    generated = nets.build("hypertinypw", t=100)
    assert not plain.plan.heads
    assert plain.shapes() == generated.shapes()
    assert generated.stored().nodes == plain.nodes
    assert plain.generator_macs() == 0


def test_single_block_has_nothing_to_generate():
    graph = nets.build("hypertinypw", t=30, widths=(8,), strides=(1,))
    assert not graph.generated_nodes()


@pytest.mark.parametrize("name", nets.NAMES)
def test_json_round_trip(name):
    t, channels = {"hrv_featnet": (1, 16), "hrv_beats": (1, 8)}.get(name, (64, 3))
    graph = nets.build(name, t=t, channels_in=channels, classes=5)
    assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


POOL = Node("pool", "avgpool", ("input",), 3)
READS_A = replace(POOL, inputs=("a",))
FC = Node("fc", "fc", ("pool",), 2)


def graph_of(*nodes, shape=(10, 3), classes=2):
    return Graph("g", shape, classes, nodes)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ((), "classifier"),
        ((POOL,), "classifier"),
        ((Node("fc", "fc", ("input",), 2),), "node 'fc'.*avgpool"),
        ((POOL, replace(FC, cout=3)), "node 'fc'.*2 classes"),
        ((POOL, replace(FC, inputs=("nowhere",))), "node 'fc'.*nowhere"),
        ((replace(POOL, cout=4), FC), "node 'pool'.*3 input channels"),
        ((replace(POOL, relu=True), FC), "node 'pool'.*ReLU"),
        ((POOL, replace(FC, norm=True)), "node 'fc'.*normalised"),
        ((Node("a", "magic", ("input",), 3), POOL, FC), "node 'a'.*unknown op"),
        ((Node("a", "conv", ("input",), 3), POOL, FC), "node 'a'.*nothing uses"),
        ((Node("a", "conv", ("input",), 0), POOL, FC), "node 'a'.*cout"),
        ((Node("a", "conv", ("input",), 3, kernel=2.0), POOL, FC), "node 'a'.*kernel"),
        ((Node("a", "pointwise", ("input",), 3, stride=2), POOL, FC), "node 'a'.*no taps"),
        ((replace(POOL, head="tiled"), FC), "node 'pool'.*no kernel"),
        ((Node("a", "conv", ("input",), 3, norm="layer"), POOL, FC), "node 'a'.*norm is 'layer'.*batch, group, frozen"),
        ((Node("a", "maxpool", ("input",), 3), POOL, FC), "node 'a'.*one step at a time"),
        ((Node("a", "avgpool", ("input",), 3, 1, 2), POOL, FC), "node 'a'.*one step at a time"),
        ((Node("a", "maxpool", ("input",), 3, 11), READS_A, FC), "node 'a'.*kernel is 11 but there are 10 steps"),
        ((Node("a", "maxpool", ("input",), 4, 2), READS_A, FC), "node 'a'.*3 input channels"),
        ((Node("a", "silu", ("input",), 4), READS_A, FC), "node 'a'.*3 input channels"),
        ((Node("a", "silu", ("input",), 3, norm="batch"), POOL, FC), "node 'a'.*normalised"),
        ((Node("a", "silu", ("input",), 3, kernel=2), POOL, FC), "node 'a'.*no taps"),
        ((Node("a", "squeeze_excite", ("input",), 3), POOL, FC), "node 'a'.*hidden is 0"),
        ((Node("a", "conv", ("input",), 3, hidden=2), POOL, FC), "node 'a'.*no hidden layer"),
        ((Node("a", "silu", ("input",), 3, bias=True), READS_A, FC), "node 'a'.*bias"),
        ((POOL, replace(FC, bias=True)), "node 'fc'.*always has one"),
        ((Node("a", "dropout", ("input",), 3, rate=1), POOL, FC), "node 'a'.*rate is 1"),
        ((Node("a", "conv", ("input",), 3, rate=0.5), POOL, FC), "node 'a'.*drops nothing"),
        ((replace(POOL, head="stored:bits=4"), FC), "node 'pool'.*no kernel"),
        ((Node("a", "add", ("input",), 3), POOL, FC), "node 'a'.*give 2"),
        ((Node("head", "conv", ("input",), 3), POOL, FC), "node 'head'"),
        ((Node("a.b", "conv", ("input",), 3), POOL, FC), "node 'a.b'"),
        ((POOL, POOL, FC), "node 'pool'.*another node"),
        (
            (Node("a", "conv", ("input",), 4), Node("b", "add", ("input", "a"), 3), replace(POOL, inputs=("b",)), FC),
            "node 'b'.*make them equal",
        ),
    ],
)
def test_errors_name_the_node(nodes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        graph_of(*nodes)
    assert "\n" not in str(caught.value)


def test_nodes_of_other_networks():
    nodes = (
        Node("a", "conv", ("input",), 6, 3, norm="group"),
        Node("act", "silu", ("a",), 6),
        Node("top", "maxpool", ("act",), 6, 2, 2),
        Node("se", "squeeze_excite", ("top",), 6, hidden=2, bias=True),
        Node("mean", "avgpool", ("se",), 6, 3, 1),
        Node("drop", "dropout", ("mean",), 6, rate=0.5),
        Node("pool", "avgpool", ("drop",), 6),
        Node("fc", "fc", ("pool",), 2),
    )
    graph = graph_of(*nodes, shape=(11, 3))
    assert graph.shapes() == {
        "input": (11, 3), "a": (11, 6), "act": (11, 6), "top": (5, 6), "se": (5, 6), "mean": (3, 6), "drop": (3, 6),
        "pool": (1, 6), "fc": (1, 2),
    }  # fmt: skip
    assert graph.parameter_shapes() == {
        "a.weight": (6, 3, 3), "a.gamma": (6,), "a.beta": (6,), "se.reduce.weight": (2, 6), "se.reduce.bias": (2,),
        "se.expand.weight": (6, 2), "se.expand.bias": (6,), "fc.weight": (2, 6), "fc.bias": (2,),
    }  # fmt: skip
    assert graph.macs() == {"a": 11 * 54, "se": 24, "fc": 12}
    assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


def test_truth_values_of_norm_are_batch_and_none():
    assert Node("a", "conv", ("input",), 3, norm=True) == Node("a", "conv", ("input",), 3, norm="batch")
    assert Node("a", "conv", ("input",), 3, norm=False) == Node("a", "conv", ("input",), 3)
    plain = nets.build("separable", t=40).to_dict()
    older = {  # as descriptions were written before there was a choice
        **plain,
        "nodes": [
            {**{k: v for k, v in n.items() if k not in ("hidden", "rate", "bias")}, "norm": bool(n["norm"])}
            for n in plain["nodes"]
        ],
    }
    assert Graph.from_dict(older).to_dict() == plain


def test_other_bad_graphs():
    with pytest.raises(ConfigError, match=r"node 'a'.*unknown head 'odd'"):
        Node("a", "pointwise", ("input",), 3, head="odd")
    with pytest.raises(ConfigError, match="input_shape"):
        graph_of(POOL, FC, shape=(0, 3))
    with pytest.raises(ConfigError, match="classes"):
        graph_of(POOL, FC, classes=1)
    with pytest.raises(ConfigError, match="no node is called 'x'"):
        graph_of(POOL, FC).node("x")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nothing", {"t": 10}, "choose one of"),
        ("hypertinypw", {}, "'t'"),
        ("hypertinypw", {"t": 10, "colour": 1}, "colour"),
        ("hypertinypw", {"t": 0}, "t is 0"),
        ("hypertinypw", {"t": 10, "strides": (1, 1, 1, 1, 0)}, r"strides\[4\] is 0"),
        ("hypertinypw", {"t": 10, "widths": (4, 4)}, "2 widths and 5 strides"),
        ("hypertinypw", {"t": 10, "heads": {"pw9": "tiled"}}, "'pw9' is no kind .*and no node"),
    ],
)
def test_bad_builds(name, options, said):
    with pytest.raises(ConfigError, match=said):
        nets.build(name, **options)


def test_bad_descriptions():
    plain = nets.build("hypertinypw", t=40).to_dict()
    with pytest.raises(ConfigError, match="lacks the entry 'nodes'"):
        Graph.from_dict({k: v for k, v in plain.items() if k != "nodes"})
    with pytest.raises(ConfigError, match="unknown entry 'extra'"):
        Graph.from_dict({**plain, "extra": 1})
    with pytest.raises(ConfigError, match="head specification is 3"):
        Graph.from_dict({**plain, "nodes": [{**plain["nodes"][0], "head": 3}]})
    with pytest.raises(ConfigError, match="malformed"):
        Graph.from_dict({**plain, "nodes": 3})
    with pytest.raises(ConfigError, match="malformed"):
        Graph.from_dict({**plain, "input_shape": 3})


def test_low_rank_kernels_are_two_where_that_is_smaller():
    from pyhtpw.nets import build

    whole = build("separable", t=64, widths=(32, 32), strides=(2, 1))
    thin = build("separable", t=64, widths=(32, 32), strides=(2, 1), rank=4)
    assert {n.name for n in thin.nodes} - {n.name for n in whole.nodes} == {"pw1_in", "pw2_in"}
    shapes = thin.kernel_shapes()
    assert shapes["pw2_in"] == (4, 32) and shapes["pw2"] == (32, 4)
    assert not any(n.norm or n.relu or n.bias for n in thin.nodes if n.name.endswith("_in"))
    assert thin.shapes()["fc"] == whole.shapes()["fc"]
    assert build("separable", t=64, widths=(32, 32), strides=(2, 1), rank=16).nodes[2].name == "pw1", "nothing to gain there"
    with pytest.raises(ConfigError, match="rank is -1"):
        build("separable", t=64, rank=-1)
