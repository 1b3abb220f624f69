"""Memory that an encoder frees is there for its next batch."""

import ctypes
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from fedclip.extract.encoding.worker import keep_freed_memory

def faults(size=48 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(size, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_freed_memory()
faults()
print(faults())
"""


def faults_of_a_second_block(mode: str) -> int:
    command = [sys.executable, "-c", CODE, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_a_freed_block_is_used_again_instead_of_new_pages() -> None:
    assert faults_of_a_second_block("kept") < 100
    assert faults_of_a_second_block("given back") > 20  # so it matters, even with huge pages
