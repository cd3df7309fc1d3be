"""Machine room: a device that is not there is refused, and large blocks of memory stay with the process."""

import ctypes
import os
import re
import subprocess
import sys

import pytest

from srlab import machine


@pytest.mark.parametrize("name", ["quantum", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv("SRLAB_DEVICE", name)
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        machine.pick_device()


def test_large_freed_blocks_stay_with_the_process():
    """A 64 MiB block freed and taken again must not fault its pages in again; asked in a process of its own."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        assert machine.tune_allocator() is False
        return
    code = """
import resource, sys
from srlab import machine
if sys.argv[1] == "tuned":
    assert machine.tune_allocator()
import numpy as np
def take():
    np.ones(8 << 20)
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], env=quiet, capture_output=True, check=True).stdout)
        for how in ("plain", "tuned")
    }
    assert faults["tuned"] < faults["plain"] / 4
