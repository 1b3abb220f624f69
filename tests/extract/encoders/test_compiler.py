"""Torch's compiler is imported when it is used, and is then what it always is."""

import subprocess
import sys

import pytest

UNUSED = """
import sys
import torch
from fedclip.extract.encoders.registry import load_encoder
from fedclip.extract.encoders.spec import DEMO_MODEL, EncoderName

disable = torch.compiler.disable
encoder = load_encoder(EncoderName.of(DEMO_MODEL, None), torch.device("cpu"))
encoder.launch(torch.zeros(2, *encoder.blank.shape)).numpy()
encoder.encode_texts(["a picture of a cat"])
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
assert torch.compiler.disable is disable

from torchvision.ops.roi_align import is_compile_supported

expected = is_compile_supported("cpu")
import torch._dynamo.utils
assert expected is torch._dynamo.utils.is_compile_supported("cpu")
assert torch._dynamo.utils.__file__.endswith("utils.py")
"""

USED = """
import sys
import torch
from fedclip.extract.encoders.compiler import deferred_compiler

disable = torch.compiler.disable
with deferred_compiler():
    from torch._dynamo.utils import counters, is_compile_supported
    three = torch.compiler.disable(lambda: 3)
    assert three() == 3
assert torch.compiler.disable is disable
assert counters is torch._dynamo.utils.counters
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
assert is_compile_supported("cpu") is torch._dynamo.utils.is_compile_supported("cpu")
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [UNUSED, USED], ids=["not used", "used at once"])
def test_the_compiler_is_imported_when_it_is_used(code: str, hangs: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=hangs
    )
    assert (result.returncode, result.stderr) == (0, "")
