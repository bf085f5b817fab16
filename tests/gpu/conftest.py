import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _on_a_gpu() -> None:
    """Say at once where there is none; nothing here can be told from a CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, and none is here")
