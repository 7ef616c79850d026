"""Detection of the tier by the flags of a CPU."""

from __future__ import annotations

import pytest

from mpq_compile.kernels.tier import TIERS, cpu_flags, tiers_on

# Beginnings of /proc/cpuinfo, shortened.
GRAVITON3 = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimdrdm asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""
GRAVITON3_WITHOUT_BF16 = GRAVITON3.replace(" bf16", "")
GRAVITON2 = """processor\t: 0
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
"""
CORTEX_A72 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
ZEN3 = "processor\t: 0\nflags\t\t: fpu sse2 avx fma avx2 bmi2\n"
ZEN4 = "flags\t\t: avx2 fma avx512f avx512dq avx512bw avx512vl avx512_vnni avx512_bf16\n"


@pytest.mark.parametrize(
    "machine,text,names",
    [
        ("aarch64", GRAVITON3, ["neon_i8mm_bf16", "neon_i8mm", "neon", "generic"]),
        ("aarch64", GRAVITON3_WITHOUT_BF16, ["neon_i8mm", "neon", "generic"]),
        ("aarch64", GRAVITON2, ["neon", "generic"]),
        ("aarch64", CORTEX_A72, ["generic"]),
        ("x86_64", ZEN4, ["vnni_bf16", "vnni", "avx2", "generic"]),
        ("x86_64", ZEN3, ["avx2", "generic"]),
        ("riscv64", "processor\t: 0\n", ["generic"]),
    ],
)
def test_tiers_of_a_cpu_best_first(machine, text, names):
    tiers = tiers_on(machine, cpu_flags(text.splitlines()))
    assert [tier.name for tier in tiers] == names


def test_every_tier_needs_more_than_those_after_it_on_its_machine():
    tiers = list(TIERS.values())
    for index, tier in enumerate(tiers):
        for worse in tiers[index + 1 :]:
            if set(worse.machine) & set(tier.machine):
                assert worse.flags < tier.flags
