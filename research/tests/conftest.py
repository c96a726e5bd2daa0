import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep tests that run side by side to one torch thread each."""
    torch.set_num_threads(1)
