"""What was published of CatLIP: pretraining and transfer."""

from collections.abc import Mapping

from big_vlp.augment.learned import RangeAugment
from big_vlp.recipes import mean_batch
from tests.recipes.rows import CROPS, UNKNOWN, Recipe, Row, epochs, fixed, tower

SOURCE = "arXiv 2404.15653 and apple/corenet, projects/catlip"
SIZES = {  # learning rate, width, layers, heads
    "b16": (1e-3, 768, 12, 12),
    "l16": (6e-4, 1024, 24, 16),
    "h16": (4e-4, 1280, 32, 20),
}


def images_per_step(config: Mapping) -> float:
    size = config["preprocess"]["image_size"]
    return round(mean_batch(config["plan"], size, config["global_batch"]))


def size_range(config: Mapping) -> str:
    sizes = config["plan"]["sizes"]
    return f"{len(sizes)} sizes, {min(sizes)} to {max(sizes)}"


def psnr(config):
    augment = RangeAugment(**config["method"]["augment"])
    return augment.start_psnr, augment.end_psnr


def rhythm(config):
    return "each step" if config["optim"]["epoch_steps"] is None else "once an epoch"


def validation(config):
    return config["preprocess"]["resize_size"], config["preprocess"]["image_size"]


def caption_fields(config):
    found = config["views"]["caption_fields"]
    return "one, the raw one" if found == ("raw_caption",) else found


CROP_ROWS = [
    Row("area of crops", (0.08, 1.0), "views.crop_scale"),
    Row("resizing of crops", "PIL, bilinear", fixed("OpenCV, 2x2 means, bilinear"), CROPS),
    Row("flips", 0.5, "views.flip_prob"),
]
AUGMENT_ROWS = [
    Row("RangeAugment, dB of the target", (40.0, 20.0), psnr),
    Row("decay of the average", 1 - 5e-4, "method.ema_decay"),
]
PRETRAINING_ROWS = [  # of all sizes
    Row(
        "updates",
        200_001,
        "total_steps",
        "200,000 are asked for; the released loop makes one more, at the last rate",
    ),
    Row("warm-up steps", 10_000, "optim.warmup_steps"),
    Row("warm-up from", 1e-6, "optim.initial_learning_rate"),
    Row(
        "learning rates rounded to",
        "8 decimals",
        fixed("not rounded"),
        "at most 5e-9: a tenth of a per cent of the smallest rate of pretraining",
    ),
    Row("weight decay", 0.2, "optim.weight_decay"),
    Row("Adam beta1", 0.9, "optim.beta1"),
    Row("Adam beta2", 0.999, "optim.beta2"),
    Row("Adam epsilon", 1e-8, "optim.epsilon"),
    Row("gradient norm clipped at", 1.0, "optim.clip_norm"),
    Row("image sizes", "13 sizes, 128 to 320", size_range),
    Row("images of a step, on average", 83_333, images_per_step),
    *CROP_ROWS,
    *AUGMENT_ROWS,
    Row("precision", "bfloat16", "method.dtype"),
    Row(
        "BatchNorm normalises over",
        "each GPU's images",
        fixed("the batch"),
        "one number, however many devices there are",
    ),
    Row("probability of a label at the start", 0.5, "method.prior"),
]


def catlip() -> list[Recipe]:
    recipes = []
    for model, (rate, width, layers, heads) in SIZES.items():
        rows = [
            Row("base batch, at 224 pixels", 65_536, "global_batch"),
            *tower("method.model", width=width, layers=layers, heads=heads),
            Row("learning rate, peak", rate, "optim.learning_rate"),
            Row("learning rate, last (cosine)", rate / 100, "optim.final_learning_rate"),
        ]
        if model == "b16":
            rows += PRETRAINING_ROWS
        title = f"CatLIP on DataComp, ViT-{model[0].upper()}/16"
        recipes.append(Recipe(title, SOURCE, "catlip", f"model={model}", rows))
    rows = [
        Row("base batch, at 224 pixels", 2048, "global_batch"),
        Row("epochs", 100, epochs(2_900_000)),
        Row("learning rate, peak", 2e-3, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 2e-5, "optim.final_learning_rate"),
        Row("warm-up steps", UNKNOWN, "optim.warmup_steps", "a guess: 4 % of the run"),
        Row("weight decay", 0.2, "optim.weight_decay"),
        Row("captions an image", "one, the raw one", caption_fields),
    ]
    recipes.append(Recipe("CatLIP on CC3M", f"{SOURCE[:16]}, table 6", "catlip",
                          "data=cc3m", rows))  # fmt: skip
    return recipes + transfer()


def transfer() -> list[Recipe]:
    by_epoch = Row("the cosine moves", "once an epoch", rhythm)
    shared = [
        by_epoch,
        Row("warm-up from", 1e-6, "optim.initial_learning_rate"),
        Row("warm-up steps", 500, "optim.warmup_steps"),
        Row("weight decay", 0.05, "optim.weight_decay"),
        Row("Adam beta2", 0.999, "optim.beta2"),
        Row("gradient norm clipped at", 1.0, "optim.clip_norm"),
        *CROP_ROWS,
        *AUGMENT_ROWS,
        Row("precision", "bfloat16", "method.dtype"),
    ]
    probe = [
        Row("epochs", 30, epochs(1_281_167)),
        Row("batch", 256, "global_batch"),
        Row("learning rate, peak", 3e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 1e-6, "optim.final_learning_rate"),
        Row("warm-up steps", UNKNOWN, "optim.warmup_steps", "a guess: that of fine-tuning"),
        Row("weight decay", 0.0, "optim.weight_decay"),
    ]
    imagenet = [
        Row("epochs", 10, epochs(1_281_167)),
        Row("batch (paper: 128)", 512, "global_batch"),
        Row("image sizes", "7 sizes, 128 to 320", size_range),
        Row("learning rate, peak", 3e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 3e-6, "optim.final_learning_rate"),
        Row("label smoothing", 0.1, "method.label_smoothing"),
        Row("shorter side, crop of validation", (232, 224), validation),
        *shared,
    ]
    coco = [
        Row("epochs", 10, epochs(118_287)),
        Row("batch", 128, "global_batch"),
        Row("image sizes", "25 sizes, 256 to 768", size_range),
        Row("learning rate, peak", 1e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 1e-6, "optim.final_learning_rate"),
        Row("shorter side, crop of validation", (512, 512), validation),
        *shared,
    ]
    ade = [
        Row("epochs", 50, epochs(20_210)),
        Row("batch", 32, "global_batch"),
        Row("learning rate, peak", 3e-5, "optim.learning_rate"),
        Row("learning rate, last (cosine)", 3e-6, "optim.final_learning_rate"),
        by_epoch,
        Row("warm-up from", 1e-6, "optim.initial_learning_rate"),
        Row("warm-up steps", 500, "optim.warmup_steps"),
        Row("weight decay", 0.1, "optim.weight_decay"),
        Row("gradient norm clipped at", None, "optim.clip_norm"),
        Row("decay of the average", 1 - 1e-4, "method.ema_decay"),
        Row("precision", "float32", "method.dtype"),
        Row("image size", 512, "preprocess.image_size"),
        Row("shorter side, of the image size", (0.5, 1.5), "views.short_side"),
        Row("longer side at most, of the image size", 2.0, "views.max_long_side"),
        Row("a class of a crop at most", 0.75, "views.max_class_share"),
        Row("pixels per token", 8, "method.model.output_stride"),
        Row("channels of the head", 512, "method.head.channels"),
        Row("rates of the head", (12, 24, 36), "method.head.rates"),
        Row("dropout of the head", 0.1, "method.head.dropout"),
    ]
    source = f"{SOURCE}; the probe from the paper only"
    return [
        Recipe("CatLIP, probe on ImageNet", source, "transfer", "mode=probe", probe),
        Recipe("CatLIP, fine-tuned on ImageNet", source, "transfer", "mode=finetune", imagenet),
        Recipe("CatLIP, fine-tuned on COCO's labels", source, "transfer",
               "task=coco,mode=finetune", coco),
        Recipe("CatLIP, DeepLabv3 on ADE20K", source, "segmentation", "", ade),
    ]  # fmt: skip
