"""RoBERTa (arXiv 1907.11692): a masked language model."""

from academic_pretraining.models.recipe import ModelRecipe, Precision, Task

ROBERTA = (
    ModelRecipe(
        name="roberta",
        config_class="RobertaConfig",
        model_class="RobertaForMaskedLM",
        architecture={
            "vocab_size": 50265,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        task=Task.MASKED_LM,
        sequence_length=512,
        num_classes=50265,
        parameter_count=355_412_057,
        parameter_count_source=(
            "355M in arXiv 1907.11692, section 4; the exact count is the architecture's"
        ),
        global_batch_size=8192,
        max_steps=500_000,
        precision=Precision.FP16,
        learning_rate=4e-4,
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        warmup_steps=30_000,
        max_grad_norm=0.0,
        attention_kernel="eager",
        layer_class="RobertaLayer",
        source="RoBERTa, arXiv 1907.11692, table 9 (large)",
        note="trained with every token as a label, as measured in arXiv 2410.23261",
    ),
)
