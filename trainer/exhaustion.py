"""Which exceptions mean that there was not enough memory, and how a box says so.

A box that runs out of memory exits with ENOMEM: an exit code arrives whatever the judge waited for,
raw bytes of claims included. Fixed, like the harness. No torch at import.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

EXIT_CODE = errno.ENOMEM
# Types by their name, which torch's has kept in all versions; MemoryError is Python's and numpy's.
TYPES = {"OutOfMemoryError", "MemoryError"}
# Messages of other exceptions: of CUDA, HIP, MPS and Triton; of a CPU; of cuBLAS, cuDNN, cuSOLVER
# and their like. The compiler quotes the message of what it caught.
MESSAGES = re.compile(
    r"\bout of memory\b|OutOfMemoryError|DefaultCPUAllocator: can't allocate memory|"
    r"cudaErrorMemoryAllocation|hipErrorOutOfMemory|_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
# Of a library that could not even make its handle: for want of memory if there is next to none.
NO_HANDLE = re.compile(r"(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS)\w*_STATUS_NOT_INITIALIZED")
NEXT_TO_NONE = 2**29  # bytes: more than a handle and its workspace take


def is_exhaustion(error: BaseException) -> bool:
    """Whether this exception, or one that it was raised from, tells of too little memory."""
    for each in _chain(error):
        names = {kind.__name__ for kind in type(each).__mro__}
        if names & TYPES or (isinstance(each, RuntimeError) and MESSAGES.search(str(each))):
            return True
        if NO_HANDLE.search(str(each)) and _device_is_full():
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and its causes. What it only came after may have been dealt with."""
    while error is not None:
        yield error
        error = error.__cause__


def _device_is_full() -> bool:
    """Whether the GPU, which this process has used, has next to no memory left."""
    import torch

    try:
        free, _ = torch.cuda.mem_get_info()
    except (RuntimeError, AssertionError):  # it does not answer any more, or there is none
        return False
    return bool(free < NEXT_TO_NONE)
