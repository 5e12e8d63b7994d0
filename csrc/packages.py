"""Writes the file lists of package formats that cannot read csrc/sources.txt themselves, and lays out an Arduino library.

    python csrc/packages.py            write library.json, library.properties, htpw.pdsc and zephyr/Kconfig
    python csrc/packages.py --check    exit status 1 if one of them is not what would be written
    python csrc/packages.py --arduino FOLDER    an Arduino library: sources and headers under FOLDER/src

sources.txt is the one list of files, htpw.h has the version, and the lists in htpw_internal.h have the switches.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
SUMMARY = "Neural networks whose weights are generated at boot, equal to the bit on every machine"
LISTS = ("HTPW_OPERATORS", "HTPW_STORED", "HTPW_HEADS", "HTPW_EXTRAS")


def sources() -> list[str]:
    """C files, relative to csrc."""
    return (HERE / "sources.txt").read_text().split()


def headers() -> list[str]:
    """All headers, relative to csrc."""
    return sorted(path.relative_to(HERE).as_posix() for path in HERE.rglob("*.h"))


def version() -> str:
    """major.minor.patch of htpw.h."""
    text = (HERE / "htpw.h").read_text()
    return ".".join(re.search(rf"#define HTPW_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR", "PATCH"))


def switches() -> list[str]:
    """Names behind HTPW_WITH_, in the order of htpw_part_name."""
    text = (HERE / "htpw_internal.h").read_text().replace("\\\n", " ")
    lines = [re.search(rf"#define {name}\(X\)(.*)", text)[1] for name in LISTS]
    return [name for line in lines for name in re.findall(r"X\((\w+),", line)]


def platformio() -> str:
    """library.json of PlatformIO; csrc is the library's folder."""
    library = {
        "name": "htpw",
        "version": version(),
        "description": SUMMARY,
        "keywords": "neural network, tinyml, inference, microcontroller",
        "license": "Apache-2.0",
        "frameworks": "*",
        "platforms": "*",
        "headers": "htpw.h",
        "build": {
            "srcDir": ".",
            "includeDir": ".",
            "srcFilter": ["-<*>", *(f"+<{name}>" for name in sources())],
            "flags": ["-fno-strict-aliasing", "-ffunction-sections", "-fdata-sections"],
        },
    }
    return json.dumps(library, indent=2) + "\n"


def arduino() -> str:
    """library.properties of the folder that --arduino lays out."""
    fields = {
        "name": "htpw",
        "version": version(),
        "author": "The pyhtpw authors",
        "maintainer": "The pyhtpw authors",
        "sentence": SUMMARY + ".",
        "paragraph": "Images are made by the Python package pyhtpw.",
        "category": "Data Processing",
        "url": "",
        "architectures": "*",
        "includes": "htpw.h",
    }
    return "".join(f"{name}={value}\n" for name, value in fields.items())


def pdsc() -> str:
    """Description of a CMSIS-Pack whose root is csrc."""
    files = [("include", "./"), *(("header", "htpw.h"),), *(("source", name) for name in sources())]
    rows = "".join(f'        <file category="{kind}" name="{escape(name)}"/>\n' for kind, name in files)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<package schemaVersion="1.7.7" xmlns:xs="http://www.w3.org/2001/XMLSchema-instance" xs:noNamespaceSchemaLocation="PACK.xsd">
  <vendor>pyhtpw</vendor>
  <name>htpw</name>
  <description>{escape(SUMMARY)}</description>
  <url/>
  <license>LICENSE</license>
  <releases>
    <release version="{version()}">See CHANGELOG.md</release>
  </releases>
  <conditions>
    <condition id="Cortex-M">
      <accept Dcore="Cortex-M0"/>
      <accept Dcore="Cortex-M0+"/>
      <accept Dcore="Cortex-M3"/>
      <accept Dcore="Cortex-M4"/>
      <accept Dcore="Cortex-M7"/>
      <accept Dcore="Cortex-M23"/>
      <accept Dcore="Cortex-M33"/>
      <accept Dcore="Cortex-M55"/>
    </condition>
  </conditions>
  <components>
    <component Cclass="Machine Learning" Cgroup="HTPW" Csub="Library" Cversion="{version()}" condition="Cortex-M">
      <description>{escape(SUMMARY)}</description>
      <files>
{rows}      </files>
    </component>
  </components>
</package>
"""


def kconfig() -> str:
    """Switches of the Zephyr module."""
    text = f"""# Written by csrc/packages.py.
config HTPW
\tbool "HTPW"
\thelp
\t  {SUMMARY}.

if HTPW

config HTPW_SMALL
\tbool "Smallest code"
\thelp
\t  Portable kernels with short loops instead of those of the CPU, at a price in speed.

"""
    for name in switches():
        text += f'config HTPW_WITH_{name}\n\tbool "HTPW_WITH_{name} (htpw_internal.h)"\n\tdefault y\n\n'
    return text + "endif\n"


WRITTEN = {"library.json": platformio, "library.properties": arduino, "htpw.pdsc": pdsc, "zephyr/Kconfig": kconfig}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a file differs")
    parser.add_argument("--arduino", type=Path, metavar="FOLDER", help="lay out an Arduino library there instead")
    options = parser.parse_args()
    if options.arduino:
        for name in [*sources(), *headers()]:
            to = options.arduino / "src" / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, to)
        (options.arduino / "library.properties").write_text(arduino())
        return 0
    differ = [name for name, make in WRITTEN.items() if not (HERE / name).is_file() or (HERE / name).read_text() != make()]
    if options.check and differ:
        print(f"csrc: {', '.join(differ)} do not follow sources.txt, htpw.h and htpw_internal.h: run python csrc/packages.py")
        return 1
    for name in differ:
        (HERE / f"{name}.new").write_text(WRITTEN[name]())
        (HERE / f"{name}.new").replace(HERE / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
