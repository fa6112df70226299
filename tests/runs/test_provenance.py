"""What a run records of the machine it runs on."""

import platform

import pytest

from metaopt.runs.provenance import _cpu, hardware

EPYC = "processor\t: {0}\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EPYC.format(0) + EPYC.format(1), "AMD EPYC (family 26 model 2)"),
        (EPYC.format(0).replace("26", "25"), "AMD EPYC (family 25 model 2)"),
        ("model name\t: Some CPU\n", "Some CPU"),
        ("CPU implementer\t: 0x41\n", platform.processor() or platform.machine()),
        (None, platform.processor() or platform.machine()),
    ],
)
def test_cpus_of_one_name_are_told_apart(text, expected, tmp_path):
    info = tmp_path / "cpuinfo"
    if text is not None:
        info.write_text(text)
    assert _cpu(info) == expected


def test_the_machine_of_a_run_names_its_cpu():
    found = hardware()
    assert found["cpu"] == _cpu()
    assert found["threads"] >= 1
