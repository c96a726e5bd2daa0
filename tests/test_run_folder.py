import os
import subprocess
import sys

import torch

from sogclr.run_folder import RunFolder, load_checkpoint, save_checkpoint


def test_a_run_folder_says_where_it_is_and_how_far(tmp_path):
    run = RunFolder(tmp_path / "photos")
    assert repr(run) == f"RunFolder({str(tmp_path / 'photos')!r}, no run yet, step 0)"
    for step in (40, 1200):
        save_checkpoint(run, {"step": step, "weights": torch.ones(2)}, keep=1)
    run.config_file.touch()
    assert repr(run).endswith(", unfinished, step 1,200)")
    run.encoder_file.touch()
    assert repr(run).endswith(", finished, step 1,200)")
    assert os.fspath(run) == str(run.path)
    assert load_checkpoint(run.checkpoint_file(1200))["weights"].tolist() == [1, 1]


def test_a_run_folder_is_described_without_torch(tmp_path):
    code = f"import sys; from sogclr.run_folder import RunFolder; RunFolder({str(tmp_path)!r}).step; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
