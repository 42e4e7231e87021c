"""A CogVLM from nothing on easy-vqa, a real set of questions about pictures, on a CPU in minutes.

Options: test (in place of a tenth of the test questions, all of them, with controls).
Data: data/easy_vqa_train, data/easy_vqa_test and the tokenizer data/easy_vqa.model, made as
docs/answers.md says.

One stage trains everything: language model, image tower, adapter and visual experts. Its first
part has images of half the side, a quarter of the tokens.
"""

import ml_collections

from big_vlp import recipes as shared

WIDTH = 96


def get_config(arg=None):
    options = shared.parse_options(arg, test=False)
    config = ml_collections.ConfigDict()
    config.global_batch = 32
    config.total_steps = 4500

    config.data = dict(name="prepared", path="data/easy_vqa_train")
    config.plan = dict(name="switch", first_size=32, at_step=3000)
    config.preprocess = dict(
        image_size=48,
        # Backgrounds are nearly white: near zero, so that shapes stand out from the first step.
        mean=(0.93, 0.93, 0.93),
        std=(0.2, 0.2, 0.2),
        image_token_size=8,
        resize="squash",
        tokenizer="llama:data/easy_vqa.model",
        context_length=17,
    )
    config.views = dict(name="cogvlm", tasks=dict(vqa=1.0))
    config.loader = dict(num_workers=0, num_threads=1)

    block = dict(width=WIDTH, heads=4)
    config.method = dict(
        name="cogvlm",
        model=dict(
            text=dict(vocab_size=512, layers=3, mlp_dim=256, **block),
            tower="vit",
            # Shapes are told by where their patches lie: positions as large as the patches.
            image=dict(image_size=32, patch_size=8, layers=2, position_scale=1.0, **block),
            adapter_mlp_dim=256,
        ),
        max_new_tokens=2,  # an answer is one token, and its end
        dtype="float32",
        unroll=True,
    )
    config.optim = dict(
        learning_rate=6e-4,  # at higher rates the text learns to look past the image
        warmup_steps=200,
        weight_decay=0.05,
        beta2=0.95,
        clip_norm=1.0,
        rules=(
            (".*(kernel|embedding|class_token|boi|eoi)", 1.0, 1.0),
            (".*(scale|bias)", 1.0, 0.0),
        ),
    )

    config.checkpoint = dict(every_steps=250, keep_latest=2)
    config.log_every_steps = 50
    data = dict(name="prepared", path="data/easy_vqa_test")
    questions = dict(evaluator="vqa", weights="model", by="category", batch_size=128)
    if options.test:
        questions.update(every_steps=config.total_steps, controls=("blind", "shuffled"))
    else:
        data.update(fraction=0.1)
        questions.update(every_steps=750)
    config.evals = dict(questions=dict(data=data, **questions))
    return config
