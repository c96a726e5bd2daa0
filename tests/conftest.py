import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No cache of the user's is touched, not by fixtures either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOGCLR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    """Tests run side by side: one torch thread each."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory):
    """train/ and test/ with 12 and 6 images of each digit; not to be written to."""
    from digits import write_digits

    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder / "train", 12)
    write_digits(folder / "test", 6, start=12)
    return folder


@pytest.fixture(scope="session")
def digits_run(digits_data, tmp_path_factory):
    """The folder of a finished run on `digits_data`; not to be written to."""
    from digits import SMALL

    import sogclr

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "digits"
    options = SMALL | {
        "epochs": 10,
        "optimizer": "adamw",
        "lr": 3e-3,
        "precision": "fp32",
    }
    return sogclr.train(digits_data, out, quiet=True, **options).path


@pytest.fixture
def no_waits():
    """Return a context in which an operation that waits for the CUDA device raises."""

    @contextmanager
    def context():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return context


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
