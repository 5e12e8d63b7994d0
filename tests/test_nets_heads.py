"""Head specifications: their text, who shares what, and errors that name the key."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhtpw import nets
from pyhtpw.errors import ConfigError
from pyhtpw.nets import HeadSpec, load_heads
from pyhtpw.nets.heads import KINDS

GENERATOR = {"dz": st.integers(1, 1024), "hidden": st.lists(st.integers(1, 1024), max_size=3).map(tuple),
             "code_bits": st.sampled_from([4, 6, 8]), "generator_bits": st.sampled_from([4, 6, 8])}  # fmt: skip
MORE = {"narrow": st.booleans(), "group": st.sampled_from(["", "a", "B-2"])}
TILE, BITS = {"tile": st.integers(1, 65535)}, {"head_bits": st.sampled_from([4, 6, 8])}
FIELDS = {
    "stored": {"bits": st.sampled_from([4, 2]), "narrow": st.booleans(), "per_tensor": st.booleans()},
    "dense": {**GENERATOR, **BITS, **MORE},
    "factorised": {
        **GENERATOR,
        **BITS,
        **MORE,
        "rank": st.integers(1, 1024),
        "share": st.sampled_from(["a", "b", "none"]),
    },
    "tiled": {**GENERATOR, **BITS, **MORE, **TILE},
    "seeded": {**GENERATOR, **MORE, **TILE, "seed": st.integers(1, 2**32 - 1)},
    "codebook": {**GENERATOR, **BITS, **MORE, **TILE, "entries": st.integers(1, 256), "of": st.just("generated")},
}


@given(st.data(), st.sampled_from(KINDS))
def test_text_round_trip(data, kind):
    spec = HeadSpec(kind, **{name: data.draw(values) for name, values in FIELDS[kind].items()})
    assert HeadSpec.parse(spec.text()) == spec
    assert HeadSpec.parse(HeadSpec.parse(kind).text()).text() == kind  # defaults need no words


def test_text_says_what_it_means():
    spec = HeadSpec.parse("tiled: tile=32, dz=4, code_bits=6, hidden=16+8, head_bits=6, generator_bits=4, narrow")
    assert (spec.tile, spec.dz, spec.code_bits, spec.hidden, spec.head_bits, spec.generator_bits, spec.narrow) == (
        32, 4, 6, (16, 8), 6, 4, True,
    )  # fmt: skip
    for linear in ("tiled:hidden=0", "tiled:hidden="):
        assert HeadSpec.parse(linear).hidden == ()
    assert HeadSpec.parse("seeded:seed=0xdead").seed == 0xDEAD
    assert HeadSpec.parse("codebook:entries=64,tile=16,of=generated,dz=3").width == 16
    assert not HeadSpec.parse("codebook").has_generator


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tile", "unknown head 'tile'; choose one of stored, dense"),
        ("tiled:colour=1", "'tiled' has no key 'colour'; its keys are tile, dz"),
        ("stored:dz=4", "'stored' has no key 'dz'; its keys are bits, rule, narrow"),
        ("codebook:dz=4", "'codebook' has no key 'dz' with of=stored"),
        ("codebook:of=generated,bits=4", "no key 'bits' with of=generated"),
        ("tiled:dz=4,dz=5", "dz twice"),
        ("tiled:dz=four", "dz is 'four'; give a whole number"),
        ("tiled:dz=0", "dz is 0; give a whole number from 1 to 1024"),
        ("tiled:tile=0", "tile is 0; give a whole number from 1 to 65535"),
        ("tiled:dz=1025", "dz is 1025; .* from 1 to 1024"),
        ("tiled:hidden=16+0", "hidden is '16.0'; give up to three layers of 1 to 1024"),
        ("tiled:hidden=1+2+3+4", "up to three layers"),
        ("tiled:code_bits=5", "code_bits is 5; choose one of 4, 6, 8"),
        ("seeded:seed=0", "seed is 0; .* from 1 to 4294967295"),
        ("codebook:entries=257", "entries is 257; .* from 1 to 256"),
        ("factorised:share=x", "share is 'x'; choose one of b, a, none"),
        ("stored:bits=3", "bits is 3; choose one of 8, 4, 2"),
        ("stored:narrow", "narrow kernels take 4-bit values"),
        ("codebook:narrow", "narrow kernels take 4-bit values"),
        ("tiled:narrow=1", "narrow is a flag"),
        ("tiled:group=a b", "group is 'a b'"),
        (7, "head specification is 7"),
    ],
)
def test_errors_name_the_key(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        HeadSpec.parse(text)
    assert "\n" not in str(caught.value)


def test_constructor_refuses_keys_of_other_kinds():
    with pytest.raises(ConfigError, match="'stored' has no key 'rank'"):
        HeadSpec("stored", rank=7)
    with pytest.raises(ConfigError, match="narrow is 1"):
        HeadSpec("tiled", narrow=1)


def build(heads, **options):
    return nets.build("hypertinypw", t=100, stem=8, widths=(12, 12, 16), strides=(2, 1, 1), heads=heads, **options)


def heads_of(graph):
    return [(head.name, head.spec.kind, head.nodes, head.generator) for head in graph.plan.heads]


def test_equal_text_shares_head_and_generator():
    graph = build(
        {
            "pw": "tiled:tile=8",
            "pw1": "tiled:tile=8,dz=4",
            "depthwise": "tiled",
            "fc": "seeded",
            "conv": "stored:bits=4",
        }
    )
    assert heads_of(graph) == [
        ("head", "tiled", ("dw1", "dw2", "dw3"), 0),
        ("head-2", "tiled", ("pw1", "pw2", "pw3"), 1),
        ("head-3", "seeded", ("fc",), 2),
    ]
    assert graph.plan.heads[0].rows == 5  # a tile per filter
    shapes = graph.parameter_shapes()
    assert shapes["dw2.codes"] == (12, 4)
    assert shapes["pw3.codes"] == (-(-12 * 16 // 8), 4)
    assert shapes["head-2.weight"] == (8, 16)
    assert shapes["generator-2.0.weight"] == (16, 4)
    assert shapes["head-3.gain"] == (1,)
    assert shapes["fc.codes"] == (1, 8)
    assert shapes["fc.bias"] == (2,)
    assert shapes["stem.weight"] == (8, 9, 1)


def test_groups_share_and_separate():
    shared = build({"pw": "tiled:group=g", "depthwise": "tiled:group=g"})
    assert heads_of(shared) == [("head", "tiled", ("dw1", "dw2", "dw3"), 0), ("head-2", "tiled", ("pw2", "pw3"), 0)]
    assert [source for source, _ in shared.plan.generators[0].sources] == [
        f"{name}.codes" for name in ("dw1", "dw2", "pw2", "dw3", "pw3")
    ]
    apart = build({"pw2": "tiled:group=g", "pw3": "tiled"})
    assert heads_of(apart) == [("head", "tiled", ("pw2",), 0), ("head-2", "tiled", ("pw3",), 1)]
    with pytest.raises(ConfigError, match="'pw2' and 'pw3' share the generator of group 'g' but differ in hidden"):
        build({"pw2": "tiled:group=g", "pw3": "tiled:group=g,hidden=0"})


def test_matrices_of_dense_and_factorised_heads():
    graph = build({"pw": "dense", "pw1": "dense"})
    assert heads_of(graph) == [
        (n, "dense", (p,), 0) for n, p in (("head", "pw1"), ("head-2", "pw2"), ("head-3", "pw3"))
    ]
    assert graph.parameter_shapes()["head-3.weight"] == (192, 12)
    wide = {"widths": (12, 12, 12), "strides": (1, 1, 1)}
    for share, wanted in (
        ("b", {"head.b.weight": (3, 12), "head.a.weight": (144, 3), "head-2.a.weight": (144, 3)}),
        ("a", {"head.b.weight": (3, 12), "head.a.weight": (144, 3), "head-2.b.weight": (3, 12)}),
        ("none", {f"{h}.{m}.weight": s for h in ("head", "head-2") for m, s in (("b", (3, 12)), ("a", (144, 3)))}),
    ):
        graph = nets.build("hypertinypw", t=100, heads={"pw": f"factorised:rank=3,share={share}"}, **wide)
        found = {name: shape for name, shape in graph.parameter_shapes().items() if name.startswith("head")}
        assert found == wanted
        assert graph.generator_macs() == 2 * (4 * 12 + 12 * 3 + 3 * 144)


def test_codebooks():
    graph = build({"pw": "codebook:entries=10,tile=8", "pw1": "codebook:entries=10,tile=8,of=generated,dz=3"})
    shapes = graph.parameter_shapes()
    assert shapes["pw3.ids"] == (24,)
    assert "pw3.ids" not in graph.trained_names()
    assert shapes["head-2.table.weight"] == (10, 8)
    assert (shapes["head.codes"], shapes["head.weight"], shapes["generator.0.weight"]) == ((10, 3), (8, 16), (16, 3))
    assert graph.generator_macs() == 10 * (3 * 16 + 16 * 8)


def test_layers_are_stronger_than_kinds():
    graph = build({"pw": "tiled", "block3.pw": "stored:bits=4", "dw2": "tiled:dz=2", "block3": {"dw": "stored:bits=2"}})
    assert [node.head.text() for node in graph.nodes if node.op in ("pointwise", "depthwise")] == [
        "stored", "stored", "tiled:dz=2", "tiled", "stored:bits=2", "stored:bits=4",
    ]  # fmt: skip
    assert graph.with_heads({"pw1": "tiled"}).node("pw1").head.kind == "tiled"
    assert graph.stored().plan.heads == ()
    for key in ("block9.pw", "dw9", "pool", "add"):
        with pytest.raises(ConfigError, match=f"{key}.*no kind .*no node"):
            build({key: "tiled"})
    with pytest.raises(ConfigError, match=r"'pw3'.*'tiled' has no key 'x'"):
        build({"pw3": "tiled:x=1"})
    with pytest.raises(ConfigError, match="no such kernel"):
        nets.build("hypertinypw", t=100, widths=(4,), strides=(1,), heads={"pw": "tiled"})


def test_the_format_holds_so_many():
    names = {"stem", "fc", *(f"{p}{i}" for i in (1, 2, 3) for p in ("dw", "pw"))}
    build({name: f"tiled:group={name}" for name in names})
    with pytest.raises(ConfigError, match="10 generators, an image holds 8"):
        nets.build(
            "hypertinypw", t=100, heads={f"{p}{i}": f"tiled:group={p}{i}" for i in range(1, 6) for p in ("dw", "pw")}
        )


def test_heads_from_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[heads]\npw = "tiled:dz=2"\nblock3.pw = "stored:bits=4"\n"dw2" = "tiled"\n')
    graph = build(load_heads(path))
    assert [graph.node(n).head.text() for n in ("pw2", "pw3", "dw2")] == ["tiled:dz=2", "stored:bits=4", "tiled"]
    for text, said in (
        ("[heads", "not a TOML file"),
        ("[other]\na = 1\n", r"no table \[heads\]"),
        ("[heads]\npw = 3\n", "pw: head specification is 3"),
        ('[heads]\npw = "tiled:x=1"\n', "pw: head 'tiled' has no key 'x'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"run\.toml: .*" + said):
            load_heads(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_heads(tmp_path / "none.toml")


def test_wide_network():
    graph = nets.build("hypertinypw-wide", t=1800)
    kernels = graph.kernel_shapes()
    assert sum(prod(kernels[node.name]) for node in graph.generated_nodes()) == 40_960
