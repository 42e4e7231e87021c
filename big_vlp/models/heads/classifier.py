"""An image tower and a linear classifier."""

import flax.linen as nn
import jax.numpy as jnp

from big_vlp.models.layers.axes import outputs
from big_vlp.models.layers.head import Head
from big_vlp.models.layers.network import Network
from big_vlp.models.layers.transformer import normal
from big_vlp.models.towers import Tower


class Classifier(Network):
    """Logits of a tower's pooled feature.

    Attributes:
      tower: the image tower, which pools.
      num_classes: of the classifier.
      bias_init: initial bias of every class.
    """

    # By classes; their number is the data's, so what does not divide stays whole.
    tensor_axes = outputs("classifier", must=False)

    tower: Tower
    num_classes: int
    bias_init: float = 0.0

    def setup(self):
        self.classifier = Head(
            self.num_classes,
            dtype=self.tower.dtype,
            kernel_init=normal(0.02),
            bias_init=nn.initializers.constant(self.bias_init),
        )

    @property
    def dtype(self):
        return self.tower.dtype

    def prepare(self, images, train: bool = False):
        """As the tower's."""
        return self.tower.prepare(images, train)

    def features(self, x):
        """What `prepare` gives -> pooled features f32[B, W]."""
        pooled = self.tower.encode(x)[1]
        if pooled is None:
            raise ValueError("A classifier needs a tower that pools: give embed_dim.")
        return pooled.astype(jnp.float32)

    def classify(self, x):
        """What `prepare` gives -> logits f32[B, num_classes]."""
        return self.classifier(self.features(x))

    def __call__(self, images, train: bool = False):
        """Images [B, H, W', 3] -> logits f32[B, num_classes]."""
        return self.classify(self.prepare(images, train))
