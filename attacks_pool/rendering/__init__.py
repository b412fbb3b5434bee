"""The fifteen common corruptions of Hendrycks and Dietterich (arXiv:1903.12261), implemented in torch.

Each maps images (N, C, H, W) in [0, 1] with 1 or 3 channels and at least 8 pixels a side, a severity from 1
to 5 and a generator to images in [0, 1]. Severities are those published for images of 32 pixels
(CIFAR-10-C); lengths in pixels scale with the shorter side, see
:func:`attacks_pool.rendering.scale.scale_of`. Values are not rounded, while the published files hold bytes.
Numbers are drawn for the whole batch, or keyed by row, so that images do not affect each other's results.
"""
