"""Which CPUs are given float32."""

from __future__ import annotations

import pytest

from plaudit.precision import multiplies_bfloat16


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\n", False),
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("vendor_id\t: RiscV\n", True),
        ("", True),
    ],
)
def test_bfloat16_is_told_by_the_flags(cpuinfo: str, expected: bool) -> None:
    assert multiplies_bfloat16(cpuinfo) is expected
