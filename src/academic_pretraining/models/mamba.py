"""Mamba (arXiv 2312.00752): a state-space language model."""

from academic_pretraining.models.recipe import ModelRecipe, Precision, Task

MAMBA = (
    ModelRecipe(
        name="mamba",
        config_class="MambaConfig",
        model_class="MambaForCausalLM",
        architecture={
            "vocab_size": 50280,
            "hidden_size": 2560,
            "num_hidden_layers": 64,
            "state_size": 16,
            "expand": 2,
            "conv_kernel": 4,
            "time_step_rank": 160,
            "use_bias": False,
            "use_conv_bias": True,
            "hidden_act": "silu",
            "layer_norm_epsilon": 1e-5,
            "residual_in_fp32": True,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        task=Task.CAUSAL_LM,
        sequence_length=4096,
        num_classes=50280,
        parameter_count=2_768_345_600,
        parameter_count_source=(
            "2.8B in arXiv 2312.00752, table 12; the exact count is that of the published weights "
            "state-spaces/mamba-2.8b-hf"
        ),
        global_batch_size=128,
        max_steps=572_204,
        precision=Precision.BF16,
        learning_rate=8e-4,
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.1,
        lr_scheduler_type="cosine_with_min_lr",
        # 1e-5, as a rate: from the value itself transformers 5.17 works the rate out with the
        # optimizer's defaults, which DeepSpeed's optimizer has not.
        lr_scheduler_kwargs={"min_lr_rate": 1e-5 / 8e-4},
        warmup_steps=57_220,
        max_grad_norm=1.0,
        supports_compile=False,
        layer_class="MambaBlock",
        kernel_packages=("mamba-ssm", "causal-conv1d", "mambapy"),
        source="Mamba, arXiv 2312.00752, appendix E.2 (five times the learning rate of GPT-3 2.7B)",
        note="fast only with the mamba-ssm and causal-conv1d kernels installed",
    ),
)
