"""Real training on two gloo workers: what each rank holds, and not what it was asked for."""

import tempfile

import pytest
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from trained import (
    COMPILED,
    FSDP_COMPILED,
    FSDP_FULL,
    FSDP_GRAD,
    NAIVE,
    ZERO_1,
    ZERO_2,
    ZERO_2_COMPILED,
    ZERO_3,
    every_method,
)

from academic_pretraining.benchmarking.build import parameter_count
from academic_pretraining.benchmarking.probes import Outcome, Purpose
from academic_pretraining.methods import Sharding

pytestmark = pytest.mark.slow

AS_WELL_COMPILED = pytest.param(ZERO_2_COMPILED, marks=pytest.mark.thorough)

# An epoch: four steps with 3 micro-batches each, and one with 1. Its first step is not timed.
MICRO_BATCHES, STEPS, TIMED = 13, 5, [3, 3, 3, 1]


@every_method
def test_a_session_trains_and_ends(recorded, method):
    session = recorded(method)
    assert session.end.finished
    [result] = session.end.results
    assert result.outcome is Outcome.OK
    assert (result.probe.purpose, result.probe.micro_batch_size) == (Purpose.TIMING, 1)
    # A slow machine ends it earlier.
    epochs = len(result.samples) // len(TIMED)
    assert 1 <= epochs <= result.probe.epochs == 3
    assert [s.accumulation for s in result.samples] == TIMED * epochs
    for facts in session.facts:
        assert facts["finite"]
        assert facts["global step"] == STEPS * epochs
        assert facts["seen"]["forward passes"] == MICRO_BATCHES * epochs


def test_compilations_are_cached_where_the_training_looks_for_them(recorded):
    session = recorded(NAIVE)
    for facts in session.facts:
        assert facts["temporary"] == [tempfile.gettempdir(), default_cache_dir()]
    # What torchrunx leaves for each session.
    assert len(list((session.directory / "tmp").iterdir())) == 1


@pytest.mark.parametrize(
    "method", [ZERO_1, ZERO_2, AS_WELL_COMPILED], ids=lambda method: method.label
)
def test_no_engine_of_deepspeed_outlives_its_probe(recorded, method):
    session = recorded(method)
    for rank in range(2):
        assert (session.directory / f"rank{rank}.engines").read_text() == "0"


@pytest.mark.parametrize(
    ("method", "wrapped", "inner"),
    [
        (NAIVE, "DistributedDataParallel", "DistributedDataParallel"),
        (COMPILED, "OptimizedModule", "DistributedDataParallel"),
        (ZERO_1, "DeepSpeedEngine", "DeepSpeedEngine"),
        (ZERO_2, "DeepSpeedEngine", "DeepSpeedEngine"),
        (ZERO_3, "DeepSpeedEngine", "DeepSpeedEngine"),
        pytest.param(
            *(ZERO_2_COMPILED, "DeepSpeedEngine", "DeepSpeedEngine"), marks=pytest.mark.thorough
        ),
        # Compiled first and sharded then.
        pytest.param(
            *(FSDP_COMPILED, "FSDPOptimizedModule", "GPTNeoXForCausalLM"),
            marks=pytest.mark.thorough,
        ),
        (FSDP_GRAD, "FSDPGPTNeoXForCausalLM", "FSDPGPTNeoXForCausalLM"),
        (FSDP_FULL, "FSDPGPTNeoXForCausalLM", "FSDPGPTNeoXForCausalLM"),
    ],
)
def test_the_backend_asked_for_wraps_the_model(recorded, method, wrapped, inner):
    for facts in recorded(method).facts:
        assert (facts["wrapped"], facts["inner"]) == (wrapped, inner)


@every_method
def test_each_rank_holds_its_share_of_the_parameters(recorded, method):
    session = recorded(method)
    whole = parameter_count(session.config.recipe)
    held = [facts["parameters"] for facts in session.facts]
    if method.sharding in (Sharding.FSDP_SHARD_GRAD_OP, Sharding.FSDP_FULL_SHARD, Sharding.ZERO_3):
        # Both halves of the embedding, and of all else; a little more where a size is odd.
        assert sum(held) == pytest.approx(whole, rel=0.01)
        assert held == pytest.approx([whole / 2] * 2, rel=0.01)
        largest = [facts["largest in full"] for facts in session.facts]
        assert max(largest) < session.config.recipe.architecture["hidden_size"] * 4
    else:
        assert held == [whole, whole]


@every_method
def test_each_rank_holds_its_share_of_the_optimizer_state(recorded, method):
    session = recorded(method)
    whole = parameter_count(session.config.recipe)
    held = [facts["optimizer state"] for facts in session.facts]
    if method.sharding is Sharding.NONE:
        assert held == [whole, whole]
    else:
        assert held == pytest.approx([whole / 2] * 2, rel=0.01)
        assert sum(held) >= whole


@pytest.mark.parametrize(
    ("method", "partitioned"),
    [
        (ZERO_1, False),
        (ZERO_2, True),
        pytest.param(ZERO_2_COMPILED, True, marks=pytest.mark.thorough),
    ],
)
def test_zero_2_partitions_gradients_and_zero_1_does_not(recorded, method, partitioned):
    for facts in recorded(method).facts:
        assert facts["partitions gradients"] == partitioned


@pytest.mark.parametrize(("method", "times"), [(FSDP_GRAD, 0), (FSDP_FULL, 1)])
def test_full_sharding_lets_go_of_a_layer_after_its_forward_pass(recorded, method, times):
    for facts in recorded(method).facts:
        found = facts["seen"].get("layers resharded after forward", 0)
        assert found == times * facts["seen"]["forward passes"]


@pytest.mark.parametrize(
    "method", [NAIVE, ZERO_1, FSDP_GRAD, FSDP_FULL, ZERO_3], ids=lambda method: method.label
)
def test_checkpointing_runs_each_layer_a_second_time(recorded, method):
    runs = 2 if method.activation_checkpointing else 1
    for facts in recorded(method).facts:
        assert facts["seen"]["layer runs"] == runs * facts["seen"]["forward passes"]


@pytest.mark.parametrize(
    "method", [NAIVE, COMPILED, ZERO_1, ZERO_2, AS_WELL_COMPILED], ids=lambda m: m.label
)
def test_whole_copies_stay_the_same_on_all_ranks(recorded, method):
    # They see different data, so that without a synchronisation they would drift apart.
    first, second = (facts["sum of squares"] for facts in recorded(method).facts)
    assert first == second


@every_method
def test_graphs_are_counted_where_there_are_any(recorded, method):
    [result] = recorded(method).end.results
    assert result.probe.compile == method.free_lunch
    assert (result.graphs > 0) == method.free_lunch


def test_fsdp_that_accelerate_drops_never_counts_as_fsdp(altered_session, tiny_config):
    session = altered_session("alterations.without_help", tiny_config(FSDP_GRAD))
    assert not session.end.finished
    [result] = session.end.results
    assert result.outcome is Outcome.CRASHED
    assert "not in force: sharding backend is None instead of fsdp" in result.cause
