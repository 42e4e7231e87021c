"""Vision-language pretraining in JAX: CLIP, SigLIP and COSMOS on one training loop."""

__version__ = "0.1.0"
