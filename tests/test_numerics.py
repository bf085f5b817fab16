import pytest

from academic_pretraining.config import TrainingConfig
from academic_pretraining.gpus import Hardware
from academic_pretraining.methods import Method, Sharding
from academic_pretraining.models import MODELS
from academic_pretraining.models.recipe import Precision
from academic_pretraining.numerics import REFERENCE, numerics


@pytest.mark.parametrize(
    ("sharding", "precision", "tf32", "said"),
    [
        (Sharding.NONE, Precision.FP16, True, REFERENCE),
        (Sharding.NONE, Precision.FP32, False, REFERENCE),
        (Sharding.NONE, Precision.FP32, True, "TF32 products"),
        (Sharding.ZERO_1, Precision.BF16, True, "bf16 parameters"),
        (Sharding.ZERO_3, Precision.FP16, False, "fp16 parameters"),
        (Sharding.ZERO_2, Precision.FP32, False, REFERENCE),
        (Sharding.FSDP_FULL_SHARD, Precision.BF16, True, "bf16 parameters in compute"),
    ],
)
def test_what_differs_is_named(sharding, precision, tf32, said):
    assert numerics(sharding, precision, tf32=tf32) == said


def test_a_configuration_says_its_own():
    hardware = Hardware(num_nodes=1, gpus_per_node=2, gpu_type="cpu")
    config = TrainingConfig(
        hardware=hardware,
        recipe=MODELS["pythia-160m"],
        method=Method(free_lunch=True, sharding=Sharding.ZERO_1),
    )
    # A CPU trains in fp32, whatever the recipe says.
    assert config.numerics == REFERENCE
