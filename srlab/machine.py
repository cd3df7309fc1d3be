"""Machine room: what a process computes with. The device, the generators of random numbers, the allocator.

Takes `SRLAB_DEVICE` and a seed; changes this process, writes nothing. `runtime.start` does all three for a notebook.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loaded inside functions, so that `srlab --help` need not wait for torch
    import torch


def pick_device() -> torch.device:
    """The device named by `SRLAB_DEVICE` ("cpu", "cuda:1", "mps"); without it CUDA if there is one, else the CPU.

    Raises:
        ValueError: the variable names a device that torch does not know or cannot reach.
    """
    import torch

    name = os.environ.get("SRLAB_DEVICE", "").strip()
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it was not built for
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"SRLAB_DEVICE is {name!r}, but torch cannot use it: {reason}. Unset it to let SR Lab choose"
        ) from error
    return device


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (torch: CPU and every GPU)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (scikit-learn and others draw from this one)
    torch.manual_seed(seed)


def tune_allocator() -> bool:
    """Let glibc keep large freed blocks instead of handing them back to the kernel.

    By default every tensor above 32 MiB is given back when freed and faulted in again page by page when the next one is
    made: whole-picture inference on a CPU takes about half the time without (measured, 0.39 to 0.56). Elsewhere than on
    glibc, or when `MALLOC_*` or `GLIBC_TUNABLES` already say something, nothing happens.

    Returns:
        Whether anything was changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # names and values of malloc.h
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(m_mmap_threshold, 1 << 30)) and bool(libc.mallopt(m_trim_threshold, 2**31 - 1))
