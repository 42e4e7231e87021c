"""What was published of CogVLM."""

from big_vlp.run.optim.schedules import HELD
from tests.recipes.rows import CLIP_COLOURS, UNKNOWN, Recipe, Row, fixed, tower

SAT = "a guess: the default of SwissArmyTransformer, with which it was trained"


def cogvlm() -> list[Recipe]:
    paper, code = "arXiv 2311.03079, table 5 and appendix", "CogVLM's released code"
    common = [
        Row("Adam beta1", 0.9, "optim.beta1"),
        Row("Adam beta2", 0.95, "optim.beta2"),
        Row("Adam epsilon", 1e-8, "optim.epsilon"),
        Row("dropout of the language model", 0.1, "method.model.text.dropout"),
    ]
    sizes = [
        *tower("method.model.image", patch_size=14, width=1792, layers=63, heads=16,
               mlp_dim=15_360),
        *tower("method.model.text", vocab_size=32_000, width=4096, layers=32, heads=32,
               mlp_dim=11_008),
        Row("adapter: hidden width", 11_008, "method.model.adapter_mlp_dim"),
        Row("resizing", "squash", "preprocess.resize"),
        *CLIP_COLOURS,
        Row("precision", "bfloat16", "method.dtype"),
    ]  # fmt: skip

    def numbers(steps, batch, rate, warmup, decay):
        return [
            Row("steps", steps, "total_steps"),
            Row("batch", batch, "global_batch"),
            Row("learning rate, peak", rate, "optim.learning_rate"),
            Row("warm-up steps", warmup, "optim.warmup_steps"),
            Row("weight decay", decay, "optim.weight_decay"),
        ]

    def rate_of(part):
        return lambda config: max(r for p, r, _ in config["optim"]["rules"] if p.startswith(part))

    tokens = Row("tokens of text (released code)", 58, "preprocess.context_length")
    averages = Row("decay of the average", UNKNOWN, "method.ema_decay", SAT)
    last = Row("last learning rate, of the peak", UNKNOWN, last_share, SAT)
    clipped = Row("gradient norm clipped at", UNKNOWN, "optim.clip_norm", SAT)
    length, steps = "preprocess.context_length", "optim.warmup_steps"
    longer = Row("tokens of text", UNKNOWN, length, "a guess: room for a conversation")
    warmup = Row("warm-up steps", UNKNOWN, steps, "that of the paper's first version")
    stages = {
        "1": [*numbers(120_000, 8192, 1e-4, 12_000, 0.05), tokens, averages, last, clipped],
        "2": [
            *numbers(60_000, 1024, 1e-5, 1200, 0.05),
            tokens,
            Row("last steps at 490 pixels", 30_000, lambda c: 60_000 - c["plan"]["at_step"]),
            averages,
            last,
            clipped,
        ],
        "sft": [
            Row("steps", 6000, "total_steps"),
            Row("batch", 1024, "global_batch"),
            Row("learning rate, peak", 1e-5, "optim.learning_rate"),
            Row("weight decay", 0.1, "optim.weight_decay"),
            Row("rate of the image tower", 0.1, rate_of("vision/")),
            warmup,
            longer,
            last,
            clipped,
        ],
        "sft_v1": [
            *numbers(8000, 640, 1e-5, 50, 0.1),
            Row("rate of the language model", 0.1, rate_of("language/(?!blocks/vision)")),
            Row("rate of the image tower", 0.0, rate_of("vision/")),
            longer,
            last,
            clipped,
        ],
    }
    lora = [
        *numbers(800, 32, 1e-5, 16, 0.05),
        Row("first steps held at 5 % of the peak", 100, "optim.hold_steps"),
        Row("their share of the peak", 0.05, fixed(HELD)),
        Row("last learning rate (SAT's default)", 1e-6, "optim.final_learning_rate"),
        Row("gradient norm clipped at", 0.1, "optim.clip_norm"),
        Row("rank", 10, "method.lora.rank"),
        Row("alpha", 1.0, "method.lora.alpha"),
        tokens,
        Row("layers of the tower whose MLPs train", "46 to 54", trained_layers),
    ]
    made = [Recipe("CogVLM-17B", f"{paper}; {code}", "cogvlm", "", [*sizes, *common])]
    for stage, rows in stages.items():
        made.append(Recipe(f"CogVLM, stage {stage}", paper, "cogvlm", f"stage={stage}", rows))
    return [*made, Recipe("CogVLM, LoRA", f"{code} and SwissArmyTransformer", "cogvlm",
                          "stage=lora", lora)]  # fmt: skip


def last_share(config):
    return config["optim"]["final_learning_rate"] / config["optim"]["learning_rate"]


def trained_layers(config):
    [rates] = {rate for _, rate, _ in config["optim"]["rules"] if isinstance(rate, tuple)}
    trained = [layer for layer, rate in enumerate(rates) if rate]
    return f"{trained[0]} to {trained[-1]}"
