"""Tokens per second and MFU."""

import pytest

from trainer import speed


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
    ],
)
def test_mfu_is_the_share_of_the_peak_of_the_gpu(gpu: str, peak: float) -> None:
    assert speed.figures(1000, 600, 2.0, gpu) == {
        "tokens_per_second": 300.0,
        "mfu_percent": pytest.approx(100 * 300e3 / peak),
    }


@pytest.mark.parametrize(
    "gpu", ["", "Tesla T4", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GB200", "NVIDIA L4000"]
)
def test_an_unknown_gpu_has_no_mfu(gpu: str) -> None:
    assert speed.figures(1000, 600, 2.0, gpu) == {"tokens_per_second": 300.0}
