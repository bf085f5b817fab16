"""Pythia (arXiv 2304.01373): decoder-only language models on the Pile."""

from academic_pretraining.models.recipe import ModelRecipe, Precision, Task

_SOURCE = "Pythia, arXiv 2304.01373, table 1 and appendix; github.com/EleutherAI/pythia configs"


def _pythia(
    size: str,
    *,
    layers: int,
    hidden: int,
    heads: int,
    learning_rate: float,
    parameter_count: int,
    precision: Precision = Precision.FP16,
    vocab_size: int = 50304,
) -> ModelRecipe:
    return ModelRecipe(
        name=f"pythia-{size}",
        config_class="GPTNeoXConfig",
        model_class="GPTNeoXForCausalLM",
        architecture={
            "vocab_size": vocab_size,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
            "hidden_act": "gelu",
            # Rotary positions have no parameters; one more than the published 2,048, because an
            # example has 2,049 tokens.
            "max_position_embeddings": 2049,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
            "use_parallel_residual": True,
            "attention_bias": True,
            "layer_norm_eps": 1e-5,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        task=Task.CAUSAL_LM,
        sequence_length=2049,
        num_classes=vocab_size,
        parameter_count=parameter_count,
        parameter_count_source="github.com/EleutherAI/pythia README, table of models",
        global_batch_size=1024,
        max_steps=143_000,
        precision=precision,
        learning_rate=learning_rate,
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.01,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=1430,
        max_grad_norm=1.0,
        attention_kernel="sdpa",
        layer_class="GPTNeoXLayer",
        source=_SOURCE,
        note=(
            "2,049 tokens an example, as published; 2,048 runs 3-7% faster on an H200"
            + (
                f"; vocabulary padded to {vocab_size}, as in the published weights"
                if vocab_size != 50304
                else ""
            )
        ),
    )


PYTHIA = (
    _pythia("14m", layers=6, hidden=128, heads=4, learning_rate=1e-3, parameter_count=14_067_712),
    _pythia("31m", layers=6, hidden=256, heads=8, learning_rate=1e-3, parameter_count=30_494_720),
    _pythia("70m", layers=6, hidden=512, heads=8, learning_rate=1e-3, parameter_count=70_426_624),
    _pythia(
        "160m", layers=12, hidden=768, heads=12, learning_rate=6e-4, parameter_count=162_322_944
    ),
    _pythia(
        "410m", layers=24, hidden=1024, heads=16, learning_rate=3e-4, parameter_count=405_334_016
    ),
    _pythia(
        "1b",
        layers=16,
        hidden=2048,
        heads=8,
        learning_rate=3e-4,
        parameter_count=1_011_781_632,
        precision=Precision.BF16,
    ),
    _pythia(
        "1.4b",
        layers=24,
        hidden=2048,
        heads=16,
        learning_rate=2e-4,
        parameter_count=1_414_647_808,
    ),
    _pythia(
        "2.8b",
        layers=32,
        hidden=2560,
        heads=32,
        learning_rate=1.6e-4,
        parameter_count=2_775_208_960,
    ),
    _pythia(
        "6.9b",
        layers=32,
        hidden=4096,
        heads=32,
        learning_rate=1.2e-4,
        parameter_count=6_857_302_016,
        vocab_size=50432,
    ),
    _pythia(
        "12b",
        layers=36,
        hidden=5120,
        heads=40,
        learning_rate=1.2e-4,
        parameter_count=11_846_072_320,
        vocab_size=50688,
    ),
)
