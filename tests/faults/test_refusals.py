"""The words in which bad input is refused."""

import json
import os
import socket
import subprocess
import sys

import pytest
from exports import Exported
from in_process import COMMANDS, SCRIPTS, furnished, spoilt

EXPORT = "write one with scripts/to_training_arguments.py"
BY_FLAG = {
    ("print_optimal_config.py", "--num-nodes", "100001"): (
        "--num-nodes is 100001, but must be at most 100,000"
    ),
    ("to_training_arguments.py", "--micro-batch-size", "1000000000001"): (
        "micro_batch_size is 1000000000001, but must be at most 1,000,000,000,000: give a smaller "
        "number"
    ),
    ("benchmark.py", "--micro-batch-sizes", "3"): (
        "--micro-batch-sizes 3 does not divide the global batch of 1024 over 2 GPUs: --cmd dry-run "
        "shows plans"
    ),
    ("to_training_arguments.py", "--output", "/dev/stdout"): (
        "/dev/stdout cannot be written ([Errno 22] it is a device: '/dev/stdout'): name another "
        "file"
    ),
    ("training.py", "--launcher.workers-per-host", "1025"): (
        "--launcher.workers-per-host is 1025, but must be from 1 to 1,024"
    ),
    ("training.py", "--launcher.agent-timeout", "0"): (
        "--launcher.agent-timeout is 0, but must be from 1 to 1,000,000"
    ),
    ("verify.py", "--launcher.worker-timeout", "-1"): (
        "--launcher.worker-timeout is -1, but must be from 1 to 1,000,000"
    ),
    ("training.py", "--launcher.backend", "cpu:gloo,cuda:fast"): (
        "--launcher.backend has 'fast', which torch.distributed lacks: give nccl, gloo, mpi or ucc"
    ),
    ("verify.py", "--launcher.env-file", "missing"): (
        "--launcher.env-file missing is no file: name one, or none"
    ),
    ("training.py", "--launcher.hostnames", "slurm"): (
        "--launcher.hostnames slurm was given, but this is no SLURM job: leave it out"
    ),
    ("verify.py", "--launcher.hostnames", ""): (
        "--launcher.hostnames lacks a name: give one for each node"
    ),
    ("training.py", "--output-dir", "args.json/run"): (
        "args.json/run cannot be a folder for checkpoints, for it is a file or below one: name "
        "another"
    ),
}
BY_SETTING = {
    "sharpness": (1, f"args.setting.json holds 'sharpness', which no setting has: {EXPORT}"),
    "free_lunch": (1, f"args.setting.json says free_lunch is 1, which is none: {EXPORT}"),
    "model": ("gpt", f"args.setting.json says model is 'gpt', which is none: {EXPORT}"),
    "hardware": (
        {"num_nodes": 0, "gpus_per_node": 1, "gpu_type": "cpu"},
        "args.setting.json is for no hardware (--num-nodes is 0, but must be at least 1): "
        + EXPORT,
    ),
    "prediction": (
        {"step_seconds": True, "peak_bytes": 1},
        "the prediction beside args.json is none: export it again with "
        "scripts/to_training_arguments.py",
    ),
}


@pytest.mark.parametrize("case", BY_FLAG, ids=" ".join)
def test_a_flags_refusal_says_what_is_allowed(tmp_path, monkeypatch, case):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    script, flag, value = case
    said = furnished(tmp_path).refuses(script, *spoilt(script, flag, value))
    assert said == f"error: {BY_FLAG[case]}\n"


@pytest.mark.parametrize("script", COMMANDS)
def test_a_shell_without_completion_is_refused(tmp_path, script):
    said = furnished(tmp_path).refuses(script, "--tyro-print-completion", "nosuch")
    assert said.startswith("error: Shell should be one `bash`, ")
    assert said.endswith(", but got nosuch: --help lists the flags\n")


@pytest.mark.parametrize("words", [(), ("--num-nodes", "1", "--gpus-per-node", "1")])
def test_sizes_without_a_size_are_refused(tmp_path, words):
    said = furnished(tmp_path).refuses("benchmark.py", "--micro-batch-sizes", *words)
    assert said == "error: --micro-batch-sizes has no size: give some, or leave it out\n"


@pytest.mark.parametrize("script", COMMANDS)
def test_two_dashes_alone_are_refused(tmp_path, script):
    said = furnished(tmp_path).refuses(script, *COMMANDS[script], "--")
    assert said == "error: -- is unknown here: --help lists the flags\n"


@pytest.mark.parametrize("script", ["training.py", "verify.py"])
def test_data_to_evaluate_on_are_asked_for(tmp_path, script):
    exported = Exported(furnished(tmp_path))
    fields = exported.fields | {"eval_strategy": "steps", "eval_steps": 5}
    assert exported.refuses_fields(script, json.dumps(fields)) == (
        "error: args.json says eval_strategy is 'steps', but there is no data to evaluate on: say "
        '"no", or give the Trainer of scripts/training.py an eval_dataset\n'
    )


@pytest.mark.parametrize("script", ["training.py", "verify.py"])
def test_a_full_disk_for_temporary_files_is_said(tmp_path, monkeypatch, script):
    def gettempdir():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    place = furnished(tmp_path)
    monkeypatch.setattr("tempfile.gettempdir", gettempdir)
    assert place.refuses(script, *COMMANDS[script]) == (
        "error: there is no folder for temporary files ([Errno 2] No usable temporary directory "
        "found in ['/tmp']): name one with TMPDIR\n"
    )


@pytest.mark.parametrize("script", ["training.py", "verify.py"])
@pytest.mark.parametrize("name", ["args.json", "args.setting.json"])
def test_a_pipe_is_not_read(tmp_path, script, name):
    place = furnished(tmp_path)
    (place.folder / name).unlink()
    os.mkfifo(place.folder / name)
    assert place.refuses(script, *COMMANDS[script]) == (
        f"error: {name} is not a readable JSON file (it is no regular file): {EXPORT}\n"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        *({"step_seconds": 10**400}, {"step_seconds": 0}, {"peak_bytes": 1e30}),
        *({"peak_bytes": None}, {"mfu": []}, {"mfu": "x"}, {"mfu": -1}),
        {"step_seconds_standard_error": {}},
    ],
    ids=str,
)
def test_an_impossible_prediction_is_none(tmp_path, wrong):
    exported = Exported(furnished(tmp_path))
    predicted = {"step_seconds": 1.0, "peak_bytes": 1, "mfu": None} | wrong
    setting = json.dumps(exported.setting | {"prediction": predicted}).encode()
    assert exported.refuses("training.py", setting=setting) == (
        f"error: {BY_SETTING['prediction'][1]}\n"
    )


@pytest.mark.parametrize("name", BY_SETTING)
def test_a_settings_refusal_says_what_is_wrong(tmp_path, name):
    exported = Exported(furnished(tmp_path))
    value, message = BY_SETTING[name]
    setting = json.dumps(exported.setting | {name: value}).encode()
    assert exported.refuses("training.py", setting=setting) == f"error: {message}\n"


def test_a_workspace_below_a_file_is_named(tmp_path):
    place = furnished(tmp_path)
    place.workspace = place.folder / "args.json" / "results"
    said = place.refuses("benchmark.py", *COMMANDS["benchmark.py"])
    assert said == (
        f"error: the workspace {place.workspace} is below a file: name a folder with "
        "TANGO_WORKSPACE_DIR\n"
    )


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    # The tests may be run by root, who may.
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0)
    said = furnished(tmp_path).refuses("training.py", *COMMANDS["training.py"])
    assert said == (
        "error: run cannot be a folder for checkpoints, for . may not be written: name another\n"
    )


@pytest.mark.parametrize(
    "error", [socket.gaierror(-2, "Name or service not known"), OSError(28, "No space left")]
)
@pytest.mark.parametrize("script", ["training.py", "verify.py"])
def test_what_the_system_refuses_a_training_is_said_in_a_line(tmp_path, monkeypatch, script, error):
    def launcher(**options):
        raise error

    monkeypatch.setattr("in_process._accept", launcher)
    assert furnished(tmp_path).refuses(script, *COMMANDS[script]) == (
        f"error: the training of args.json failed: {type(error).__name__}: {error}; what workers "
        "said stands above\n"
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("benchmark.py", "what was measured is kept, run the same command to go on"),
        ("verify.py", "nothing is kept, run the same command to begin again"),
        ("training.py", "--resume goes on from the last checkpoint, where there is one"),
    ],
)
def test_an_interruption_says_what_is_kept(tmp_path, monkeypatch, script, said):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("in_process._accept", interrupt)
    place = furnished(tmp_path)
    here = ("--num-nodes", "1", "--gpus-per-node", "1", "--gpu-type", "cpu")
    arguments = here if script == "benchmark.py" else COMMANDS[script]
    assert place.run(script, *arguments) == (130, "", f"stopped: {said}\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_signs_gets_others(tmp_path, encoding):
    place = furnished(tmp_path)
    arguments = map(str, spoilt("benchmark.py", "--cmd", "print-results"))
    done = subprocess.run(
        [sys.executable, SCRIPTS / "benchmark.py", *arguments],
        cwd=place.folder,
        env=os.environ | place.environment() | {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"pythia-160m" in done.stdout
