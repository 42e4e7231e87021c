"""Vision-language pretraining in JAX: CLIP, SigLIP, COSMOS, CatLIP and CogVLM on one training loop.

`load` gives a trained or converted model to Python programs.
"""

__version__ = "0.1.0"


def load(directory, weights: str | None = None, step: int | None = None, batch_size: int = 32):
    """The model of a directory, as a `big_vlp.api.model.Model`.

    Args:
      directory: of a run or of a converted model; a path, or the URL of one in a bucket.
      weights: "model" or "averaged"; by default the average where there is one.
      step: of the checkpoint; by default the latest.
      batch_size: how many images or texts run at once.

    Raises:
      CheckpointError, ModelError: there is no such model, or it cannot be read; both are a
        `BigVlpError`.
    """
    from big_vlp.api.model import Model  # jax, which reading the version does not need

    return Model(directory, weights, step, batch_size)
