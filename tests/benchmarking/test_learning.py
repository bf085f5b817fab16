import pytest
from trained import every_method, train_in_this_process

from academic_pretraining.benchmarking.build import build_model, parameter_count
from academic_pretraining.benchmarking.learning import check_learning, moved
from academic_pretraining.benchmarking.probes import Outcome
from academic_pretraining.errors import MeasurementError
from academic_pretraining.methods import Method, Sharding


@pytest.mark.slow
@every_method
def test_every_parameter_is_seen_to_move_on_one_of_the_ranks(recorded, method):
    session = recorded(method)
    ranks = [facts["moved"] for facts in session.facts]
    assert ranks[0].keys() == ranks[1].keys()
    still = {name for name in ranks[0] if not (ranks[0][name][1] or ranks[1][name][1])}
    unknown = {name for name in still if None in (ranks[0][name][1], ranks[1][name][1])}
    assert still == unknown
    if method.sharding in (Sharding.ZERO_1, Sharding.ZERO_2):
        assert unknown
        assert all(name.endswith("bias") or "norm" in name for name in unknown)
    else:
        assert not unknown
    sizes = {name: size for name, (size, _) in ranks[0].items()}
    assert sum(sizes.values()) == parameter_count(session.config.recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "first"),
    [
        # What is not decayed is not known there.
        pytest.param(Sharding.ZERO_2, "mlp.dense_h_to_4h", marks=pytest.mark.thorough),
        (Sharding.ZERO_3, "post_attention_layernorm"),
    ],
)
def test_a_setting_that_does_not_train_a_block_is_refused(
    altered_session, tiny_config, sharding, first
):
    config = tiny_config(Method(sharding=sharding))
    [result] = altered_session("alterations.cuts_off_a_block", config).end.results
    assert result.outcome is Outcome.CRASHED
    assert not result.transient
    named = f"gpt_neox.layers.0.{first}.weight"
    assert f"of the parameters got no gradient, {named} first" in result.cause


def test_what_lies_below_a_cut_is_found(tmp_path, tiny_config, own_trainer_state):
    recipe = tiny_config().recipe
    model = build_model(recipe, attention="eager")
    model.get_submodule("gpt_neox.layers.0").register_forward_hook(
        lambda module, inputs, output: output.detach()
    )
    found = moved(train_in_this_process(tmp_path, recipe, model))
    still = {name for name, (_, moves) in found.items() if not moves}
    assert "gpt_neox.embed_in.weight" in still
    assert all(name.startswith(("gpt_neox.embed_in", "gpt_neox.layers.0")) for name in still)
    assert found["lm_head.weight"] == (64 * 32, True)


def test_parts_of_the_ranks_are_taken_together():
    check_learning([{"a": (500, True), "b": (500, False)}, {"a": (500, False), "b": (500, True)}])


def test_a_small_part_may_stay_as_it_is():
    check_learning([{"a": (990, True), "b": (10, False)}])


def test_what_nobody_knows_is_not_held_against_it():
    check_learning([{"a": (500, True), "b": (500, False)}, {"a": (500, False), "b": (500, None)}])


def test_nothing_is_said_of_an_optimizer_that_did_not_step():
    check_learning([{}, {}])


def test_the_share_and_the_first_parameter_are_named():
    ranks = [{"a": (750, True), "b": (150, False), "c": (100, False)}] * 2
    with pytest.raises(MeasurementError) as caught:
        check_learning(ranks)
    assert str(caught.value) == (
        "25% of the parameters got no gradient, b first: what was measured does not train the model"
    )
