"""A training and its scores in the cells of a notebook, by a real kernel."""

import pytest
from digits import SMALL

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the client's own
    pytest.mark.filterwarnings("ignore::RuntimeWarning:zmq"),
]


def test_a_cell_has_one_output_that_is_rewritten_and_results_are_tables(digits_data, tmp_path):
    options = SMALL | {"epochs": 12, "workers": 0}
    cells = [f"import sogclr; run = sogclr.train({str(digits_data / 'train')!r}, 'run', **{options!r})"]
    cells += [f"sogclr.evaluate(run.path, {str(digits_data / 'test')!r})", "from sogclr.progress import Progress"]
    cells += ["import time\nwith Progress(every=0.0) as progress:\n    report = progress.callback('reading')"]
    cells[-1] += "\n    for done in range(5): report(done, 4); time.sleep(0.01)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    updates = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, cell_index):
            if message["msg_type"] == "update_display_data":
                updates.append(message["content"]["data"]["text/plain"])
            return super().process_message(message, cell, cell_index)

    Client(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    training, table, _, reading = ([dict(output) for output in cell.outputs] for cell in notebook.cells)
    assert [output["output_type"] for output in training] == ["display_data"]  # no warning, nothing on a stream
    lines = training[0]["data"]["text/plain"].splitlines()
    assert lines[0].startswith("images")
    assert lines[-1].startswith("trained 12 epochs in ")
    assert not [line for line in lines if " left" in line]
    assert "kNN" in table[-1]["data"]["text/plain"]
    assert [output["data"]["text/plain"] for output in reading] == [""]
    assert [line.split(",")[0] for line in updates[-4:]] == [*(f"reading {k}/4" for k in (2, 3, 4)), ""]
