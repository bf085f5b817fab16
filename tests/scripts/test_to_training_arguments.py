import hashlib
import json

import pytest

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.training_arguments import training_arguments_fields

SCRIPT = "to_training_arguments.py"
ON_TWO = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="a100")
TARGET = ("--num-nodes", 1, "--gpus-per-node", 2, "--gpu-type", "a100", "--model", "pythia-160m")
ALONE = ("--num-nodes", 1, "--gpus-per-node", 1, "--gpu-type", "a100", "--model", "pythia-160m")
BATCH = ("--micro-batch-size", 8, "--gradient-accumulation-steps", 64)
BOTH = (
    "--micro-batch-size and --gradient-accumulation-steps are both needed: give them, or --optimal "
    "for the measured winner"
)
WINNER = "--optimal takes the measured winner: leave the method and batch flags out"
METHOD = Method(free_lunch=True, activation_checkpointing=True, sharding=Sharding.ZERO_2)
METHOD_FLAGS = ("--free-lunch", "--activation-checkpointing", "--sharding", "zero_2")

REFUSED = {
    "no batch": (TARGET, BOTH),
    "no accumulation": ((*TARGET, *BATCH[:2]), BOTH),
    "no micro-batch": ((*TARGET, *BATCH[2:]), BOTH),
    "another batch": (
        (*TARGET, *BATCH[:3], 63),
        "2 GPUs x micro-batch 8 x 63 accumulation steps is a global batch of 1008, but pythia-160m "
        "trains with 1024: choose a micro-batch size among 1, 2, 4, 8, 16, 32, 64, 128, 256, 512 "
        "and accumulation steps to match, or allow a difference with --batch-tolerance",
    ),
    **{
        f"micro-batch {size}": (
            (*TARGET, "--micro-batch-size", size, *BATCH[2:]),
            f"micro_batch_size is {size}, but must be at least 1: give a positive number",
        )
        for size in (0, -1)
    },
    **{
        f"accumulation {steps}": (
            (*TARGET, *BATCH[:3], steps),
            f"gradient_accumulation_steps is {steps}, but must be at least 1: "
            "give a positive number",
        )
        for steps in (0, -1)
    },
    **{
        f"tolerance {tolerance}": (
            (*TARGET, *BATCH, "--batch-tolerance", tolerance),
            f"batch tolerance is {float(tolerance)}, but must be at least 0 and below 1: "
            "0.01 allows 1%",
        )
        for tolerance in (-0.5, 1, "nan")
    },
    "offloading alone": (
        (*TARGET, *BATCH, "--offloading"),
        "offloading needs sharding, which decides what is offloaded: choose a sharding method",
    ),
    "sharding alone": (
        (*ALONE, "--sharding", "zero_1", *BATCH[:3], 128),
        "ZeRO-1 on 1 GPU divides nothing: use more GPUs or add offloading",
    ),
    "three GPUs": (
        (*TARGET[:3], 3, *TARGET[4:], *BATCH),
        "a global batch of 1024 does not divide over 3 GPUs: the nearest that does is 1023; allow "
        "it with --batch-tolerance 0.001, or use a number of GPUs that divides 1024",
    ),
    "optimal without results": (
        (*TARGET, "--optimal"),
        "no result yet for pythia-160m on 1 x 2 a100: run scripts/benchmark.py with the same "
        "flags first",
    ),
    **{
        f"optimal with {flags[0]}": ((*TARGET, "--optimal", *flags), WINNER)
        for flags in (
            *(("--free-lunch",), ("--activation-checkpointing",), ("--offloading",)),
            *(("--sharding", "zero_1"), BATCH[:2], BATCH[2:]),
        )
    },
}


@pytest.mark.parametrize(
    "flag",
    [
        *(["--no-free-lunch"], ["--free_lunch"], ["--no-activation-checkpointing"]),
        *(["--no-offloading"], ["--sharding", "none"], ["--sharding=none"]),
        ["--batch-tolerance", 0.0],
    ],
    ids=str,
)
def test_flags_that_the_winner_may_contradict_are_refused_with_their_defaults_too(cli, flag):
    assert cli.refuses(SCRIPT, "--output", "a.json", *TARGET, "--optimal", *flag) == WINNER


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused_in_a_line(cli, case):
    arguments, message = REFUSED[case]
    assert cli.refuses(SCRIPT, "--output", "args.json", *arguments) == message


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--sharding", "zero_4"), "invalid choice 'zero_4' for argument '--sharding'"),
        (("--micro-batch-size", "big"), "--micro-batch-size: "),
        (("--gradient-accumulation-steps", "1.5"), "--gradient-accumulation-steps: "),
        (("--batch-tolerance", "some"), "--batch-tolerance: "),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(cli, arguments, text):
    assert text in cli.refuses(SCRIPT, "--output", "args.json", *TARGET, *BATCH, *arguments)


@pytest.mark.parametrize("output", [".", "file/args.json", "there"])
def test_an_output_that_cannot_be_written_is_refused(cli, output):
    (cli.folder / "file").write_text("mine")
    (cli.folder / "there").mkdir()
    message = cli.refuses(SCRIPT, "--output", output, *TARGET, *BATCH)
    assert message.startswith(f"{output} cannot be written ([Errno ")
    assert message.endswith("): name another file")


def read(cli, name: str = "deep/args") -> tuple[dict, dict]:
    paths = [cli.folder / f"{name}{end}.json" for end in ("", ".setting")]
    fields, setting = (json.loads(path.read_text()) for path in paths)
    return fields, setting


def test_flags_are_exported_as_they_train(cli):
    arguments = ("--output", "deep/args.json", *TARGET, *METHOD_FLAGS, *BATCH)
    answer = cli(SCRIPT, *arguments)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == (
        "deep/args.json: pythia-160m on 2 x a100: free-lunch + checkpointing + ZeRO-2, micro-batch "
        "8 x accumulation 64\n"
    )
    fields, setting = read(cli)
    config = TrainingConfig(hardware=ON_TWO, recipe=MODELS["pythia-160m"], method=METHOD)
    assert fields == training_arguments_fields(config, config.plan(8, 64))
    assert "output_dir" not in fields
    assert setting == {
        "model": "pythia-160m",
        "attention": "sdpa",
        "free_lunch": True,
        "hardware": {"num_nodes": 1, "gpus_per_node": 2, "gpu_type": "a100"},
        "method": "free-lunch + checkpointing + ZeRO-2",
        "prediction": None,
        "arguments_sha256": hashlib.sha256(
            (cli.folder / "deep/args.json").read_bytes()
        ).hexdigest(),
    }
    before = cli.files()
    assert cli(SCRIPT, *arguments) == answer
    assert cli.files() == before


def test_the_measured_winner_is_what_its_flags_export(cli, remember, made_up):
    remember(
        made_up(ON_TWO, Method(), 3.0),
        made_up(ON_TWO, METHOD, 2.0),
        made_up(ON_TWO, Method(free_lunch=True), 1.0, model="vit"),
    )
    answers = [
        cli(SCRIPT, "--output", f"{name}.json", *TARGET, *how)
        for name, how in (
            *(("a", ("--optimal",)), ("b", ("--optimal",)), ("c", (*METHOD_FLAGS, *BATCH))),
        )
    ]
    assert [answer.status for answer in answers] == [0, 0, 0]
    assert answers[0].out == (
        "a.json: pythia-160m on 2 x a100: free-lunch + checkpointing + ZeRO-2, micro-batch 8 x "
        "accumulation 64, predicted 2 s a step\n"
    )
    for end in (".json", ".setting.json"):
        [content] = {(cli.folder / f"{name}{end}").read_bytes() for name in "abc"}
        assert content.endswith(b"}\n")
    fields, setting = read(cli, "a")
    assert fields["deepspeed"]["zero_optimization"]["stage"] == 2
    assert setting["prediction"] == {
        "step_seconds": 2.0,
        "step_seconds_standard_error": 0.01,
        "peak_bytes": 3 * 2**30,
        "mfu": 0.4,
        "compiled": True,
    }


@pytest.mark.parametrize("sharding", ["zero_3", "fsdp_full_shard", "fsdp_shard_grad_op"])
def test_what_a_model_has_to_be_built_for_is_said(cli, sharding):
    flags = ("--free-lunch", "--activation-checkpointing", "--sharding", sharding)
    answer = cli(SCRIPT, "--output", "deep/args.json", *TARGET, *flags, *BATCH)
    assert answer.status == 0
    assert answer.err == (
        "deep/args.json needs a model of scripts/training.py's build_model_for, which compiles the "
        "layers that are recomputed: others train slower\n"
    )


def test_where_compilation_was_given_up_nothing_has_to_be(cli, remember, made_up):
    method = Method(
        free_lunch=True, activation_checkpointing=True, sharding=Sharding.FSDP_FULL_SHARD
    )
    remember(made_up(ON_TWO, method, 2.0, compile_state="failed"))
    answer = cli(SCRIPT, "--output", "deep/args.json", *TARGET, "--optimal")
    assert (answer.status, answer.err) == (0, "")
    assert not read(cli)[0].get("torch_compile")


def test_a_winner_within_a_tolerance_needs_no_flag_for_it(cli, remember, made_up):
    on_three = Hardware(num_nodes=1, gpus_per_node=3, gpu_type="a100")
    remember(made_up(on_three, Method(), 3.0, micro_batch_size=11, tolerance=0.001))
    target = (*TARGET[:3], 3, *TARGET[4:])
    answer = cli(SCRIPT, "--output", "deep/args.json", *target, "--optimal")
    assert (answer.status, answer.err) == (0, "")
    fields, setting = read(cli)
    assert fields["per_device_train_batch_size"] == 11
    assert fields["gradient_accumulation_steps"] == 31
    assert setting["prediction"]["step_seconds"] == 3.0


# The plan that was measured, and another one.
@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize(("state", "compiled"), [("on", True), ("failed", False)])
def test_what_failed_to_compile_is_exported_without(cli, remember, made_up, size, state, compiled):
    remember(made_up(ON_TWO, METHOD, 2.0, compile_state=state))
    batch = ("--micro-batch-size", size, "--gradient-accumulation-steps", 512 // size)
    answer = cli(SCRIPT, "--output", "deep/args.json", *TARGET, *METHOD_FLAGS, *batch)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.endswith(", predicted 2 s a step\n") is (size == 8)
    fields, setting = read(cli)
    assert fields["torch_compile"] is compiled
    assert (setting["prediction"] is not None) is (size == 8)


def test_the_winner_of_an_older_recipe_is_not_exported(cli, remember, made_up):
    old = made_up(ON_TWO, METHOD, 2.0)
    old["config"]["recipe"]["learning_rate"] = 1.0
    remember(old)
    arguments, message = REFUSED["optimal without results"]
    assert cli.refuses(SCRIPT, "--output", "args.json", *arguments) == message
