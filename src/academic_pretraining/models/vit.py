"""Vision Transformer (arXiv 2010.11929): an image classifier."""

from academic_pretraining.models.recipe import ModelRecipe, Precision, Task

VIT = (
    ModelRecipe(
        name="vit",
        config_class="ViTConfig",
        model_class="ViTForImageClassification",
        architecture={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "image_size": 224,
            "patch_size": 16,
            "num_channels": 3,
            "qkv_bias": True,
            "num_labels": 21841,
        },
        task=Task.IMAGE_CLASSIFICATION,
        image_size=224,
        num_classes=21841,
        parameter_count=325_688_657,
        parameter_count_source=(
            "307M in arXiv 2010.11929, table 1, with the head of ImageNet-1K; the exact count is "
            "the architecture's with 21,841 classes"
        ),
        global_batch_size=4096,
        max_steps=311_948,
        precision=Precision.FP32,
        learning_rate=1e-3,
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=0.03,
        lr_scheduler_type="linear",
        warmup_steps=10_000,
        max_grad_norm=1.0,
        attention_kernel="sdpa",
        layer_class="ViTLayer",
        source="ViT, arXiv 2010.11929, table 3 (ViT-L/16, ImageNet-21k)",
    ),
)
