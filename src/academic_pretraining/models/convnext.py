"""ConvNeXt (arXiv 2201.03545): convolutional image classifiers."""

from academic_pretraining.models.recipe import ModelRecipe, Precision, Task


def _convnext(
    name: str,
    *,
    hidden_sizes: tuple[int, ...],
    num_classes: int,
    max_steps: int,
    warmup_steps: int,
    parameter_count: int,
    published: str,
    table: str,
) -> ModelRecipe:
    return ModelRecipe(
        name=name,
        config_class="ConvNextConfig",
        model_class="ConvNextForImageClassification",
        architecture={
            "num_channels": 3,
            "patch_size": 4,
            "num_stages": 4,
            "hidden_sizes": list(hidden_sizes),
            "depths": [3, 3, 27, 3],
            "hidden_act": "gelu",
            "initializer_range": 0.02,
            "layer_norm_eps": 1e-12,
            "layer_scale_init_value": 1e-6,
            "drop_path_rate": 0.0,
            "image_size": 224,
            "num_labels": num_classes,
        },
        task=Task.IMAGE_CLASSIFICATION,
        image_size=224,
        num_classes=num_classes,
        parameter_count=parameter_count,
        parameter_count_source=(
            f"{published} in arXiv 2201.03545; the exact count is the architecture's"
        ),
        global_batch_size=4096,
        max_steps=max_steps,
        precision=Precision.FP32,
        learning_rate=4e-3,
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps,
        max_grad_norm=0.0,
        layer_class="ConvNextStage",
        source=f"ConvNeXt, arXiv 2201.03545, {table}",
    )


CONVNEXT = (
    _convnext(
        "convnext-large-1k",
        hidden_sizes=(192, 384, 768, 1536),
        num_classes=1000,
        max_steps=93_600,
        warmup_steps=6_240,
        parameter_count=197_767_336,
        published="198M",
        table="table 5 (ImageNet-1K)",
    ),
    _convnext(
        "convnext-large-22k",
        hidden_sizes=(192, 384, 768, 1536),
        num_classes=21841,
        max_steps=311_940,
        warmup_steps=17_330,
        parameter_count=229_799_953,
        published="198M with the head of ImageNet-1K",
        table="table 5 (ImageNet-22K)",
    ),
    _convnext(
        "convnext-xlarge-22k",
        hidden_sizes=(256, 512, 1024, 2048),
        num_classes=21841,
        max_steps=311_940,
        warmup_steps=17_330,
        parameter_count=392_900_177,
        published="350M with the head of ImageNet-1K",
        table="table 5 (ImageNet-22K)",
    ),
)
