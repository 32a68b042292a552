"""What the residual blocks refuse."""

import pytest

from keras_convnets.layers import BasicBlock, attend


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match="name='sea' must be None, 'se', 'eca'"):
        attend("sea", 16)
    with pytest.raises(ValueError, match="shortcut='long' must be None, 'projected'"):
        BasicBlock(16, shortcut="long")
