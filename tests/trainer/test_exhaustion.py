"""Which exceptions count as too little memory. A GPU's are made up, in the words of torch 2.13."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainer import exhaustion

CREATE = "when calling `cublasCreate(handle)`"


def wrapped(error: Exception) -> Exception:
    try:
        raise ValueError("while a block was compiled") from error
    except ValueError as outer:
        return outer


def after(error: Exception) -> Exception:
    """A failure of its own in what deals with `error`."""
    try:
        try:
            raise error
        except Exception:
            raise ValueError("a smaller batch does not divide the step")  # noqa: B904
    except ValueError as outer:
        return outer


MADE_UP = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize(
    "error",
    [
        MADE_UP,
        MemoryError(),
        wrapped(MADE_UP),
        wrapped(wrapped(MADE_UP)),
        RuntimeError(f"CUDA error: CUBLAS_STATUS_ALLOC_FAILED {CREATE}"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("MPS backend out of memory (MPS allocated: 20 GB, max allowed: 21 GB)"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory."),
    ],
    ids=str,
)
def test_a_made_up_error_for_want_of_memory_is_known(error):
    assert exhaustion.is_exhaustion(error)


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: np.empty(2**60, np.uint8)]
)
def test_a_real_allocation_that_fails_is_known(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    assert exhaustion.is_exhaustion(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError(f"CUDA error: CUBLAS_STATUS_EXECUTION_FAILED {CREATE}"),
        ValueError("out of memory cells"),
        after(MADE_UP),
    ],
    ids=str,
)
def test_another_made_up_error_is_none(error):
    assert not exhaustion.is_exhaustion(error)


@pytest.mark.parametrize(("free", "known"), [(2**28, True), (2**33, False), (None, False)])
def test_a_handle_that_cannot_be_made_counts_on_a_full_made_up_gpu_alone(monkeypatch, free, known):
    def mem_get_info() -> tuple[int, int]:
        if free is None:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return free, 80 * 2**30

    made_up = SimpleNamespace(cuda=SimpleNamespace(mem_get_info=mem_get_info))
    monkeypatch.setitem(sys.modules, "torch", made_up)
    for name in ("CUBLAS", "CUDNN"):
        error = RuntimeError(f"CUDA error: {name}_STATUS_NOT_INITIALIZED {CREATE}")
        assert exhaustion.is_exhaustion(error) is known
