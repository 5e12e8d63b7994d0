"""The ELF proves the instruction set: emulators forgive, so what a core lacks must not be in its program at all.

Allow-lists are of mnemonics, by architecture, after Arm's reference manuals; anything not listed fails, so that a compiler that begins to
use something new is noticed.
"""

import re
import shutil
import subprocess

import pytest

from pyhtpw.errors import MissingToolError
from pyhtpw.target import toolchain
from pyhtpw.target.emulator import EmulationError, Emulator

CONDITIONS = "eq ne cs cc mi pl vs vc hi ls ge lt gt le".split()
V6M = (
    "adc adcs add adds adr and ands asr asrs b bic bics bkpt bl blx bx cmn cmp cps dmb dsb eor eors isb ldm ldmia ldr ldrb ldrh ldrsb "
    "ldrsh lsl lsls lsr lsrs mov movs mrs msr mul muls mvn mvns neg negs nop orr orrs pop push rev rev16 revsh ror rors rsb rsbs sbc "
    "sbcs sev stm stmia str strb strh sub subs svc sxtb sxth tst udf uxtb uxth wfe wfi yield"
).split()
V7M = V6M + (
    "addw bfc bfi cbnz cbz clz it ldmdb ldrd ldrex ldrt mla mls movt movw orn orns pkh rbit rrx rrxs sbfx sdiv smlal smull ssat stmdb "
    "strd strex subw tbb tbh teq ubfx udiv umlal umull usat"
).split()
DSP = (
    "pkhbt pkhtb qadd qsub qadd16 qsub16 sadd16 ssub16 sel smlabb smlabt smlatb smlatt smlad smladx smlald smlawb smlawt smlsd smmla "
    "smmlar smmul smmulr smuad smulbb smulbt smultb smultt smulwb smulwt ssat16 sxtab sxtab16 sxtah sxtb16 uadd16 umaal usat16 uxtab "
    "uxtab16 uxtah uxtb16 usad8 usada8 smlsld smlsldx smlaldx smlsdx smusd smusdx smuadx smlalbb smlalbt smlaltb smlaltt"
).split() + [f"{kind}{op}" for kind in ("s", "u", "q", "sh", "uh", "uq") for op in ("add8", "sub8", "add16", "sub16", "asx", "sax")]
# Armv8.1-M: what every core has, and what comes with Helium (integers), whose tail predication is the "tp" loops
V81M = "cinc cinv cneg csel cset csetm csinc csinv csneg clrm dls le wls".split()
HELIUM = (
    "asrl lsll lsrl sqrshr sqrshrl sqshl sqshll srshr srshrl uqrshl uqrshll uqshl uqshll urshr urshrl dlstp lctp letp wlstp "
    "vabav vabd vabs vadc vadci vadd vaddlv vaddlva vaddv vaddva vand vbic vbrsr vcadd vcls vclz vcmp vctp vddup vdup vdwdup veor vhadd "
    "vhcadd vhsub vidup viwdup vld20 vld21 vld40 vld41 vld42 vld43 vldmia vldmdb vldr vldrb vldrd vldrh vldrw vmax vmaxa vmaxav vmaxv vmin "
    "vmina vminav vminv vmla vmlas vmov vmovlb vmovlt vmovnb vmovnt vmrs vmsr vmul vmulh vmullb vmullt vmvn vneg vorn vorr vpnot vpop "
    "vpsel vpst vpt vpush vqabs vqadd vqmovnb vqmovnt vqmovunb vqmovunt vqneg vqrshl vqshl vqshlu vqsub vrev16 vrev32 vrev64 vrhadd "
    "vrmulh vrshl vrshr vsbc vsbci vshl vshlc vshllb vshllt vshr vsli vsri vst20 vst21 vst40 vst41 vst42 vst43 vstmdb vstmia vstr vstrb "
    "vstrd vstrh vstrw vsub"
).split()
HELIUM += [f"v{kind}{end}" for kind in ("mladav", "mlaldav", "mlsdav", "mlsldav", "rmlaldavh", "rmlsldavh") for end in ("", "a", "x", "ax")]
HELIUM += [f"v{kind}{end}" for kind in ("mlalv", "mlav", "rmlalvh") for end in ("", "a")]
HELIUM += [f"vq{r}dm{kind}" for r in ("", "r") for kind in ("ladh", "ladhx", "lah", "lash", "lsdh", "lsdhx", "ulh")]
HELIUM += ["vqdmullb", "vqdmullt"]
HELIUM += [f"v{kind}{half}" for kind in ("qrshrn", "qrshrun", "qshrn", "qshrun", "rshrn", "shrn") for half in "bt"]
ALLOWED = {
    "cortex-m0": set(V6M),
    "cortex-m3": set(V7M),
    "cortex-m4": set(V7M + DSP),
    "cortex-m7": set(V7M + DSP),
    "cortex-m33": set(V7M + DSP),
    "cortex-m55": set(V7M + DSP + V81M + HELIUM),
    "cortex-m55-nomve": set(V7M + DSP + V81M),
}
KNOWN = set().union(*ALLOWED.values())
# TAG_CPU_NAME; TAG_CPU_ARCH, where 21 is Armv8.1-M mainline; TAG_MVE_ARCH, where 1 is Helium without floating point
ARCHITECTURE = {
    "cortex-m0": ("6S-M", "12", None),
    "cortex-m3": ("7-M", "10", None),
    "cortex-m4": ("7E-M", "13", None),
    "cortex-m7": ("7E-M", "13", None),
    "cortex-m33": ("8-M.MAIN", "17", None),
    "cortex-m55": ("cortex-m55", "21", "1"),
    "cortex-m55-nomve": ("cortex-m55", "21", None),
}


def build(cpu: str, opt: str) -> toolchain.Elf:
    try:
        return toolchain.build(cpu, opt=opt, compiler="gcc")
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")


def mnemonics(elf: toolchain.Elf) -> dict[str, str]:
    """Mnemonic, without width and condition -> a function that uses it."""
    objdump = shutil.which("arm-none-eabi-objdump")
    if objdump is None:
        pytest.skip("NOT RUN: arm-none-eabi-objdump is missing: type 'apt-get install gcc-arm-none-eabi'")
    # without being told, objdump does not know Helium: it shows coprocessor instructions
    machine = ["-m", "armv8.1-m.main"] if "m55" in elf.cpu.name else []
    text = subprocess.run([objdump, "-d", *machine, str(elf.path)], capture_output=True, text=True, check=True).stdout
    found, function = {}, "?"
    for line in text.splitlines():
        if heading := re.match(r"[0-9a-f]+ <(.+)>:", line):
            function = heading[1]
        elif code := re.match(r"\s+[0-9a-f]+:\t[0-9a-f ]+\t([a-z0-9.]+)", line):
            if code[1].startswith("."):  # .word: data in the text
                continue
            found.setdefault(bare(code[1]), function)
    return found


def bare(name: str) -> str:
    """A mnemonic without width, type, condition and predicate; floating-point types stay, since no core here has them."""
    name, *types = name.split(".")
    if block := re.fullmatch("(it|vpst|vpt)[te]{0,3}", name):
        name = block[1]
    if name not in KNOWN and name[-2:] in CONDITIONS and name[:-2] in KNOWN:
        name = name[:-2]
    elif name not in KNOWN and name[-1:] == "s" and name[:-1] in KNOWN:
        name = name[:-1]
    elif name not in KNOWN and name[:1] == "v" and name[-1:] in "te" and name[:-1] in KNOWN:
        name = name[:-1]
    return ".".join([name, *(kind for kind in types if kind[:1] == "f")])


@pytest.mark.parametrize("opt", ["-Os", "-O3"])
@pytest.mark.parametrize("cpu", ALLOWED)
def test_program_has_only_instructions_of_its_core(cpu, opt):
    elf = build(cpu, opt)
    found = mnemonics(elf)
    assert len(found) > 30, "the disassembly was not understood"
    foreign = {name: where for name, where in found.items() if name not in ALLOWED[cpu]}
    assert not foreign, f"{cpu} {opt}: {foreign}"
    tags = tuple(elf.attributes.get(f"TAG_{name}") for name in ("CPU_NAME", "CPU_ARCH", "MVE_ARCH"))
    assert tags == ARCHITECTURE[cpu]


def test_the_list_would_notice():
    """The DSP program has instructions that the lists of smaller cores lack, so the test above can fail."""
    found = mnemonics(build("cortex-m4", "-O3"))
    assert {"smlad"} <= set(found) and not {"smlad"} & ALLOWED["cortex-m3"]
    assert set(mnemonics(build("cortex-m3", "-O3"))) - ALLOWED["cortex-m0"]


def test_the_list_would_notice_helium():
    """The Helium program has the backend's instructions, and no other core's list has any of Helium's."""
    found = set(mnemonics(build("cortex-m55", "-O3")))
    assert {"vmlava", "vldrb", "vstrb", "vqrdmulh", "vctp", "vpst", "dls", "le"} <= found
    for cpu, allowed in ALLOWED.items():
        assert cpu == "cortex-m55" or not allowed & set(HELIUM), cpu
    assert {bare("vldrbt.s32"), bare("vpstete"), bare("vmlavae.s8")} == {"vldrb", "vpst", "vmlava"}
    assert bare("vadd.f32") not in KNOWN and bare("vcvt.s32.f32") not in KNOWN


@pytest.mark.parametrize(("name", "code"), [("udiv", "0xfbb0, 0xf0f1"), ("smlad", "0xfb20, 0x2001"), ("movw", "0xf240, 0x0001")])
def test_emulated_m0_refuses_what_it_lacks(tmp_path, name, code):
    source = tmp_path / "probe.c"
    source.write_text(
        "void probe_foreign(void);\n__attribute__((naked)) void probe_foreign(void) "
        f'{{ __asm__ volatile(".short {code}\\n bx lr"); }}\n'
    )
    try:
        with Emulator("cortex-m0", extra=[source], roots=(*toolchain.LIBRARY, "probe_*")) as m0:
            with pytest.raises(EmulationError, match="probe_foreign"):
                m0.call("probe_foreign")
            assert m0.call("htpw_crc32", 0, 0, 0) == 0, "an ordinary call still works"
        with Emulator("cortex-m4", extra=[source], roots=(*toolchain.LIBRARY, "probe_*")) as m4:
            m4.call("probe_foreign", 9, 3)
    except MissingToolError as error:
        pytest.skip(f"NOT RUN: {error}")
