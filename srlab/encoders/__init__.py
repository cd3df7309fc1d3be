"""Encoders: a low-resolution picture in, features at the same resolution out.

One file per architecture. Each encoder is an `nn.Module` with

* `forward(lr)`: picture (B, 3, h, w), already shifted and scaled by the model -> feats (B, C, h, w);
* `channels`: the width C of the features;
* `receptive_radius`: how many LR pixels away an input pixel can change a feature, or `None` when it looks globally.

An encoder knows no scale and no upsampler. The last, scale-specific layer of a published model is left out.
"""
