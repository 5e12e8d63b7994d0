"""The worked toy of the published idea: three 4x4 pointwise layers, dz = 2, dh = 4, with its printed numbers."""

import integer_plain
import numpy as np
from test_quant import quantised

from pyhtpw.nets import Graph, Node
from pyhtpw.quant.generator import run_generator
from pyhtpw.train import Model
from pyhtpw.train.heads import Expander
from pyhtpw.train.workspace import Workspace

Z2 = [0.8, -0.3]
PRE = [0.56, -0.26, -0.16, 0.45]
H2 = [0.56, 0.0, 0.0, 0.45]
WG = np.array(
    [[0.7, 0.0], [-0.1, 0.6], [-0.2, 0.0], [0.3, -0.7]]
)  # not printed; with b = 0 it gives the printed pre-activations


def toy():
    nodes = [Node("pw1", "pointwise", ("input",), 4, norm=True, relu=True)]
    for i in (2, 3):
        nodes.append(
            Node(
                f"pw{i}", "pointwise", (f"pw{i - 1}",), 4, norm=True, relu=True, head="dense:dz=2,hidden=4,code_bits=8"
            )
        )
    nodes += [Node("pool", "avgpool", ("pw3",), 4), Node("fc", "fc", ("pool",), 2)]
    graph = Graph("toy", (6, 4), 2, tuple(nodes))
    model = Model(graph, seed=0, dtype=np.float64)
    model.params["generator.0.weight"][:] = WG
    model.params["generator.0.bias"][:] = 0
    model.params["pw2.codes"][:] = Z2
    model.params["pw3.codes"][:] = [-0.4, 0.1]
    return graph, model


def test_pre_activations_and_embedding():
    _, model = toy()
    pre = WG @ Z2 + model.params["generator.0.bias"]
    np.testing.assert_allclose(pre, PRE, atol=1e-12)
    np.testing.assert_allclose(np.maximum(pre, 0), H2, atol=1e-12)


def test_kernel_is_the_reshaped_product():
    graph, model = toy()
    assert graph.node("pw1").head.kind == "stored"  # the hybrid rule
    assert [head.name for head in graph.plan.heads] == ["head", "head-2"]
    assert len(graph.plan.generators) == 1
    made = Expander(graph, Workspace(np.float64)).forward(model.params, quantise=False)
    np.testing.assert_allclose(made["pw2"], np.reshape(model.params["head.weight"] @ H2, (4, 4)), atol=1e-12)


def test_in_integers():
    graph, model = toy()
    x = np.random.default_rng(0).standard_normal((32, 6, 4)).astype(np.float32)
    integer = quantised(graph, Model(graph, model.params), x)
    ops = {op.name: op for op in integer.ops}
    codes = ops["pw2"].weights.codes
    assert codes.tolist() == [[127, -48]]  # 0.8 and -0.3 in steps of 0.8 / 127
    h = run_generator(integer.generators[0], codes)[0]
    assert h[1] == h[2] == 0
    assert h[0] == 127  # the largest of all
    assert abs(h[3] / h[0] - 0.45 / 0.56) < 0.01
    kernel = integer_plain.kernel(integer, ops["pw2"]).astype(float)
    wanted = np.reshape(model.params["head.weight"] @ H2, (4, 4))
    scale = np.sum(kernel * wanted) / np.sum(kernel**2)
    assert np.abs(kernel * scale - wanted).max() < 0.02 * np.abs(wanted).max()
