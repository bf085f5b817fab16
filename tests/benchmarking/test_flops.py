import json
import os
import subprocess
import sys

import pytest
from twins import twin

from academic_pretraining.benchmarking.flops import model_flops_per_example
from academic_pretraining.models import MODELS

REFUSES = "def {name}(*given, **named):\n    raise RuntimeError('{name} wants a GPU')\n"
KERNELS = {
    "mamba_ssm": ("mamba_inner_fn", "selective_scan_fn", "selective_state_update"),
    "causal_conv1d": ("causal_conv1d_fn", "causal_conv1d_update"),
}
COUNT = """
import json, torch
from academic_pretraining.benchmarking.build import build_model, custom_kernels
from academic_pretraining.benchmarking.flops import model_flops_per_example
from academic_pretraining.models import MODELS
from twins import twin
recipe = twin("mamba")
model = build_model(recipe, attention=None)
try:
    model(torch.zeros(1, 8, dtype=torch.int64))
    said = ""
except RuntimeError as error:
    said = str(error)
print(json.dumps([model_flops_per_example(recipe), custom_kernels(recipe, free_lunch=True), said]))
"""


@pytest.mark.parametrize("name", ["pythia-14m", "pythia-160m", "pythia-1b"])
def test_flops_of_a_language_model_are_those_of_its_products(name):
    recipe = MODELS[name]
    tokens, hidden = recipe.sequence_length or 0, recipe.architecture["hidden_size"]
    layers, vocabulary = recipe.architecture["num_hidden_layers"], recipe.num_classes
    # Of a layer: queries, keys, values, their projection, and two of 4 h x h; then the scores and
    # their product with the values, the lower half of which a causal model needs.
    weights = layers * 12 * hidden**2 + hidden * vocabulary
    forward = 2 * tokens * weights + layers * 2 * tokens**2 * hidden
    # Beside it only the table of rotations.
    assert model_flops_per_example(recipe) == pytest.approx(3 * forward, rel=1e-6)


def test_flops_of_mamba_are_those_of_the_paper():
    # arXiv 2410.23261, whose toolkit had this number: 68,275,048,284,160 of an example.
    assert model_flops_per_example(MODELS["mamba"]) == pytest.approx(68_275_048_284_160, rel=0.01)


@pytest.mark.slow
def test_kernels_that_are_installed_do_not_change_the_flops_of_mamba(tmp_path):
    for package, names in KERNELS.items():
        text = "\n".join(REFUSES.format(name=name) for name in names)
        (tmp_path / f"{package}.py").write_text(text)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    counted = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    flops, kernels, said = json.loads(counted.stdout.splitlines()[-1])
    assert flops == model_flops_per_example(twin("mamba")) > 0
    # They are what would have computed, or this test shows nothing.
    assert (kernels, said) == ("mamba-ssm", "mamba_inner_fn wants a GPU")
