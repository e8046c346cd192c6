"""An encoder that is on a GPU already, as after a training there."""

import pytest
import torch

from tests.evaluation.small import encoder
from vivid_monai.evaluation.encoders import VividEncoder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_encoder_is_made_of_a_network_on_the_gpu():
    on_cpu = encoder(0)
    on_gpu = VividEncoder(encoder(0).network.cuda(), on_cpu.preprocess)
    assert on_gpu.dim == on_cpu.dim
    assert on_gpu.fingerprint() == on_cpu.fingerprint()


def test_the_first_image_goes_where_the_network_is():
    # The device "meta" computes nothing but insists, as a GPU does, that images are on it too.
    one = encoder(0)
    assert VividEncoder(one.network.to("meta"), one.preprocess).dim == one.dim
