"""The model card of an export, as the hub shows it."""

from collections.abc import Mapping

from big_vlp.convert.dual.forms import Dual, table

_USE = {
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIRECTORY")
model.eval()""",
    "transformers": """from transformers import AutoModel

model = AutoModel.from_pretrained("DIRECTORY").eval()""",
}


def card(library: str, dual: Dual, left_out: list[str], source: Mapping | None) -> str:
    """README.md.

    Args:
      library: "open_clip" or "transformers".
      left_out: parameters that the export does not have.
      source: see `storage.model_dir.save_model`; None for a model that was trained here.
    """
    text = f"""---
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags:
- clip
---
# An image and a text tower

Trained with a {dual.loss} loss over pairs of images and texts, and exported by big_vlp.

```
{table(dual, left_out)}
```

```python
{_USE[library]}
```
"""
    if dual.preprocess.tokenizer != "clip":
        kind = dual.preprocess.tokenizer.partition(":")[0]
        text += f"""
The files of the vocabulary are not among these: the model was trained with one of the kind
`{kind}`, which has to be put beside them.
"""
    if source:
        keys = ("format", "file", "name")
        words = ", ".join(f"{key} {source[key]}" for key in keys if source.get(key))
        text += f"\nThe weights come from: {words}.\n"
    return text
