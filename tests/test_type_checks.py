import numpy as np
import pytest

from pipeline.loading.batch import LeafSpec
from train.octo.heads.diffusion import masked_mean


def test_an_argument_of_another_type_is_an_error_with_and_without_shapes():
    with pytest.raises(Exception, match="dtype=3 violates type hint <class 'str'>"):
        LeafSpec(3, (4,))  # pyright: ignore[reportArgumentType]
    x = np.ones((2, 3, 4, 5), np.float32)
    with pytest.raises(Exception, match=r"train\.octo\.heads\.diffusion\.masked_mean"):
        masked_mean(x, np.ones((2, 3, 4, 6), bool))  # pyright: ignore[reportArgumentType]
