"""How fast a training was: tokens per second, and model FLOPs as a share of the GPU's peak (MFU).

After PaLM (Chowdhery et al., arXiv 2204.02311, appendix B). A GPU that is not in the table has no
MFU, rather than a guessed one.
"""

from __future__ import annotations

import re

# Dense bf16 FLOP/s from the makers' data sheets, by the full name: a laptop's 4090 is another GPU.
PEAK_FLOPS = {
    r"NVIDIA B200": 2250e12,
    r"NVIDIA (H200|H800|GH200 .*|H100 80GB HBM3)": 989.4e12,
    r"NVIDIA H[18]00 PCIe": 756e12,
    r"NVIDIA A[18]00.*": 312e12,
    r"NVIDIA L40S": 362e12,
    r"NVIDIA L4": 121e12,
    r"NVIDIA GeForce RTX 5090": 209.5e12,
    r"NVIDIA GeForce RTX 4090": 165.2e12,
    r"NVIDIA GeForce RTX 3090": 71e12,
    r"AMD Instinct MI3(00|25)X.*": 1307.4e12,
}


def peak_flops(gpu: str) -> float | None:
    return next((peak for name, peak in PEAK_FLOPS.items() if re.fullmatch(name, gpu)), None)


def figures(flops_per_token: float, tokens: int, seconds: float, gpu: str) -> dict[str, float]:
    """`tokens_per_second` and, for a GPU in the table, `mfu_percent`."""
    metrics = {"tokens_per_second": tokens / seconds}
    if peak := peak_flops(gpu):
        metrics["mfu_percent"] = 100 * flops_per_token * tokens / seconds / peak
    return metrics
