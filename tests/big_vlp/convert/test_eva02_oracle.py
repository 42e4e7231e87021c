"""EVA02-CLIP's image tower against timm itself, with random weights, where torch is installed."""

import jax
import numpy as np
import pytest

from big_vlp.convert.cogvlm.starts import eva02_tower
from big_vlp.models.towers.eva02 import Tower
from tests.big_vlp.models.towers.toy_towers import apply

torch = pytest.importorskip("torch", reason="timm is a package of PyTorch's")
timm = pytest.importorskip("timm", reason="the oracle")


@pytest.mark.parametrize("name", ["eva02_large_patch14_clip_224", "eva02_large_patch14_clip_336"])
def test_the_penultimate_blocks_tokens(name):
    torch.manual_seed(0)
    model = timm.create_model(name, embed_dim=128, depth=3, num_heads=2, num_classes=8).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.05, 0.2)
        side = model.patch_embed.img_size[0]
        images = torch.randn(2, 3, side, side)
        [expected] = model.forward_intermediates(
            images, indices=[1], norm=False, intermediates_only=True, output_fmt="NLC"
        )
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    params, sizes = eva02_tower(state)
    assert (sizes["heads"], sizes["layers"], sizes["image_size"]) == (2, 2, side)
    params = {"params": jax.tree.map(np.asarray, params)}
    with jax.default_matmul_precision("highest"):
        tokens, _ = apply(Tower(**sizes), params, images.numpy().transpose(0, 2, 3, 1))
    expected = expected.numpy()
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
