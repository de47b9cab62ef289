"""Programs that train keep their memory: no page fault for a block that was used before."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
if sys.argv[1] == "kept":
    from magc_model.host_memory import keep_memory
    keep_memory()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    torch.ones(24 << 20)
before = faults()
for _ in range(5):
    torch.ones(24 << 20)
print(json.dumps(faults() - before))
"""


def page_faults(way: str) -> int:
    # A program that kept its memory before may have left the wish in the environment.
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", SCRIPT, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    return int(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_memory_that_was_used_is_used_again() -> None:
    kept, given_back = page_faults("kept"), page_faults("default")
    assert given_back > 5 * 20_000  # 96 MiB a time, in pages of 4 KiB
    assert kept < 1000
