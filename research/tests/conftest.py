import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests run side by side: one torch thread each."""
    torch.set_num_threads(1)
