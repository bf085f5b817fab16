import os

import pytest
import torch

from academic_pretraining.gpus import visible_devices


@pytest.fixture(scope="session", autouse=True)
def _on_a_gpu() -> None:
    """Skip everything here at once where there is no GPU; one that torch cannot use is a fault."""
    if not visible_devices(os.environ):
        pytest.skip("needs a GPU, and none is here")
    assert torch.cuda.is_available(), "nvidia-smi knows a GPU that torch cannot use"
