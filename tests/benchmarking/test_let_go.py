import pytest
from one_rank import found_on_one_rank

from academic_pretraining.methods import Sharding


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [Sharding.ZERO_2, Sharding.ZERO_3])
def test_nothing_of_a_trained_model_is_left(sharding, tmp_path):
    assert found_on_one_rank("let_go.py", sharding, tmp_path, "helped") == []


@pytest.mark.slow
@pytest.mark.thorough
def test_without_help_deepspeed_keeps_a_model_under_zero_3(tmp_path):
    # When this fails, DeepSpeed lets go by itself: take `_empty_zero_3` out.
    assert found_on_one_rank("let_go.py", Sharding.ZERO_3, tmp_path, "unhelped") == [
        "model",
        "engine",
        "optimizer",
    ]


@pytest.mark.slow
def test_a_deepspeed_that_has_changed_costs_no_result(tmp_path):
    assert found_on_one_rank("let_go.py", Sharding.ZERO_2, tmp_path, "changed") == []
