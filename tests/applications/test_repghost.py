"""RepGhost against timm."""

from keras_convnets import create_model
from keras_convnets.graph import graph_nodes, reparameterize
from keras_convnets.testing.conformance import FamilyTests
from keras_convnets.testing.reference import Timm


def repghostnet_test():
    import torch
    from timm.models.repghost import RepGhostNet

    from keras_convnets.applications.repghost import VARIANTS

    model = RepGhostNet(VARIANTS["repghostnet_test"]["stages"], width=0.5)
    model.conv_head = torch.nn.Conv2d(model.pool_dim, 40, 1)
    model.classifier = torch.nn.Linear(40, 1000)
    return model


class TestRepGhost(FamilyTests):
    family = "repghost"
    reference = Timm(repghostnet_test=repghostnet_test)
    parity_variant = "repghostnet_050"

    def test_no_branch_is_left_but_the_shortcuts(self):
        """Figure 4d, in each of the 16 blocks."""
        merged = reparameterize(create_model("repghostnet_100", weights=None))
        kinds = [type(node.operation).__name__ for node in graph_nodes(merged)]
        assert kinds.count("Add") == 16
