"""Public names: tensors of any shape under a known name end in words, not in an error of Python's."""

import pytest
import torch
from test_weights import conv, edsr_layout, igconv_layout, smfanet_layout

from srlab import weights
from srlab.weights import CheckpointError

SMFANET, _, _ = smfanet_layout(blocks=1)
IMDN = conv("fea_conv", 4, 3) | conv("IMDB1.c5", 4, 4, 1) | conv("upsampler.0", 12, 4)
EDSR_IG = edsr_layout(blocks=1)[0] | igconv_layout("upsample", 8, 8)
STRANGE = {
    "a number for a name": {0: (1,)},
    "a flat layer": SMFANET | {"feats.0.pcfn.conv_0.weight": (3,)},
    "an empty layer": SMFANET | {"feats.0.pcfn.conv_0.weight": (0, 8, 1, 1)},
    "a flat tail": IMDN | {"upsampler.0.weight": (12, 4)},
    "a flat frequency": EDSR_IG | {"upsample.freq": (3,)},
    "a flat stage": edsr_layout(blocks=1)[0] | conv("conv_last", 3, 8) | {"upsample.0.weight": (32,)},
    "a number out of all bounds": edsr_layout(blocks=1)[0] | conv(f"body.{10**12}.conv1", 8, 8),
}


@pytest.mark.parametrize("name", STRANGE)
def test_tensors_of_any_shape_are_refused_with_the_name_of_the_file(name, tmp_path):
    state = {key: torch.zeros(shape) for key, shape in STRANGE[name].items()}
    torch.save({"params": state}, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match=r"strange\.pth: "):
        weights.load_checkpoint(tmp_path / "strange.pth")
