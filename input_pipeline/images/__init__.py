"""Encoded images -> pixels: for training fast, for evaluation exactly as the references."""

from input_pipeline.images.crops import decode, eval_image, random_crops

__all__ = ["decode", "eval_image", "random_crops"]
