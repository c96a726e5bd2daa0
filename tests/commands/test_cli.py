"""The command line as a real process: every bad input is one sentence, exit code 2, and nothing written."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from digits import SMALL, environment, sogclr, sogclr_here, words, write_digits

from sogclr.cli import COMMANDS, main
from sogclr.config.schema import BASIC_OPTIONS
from sogclr.config.toml import option_names


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits", digits=4)


def refused(capsys, *args):
    """The one sentence of a refused command line (in this process, which has torch already)."""
    assert main([str(a) for a in args]) == 2
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("sogclr: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in out + error
    return lines[0].removeprefix("sogclr: ")


@pytest.mark.integration
def test_help_and_version_answer_at_once():
    """Without importing torch; the median of five, as a user feels it."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        result = sogclr("--help", check=0)
        times.append(time.perf_counter() - begun)
    assert all(name in result.stdout for name in COMMANDS)
    assert sorted(times)[2] < 2  # half a second on a quiet machine: the benchmark is the next assertion
    code = "import sys, sogclr.cli; sogclr.cli.main(['--help']); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), capture_output=True)
    assert sogclr("--version", check=0).stdout.strip()


def test_help_has_no_colours_where_they_are_not_wanted(monkeypatch, capsys):
    """As a terminal is told: the escape codes go, and no word."""
    monkeypatch.setattr("tyro._fmtlib._FORCE_ANSI", True)
    assert main(["embed", "--help"]) == 0
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured
    monkeypatch.undo()
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["embed", "--help"]) == 0
    assert capsys.readouterr().out == re.sub(r"\x1b\[[0-9;]*m", "", coloured)


@pytest.mark.integration
def test_the_shell_completes_commands_and_options(tmp_path):
    """In a real bash."""
    script = tmp_path / "sogclr"
    script.write_text(sogclr("completion", "bash", check=0).stdout)

    def completed(*typed):
        words, at = " ".join(map(shlex.quote, typed)), len(typed) - 1
        code = f'source {script}; COMP_WORDS=({words}); COMP_CWORD={at}; _sogclr; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True).stdout.split()

    assert completed("sogclr", "in") == ["inspect"]
    assert set(completed("sogclr", "")) == {*COMMANDS, "help", "completion"}
    assert completed("sogclr", "embed", "--as") == ["--as"]
    assert "--image-size" in completed("sogclr", "train", "--image")
    assert "bashcompinit" in sogclr("completion", "zsh", check=0).stdout
    assert "no completion for fish; give one of bash, zsh" in sogclr("completion", "fish", check=2).stderr


def test_an_out_that_cannot_be_is_said_before_the_plan(data, capsys):
    """By trying, as permissions say nothing to root; and nothing is left."""
    sentence = refused(capsys, "train", data, "--out", "/proc/sogclr/run")
    assert re.fullmatch(r"--out /proc/sogclr/run cannot be written to \(.*\); give another folder", sentence)
    assert main(["train", str(data), "--out", "/proc/sogclr/run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_compiler_that_is_missing_is_one_sentence(tmp_path):
    """In a process of its own, as torch asks for the compiler once."""
    environ = environment() | {"CXX": str(tmp_path / "no" / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    code = (
        "import torch; from sogclr.training.compiling import compiler_errors; from sogclr.errors import RunFailed\n"
        "try:\n    with compiler_errors():\n        torch.compile(torch.sin)(torch.ones(3))\n"
        "except RunFailed as error:\n    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=240
    )
    assert re.fullmatch(r"torch.compile failed \(.*\); install .* train without --compile\n", result.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: sogclr {name}" in out
    assert "DESCRIPTION" not in out
    assert main([name, "--help-all"]) == 0
    everything = capsys.readouterr().out
    assert (everything == out) == (name != "train")
    assert "None" not in everything  # what is chosen is said in words
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == out


def test_the_help_of_train_shows_what_a_first_run_needs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shown = {}
    for word in ("--help", "--help-all"):
        assert main(["train", word]) == 0
        shown[word] = re.findall(r"^. (--[a-z-]+)", capsys.readouterr().out, flags=re.M)
    assert set(shown["--help"]) == {
        "--config",
        *(f"--{name.replace('_', '-')}" for name in BASIC_OPTIONS if name != "data"),
    }
    assert 12 <= len(shown["--help"]) <= 18
    assert {f"--{name.replace('_', '-')}" for name in option_names()} - {"--data"} == {*shown["--help-all"]} - {
        "--config"
    }


def test_no_command_shows_the_usage(capsys):
    assert main([]) == 2
    assert "usage: sogclr COMMAND" in capsys.readouterr().out


def test_one_image_is_not_sent_to_a_batch_that_it_does_not_fill(data, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    shutil.copy(next(data.rglob("*.png")), tmp_path / "one")
    sentence = refused(capsys, "train", tmp_path / "one", "--out", tmp_path / "out")
    assert sentence.endswith("one has 1 usable images, fewer than one batch of 256; add images")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian", "x"], "there is no command 'trian'; did you mean train?"),
        (["train"], "Missing from sogclr train"),
        (["train", "{data}", "--out", "{out}", "--batch-sise", "8"], "--batch-sise"),
        (["train", "{data}", "--out", "{out}", "--batch-sise", "8"], "did you mean --batch-size?"),
        (["train", "{data}", "--out", "{out}", "--optimizer", "larz"], "invalid choice 'larz'"),
        (
            ["train", "{data}", "--out", "{out}", "--epochs", "many"],
            "--epochs must be a whole number and was 'many'",
        ),
        (
            ["train", "{data}", "--out", "{out}", "--temperature", "warm"],
            "--temperature must be a number and was 'warm'",
        ),
        (
            ["train", "{data}", "--out", "{out}", "--image-size", "32x32"],
            "--image-size must be a whole number and was '32x32'",
        ),
        (["train", "{data}", "--out", "{out}", "--lr", "it's"], '--lr must be a number and was "it\'s"'),
        (["train", "", "--out", "{out}"], "a path of DATA was empty"),
        (["train", "{data}", "--out", ""], "--out must be a folder and was empty"),
        (["train", "{data}", "--out", "/dev/null"], "--out /dev/null is a file; give a folder"),
        (["train", "{tmp}/nowhere", "--out", "{out}"], "there is no folder or list file {tmp}/nowhere"),
        (["train", "{empty}", "--out", "{out}"], "{empty}"),
        (["train", "{data}", "--out", "{out}"], "16 usable images, fewer than one batch of 256"),
        (["train", "{data}", "--out", "{out}", "--batch-size", "1"], "--batch-size must be 2 or more and was 1"),
        (["train", "{data}", "--out", "{out}", "--batch-size", "0"], "--batch-size must be 2 or more and was 0"),
        (["train", "{data}", "--out", "{out}", "--batch-size", "8", "--model", "resnet19"], "did you mean resnet1"),
        (
            ["train", "{data}", "--out", "{out}", "--temperature", "0"],
            "--temperature must be greater than 0 and was 0.0",
        ),
        (
            ["train", "{data}", "--out", "{out}", "--temperature", "-1"],
            "--temperature must be greater than 0 and was -1.0",
        ),
        (["train", "{data}", "--out", "{out}", "--gamma", "0"], "--gamma must be in (0, 1] and was 0.0"),
        (["train", "{data}", "--out", "{out}", "--gamma", "1.1"], "--gamma must be in (0, 1] and was 1.1"),
        (["train", "{data}", "--out", "{out}", "--labels", "{tmp}/no.csv", "--batch-size", "4"], "no.csv"),
        (
            ["train", "{data}", "--out", "{out}", "--config", "{tmp}/no.toml"],
            "there is no configuration file {tmp}/no.toml",
        ),
        (
            ["train", "{data}", "--out", "{out}", "--pretrained", "{tmp}/no.pth", "--batch-size", "4"],
            "there is no weights file",
        ),
        (
            ["train", "{data}", "--out", "{out}", "--init-from", "{tmp}", "--batch-size", "4"],
            "there is no run (no config.toml) in {tmp}",
        ),
        (["train", "{data}", "--out", "{other}", "--batch-size", "4"], "{other} holds other files (notes.md)"),
        (
            ["train", "{data}", "--out", "{other}/notes.md/run", "--batch-size", "4"],
            "lies in {other}/notes.md, which is a file; give a folder",
        ),
        (
            ["train", "{data}", "--out", "{out}", "--device", "cuda:7", "--batch-size", "4"],
            "--device cuda:7 is not there",
        ),
        (["resume", "{tmp}/nowhere"], "there is no folder {tmp}/nowhere"),
        (["resume", "{empty}"], "there is no run (no config.toml) in {empty}"),
        (["embed", "{tmp}/nowhere", "{data}", "--out", "{out}.npz"], "{tmp}/nowhere"),
        (["eval", "{tmp}/nowhere", "{data}"], "{tmp}/nowhere"),
        (["export", "{tmp}/nowhere"], "{tmp}/nowhere"),
        (["export", "{tmp}", "--format", "jpg"], "invalid choice 'jpg'"),
        (["report", "{tmp}/nowhere"], "{tmp}/nowhere"),
        (["inspect", "{tmp}/nowhere"], "{tmp}/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(args, message, data, tmp_path, capsys):
    places = {
        "data": data,
        "tmp": tmp_path,
        "out": tmp_path / "out",
        "empty": tmp_path / "empty",
        "other": tmp_path / "other",
    }
    places["empty"].mkdir()
    places["other"].mkdir()
    (places["other"] / "notes.md").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    sentence = refused(capsys, *(a.format(**places) for a in args))
    assert message.format(**places) in sentence
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlerning_rate = 1.0\n", "has no option 'lerning_rate'"),
        ("[optimizer]\nlr = 1.0\n", "has no table [optimizer]"),
        ('[run]\nepochs = "ten"\n', "run.epochs must be a whole number and was 'ten'"),
        ("[run]\nepochs = ten\n", "cannot be read as TOML"),
        ("[augment]\nflop = 0.1\n", "[augment] has no field 'flop'"),
        ("[augment]\nflip = 2.0\n", "augment.flip is a probability and was 2.0"),
        ('[augment]\nflip = "yes"\n', "augment.flip must be a number and was 'yes'"),
        ("[augment]\ncrop_scale = [0.5]\n", "augment.crop_scale is a range [low, high] of two numbers and was [0.5]"),
        ("augment = 3\n", "[augment] is a table of the configuration and was 3"),
        ("[recipe]\nflop = 0.1\n", "[augment] has no field 'flop'"),  # its old name
        ("[recipe]\nflip = 1.0\n[augment]\nflip = 0.0\n", "has [augment] and [recipe], which is its old name"),
        ("[loss]\ntemperature = inf\n", "--temperature must be a finite number and was inf"),
        ('[loss]\nmethod = "byol"\n', "loss.method must be one of sogclr, isogclr"),
    ],
)
def test_bad_configuration_files_are_named(text, message, data, tmp_path, capsys):
    (tmp_path / "c.toml").write_text(text)
    assert message in refused(capsys, "train", data, "--out", tmp_path / "out", "--config", tmp_path / "c.toml")
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_kept(data, tmp_path, capsys):
    """And a command line in a process of its own ends with the documented code."""
    args = ["train", data, "--out", tmp_path / "run", *words(SMALL | {"max_steps": 1})]
    assert main([str(word) for word in args]) == 0
    assert "encoder" in capsys.readouterr().out
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    result = sogclr(*args, check=2)
    assert result.stderr.startswith(f"sogclr: {tmp_path / 'run'} holds another run; continue it with `sogclr resume")
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_weights_that_do_not_fit_or_are_pickled_are_refused(data, tmp_path, capsys):
    args = ["train", data, "--out", tmp_path / "out", *words(SMALL), "--pretrained", tmp_path / "w.pth"]
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "w.pth")
    assert "does not hold the weights of resnet10_mini" in refused(capsys, *args)
    torch.save(Dangerous(), tmp_path / "w.pth")
    assert "cannot be read as weights" in refused(capsys, *args)
    assert not (tmp_path / "out").exists()


class Dangerous:
    """What a pickle could run."""


INTERRUPTED = """
import os, signal, sys
from sogclr.__main__ import main
times = [float(text) for text in sys.argv.pop(1).split()]
def press(*about):
    if times:
        signal.setitimer(signal.ITIMER_PROF, times.pop(0))
    os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGPROF, press)
signal.setitimer(signal.ITIMER_PROF, times.pop(0))
code = main()
signal.setitimer(signal.ITIMER_PROF, 0)
sys.exit(code)
"""


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="timers")
@pytest.mark.parametrize("times", ["0.03", "0.4", "1", "0.4 0.0003", "1 0.003"])
def test_an_interruption_during_imports_and_another_are_no_traceback(times):
    """The times are seconds of the processor, so that a busy machine changes nothing."""
    command = [sys.executable, "-c", INTERRUPTED, times, "train", "nowhere", "--out", "run"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode in ((130, -signal.SIGINT) if " " in times else (130,)), result.stderr
    assert result.stderr in ("sogclr: interrupted\n", "")


@pytest.mark.integration
def test_output_to_a_closed_pipe_is_no_error(data):
    command = [sys.executable, "-m", "sogclr", "inspect", str(data), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
        assert "Traceback" not in said
        assert process.wait() == 0, said


@pytest.mark.integration
@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_old_file_stands(data, tmp_path):
    """The limit on a file's size stands for a full disk."""
    import resource

    sogclr_here("train", data, "--out", tmp_path / "run", *words(SMALL | {"max_steps": 1}), check=0)
    out = tmp_path / "e.npz"
    out.write_bytes(b"old")
    limited = sogclr(
        "embed",
        tmp_path / "run",
        data,
        "--out",
        out,
        "--workers",
        0,
        check=1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)),
    )
    lines = [line for line in limited.stderr.splitlines() if line.startswith("sogclr: ")]
    assert len(lines) == 1, limited.stderr
    assert "Traceback" not in limited.stderr
    assert out.read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.integration
def test_another_process_in_the_same_run_or_file_is_refused(data, tmp_path, capsys):
    """The lock is held by a process of its own, as locks are a process's."""
    run, out = tmp_path / "run", tmp_path / "e.npz"
    sogclr_here("train", data, "--out", run, *words(SMALL | {"max_steps": 1}), check=0)
    (run / "encoder.safetensors").rename(tmp_path / "encoder.safetensors")
    code = (
        "import contextlib, pathlib, sys; from sogclr.files import file_lock\n"
        "with contextlib.ExitStack() as locks:\n"
        "    for path in sys.argv[1:]: locks.enter_context(file_lock(pathlib.Path(path), 'works'))\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    locks = [str(run / ".lock"), str(tmp_path / ".e.npz.lock")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *locks],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"
        assert f"another process trains in {run}" in refused(capsys, "resume", run)
        encoder = tmp_path / "encoder.safetensors"
        assert f"another process writes {out}" in refused(capsys, "embed", encoder, data, "--out", out)
        assert not out.exists()
        other.communicate()
    assert main(["resume", str(run)]) == 0
    assert not (run / ".lock").exists()


@pytest.mark.integration
def test_a_locale_without_the_letters_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "unicod\u00e9.png").write_text("no image")
    shown = sogclr("inspect", tmp_path / "photos", check=0)
    line = next(line for line in shown.stdout.splitlines() if "unicod" in line)
    assert line.endswith("its header is damaged")  # one file, one line, in a pipe
    assert "\\xe9" in line


@pytest.mark.slow
@pytest.mark.integration
def test_a_configuration_that_does_not_fit_the_checkpoint_is_named(data, tmp_path, capsys):
    run = tmp_path / "run"
    sogclr_here("train", data, "--out", run, *words(SMALL | {"max_steps": 1}), check=0)
    (run / "encoder.safetensors").unlink()
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("head_dim = ", "head_dim = 1"))
    assert f"does not fit {run / 'config.toml'}" in refused(capsys, "resume", run)
