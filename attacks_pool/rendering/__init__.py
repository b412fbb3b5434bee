"""The fifteen common corruptions of Hendrycks and Dietterich (arXiv:1903.12261), drawn in torch.

Each maps images (N, C, H, W) in [0, 1], of 1 or 3 channels and 8 pixels a side or more, a severity from 1
to 5 and a generator to images in [0, 1]. Severities are those published for images of 32 pixels
(CIFAR-10-C); what is a length in pixels grows with the shorter side, see
:func:`attacks_pool.rendering.scale.scale_of`. Values stay unrounded, where the published files hold bytes.
Draws are made for the whole batch, or keyed by the row, so no image's result depends on another.
"""
