"""Random transforms of whole batches on the tensors' device.

They are functions of numbers drawn with `lbdist.random` from the samples' keys, so a sample is changed the
same way whatever batch and worker it is in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def augment_images(x: Tensor, u: Tensor, *, flip: bool, degrees: float, translate: float) -> Tensor:
    """Flips, rotates and translates images (Keskar et al., ICLR 2017, section 4.1).

    One bilinear resampling; what comes from outside the image is 0. The grid is computed element by element,
    not with `affine_grid`, whose matrix product would run in TF32 where that is allowed.

    Args:
        x: Images of shape (N, C, H, W).
        u: Uniform numbers in [0, 1) of shape (N, 4): for the flip, the angle, the shift in x and in y.
        flip: Whether to mirror left and right with probability 1/2.
        degrees: Rotation about the centre is uniform within ± this, clockwise.
        translate: Translation is uniform within ± this part of the width, and of the height.

    Returns:
        Images of x's shape, dtype and device.
    """
    height, width = x.shape[2:]
    dtype = torch.promote_types(x.dtype, torch.float32)  # half precision cannot tell pixels apart
    u = u.to(dtype)[:, :, None, None]
    angle = torch.deg2rad((2 * u[:, 1] - 1) * degrees)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # positions in pixels from the centre; an output pixel looks up where it came from
    column = torch.arange(width, device=x.device, dtype=dtype) - (width - 1) / 2
    row = torch.arange(height, device=x.device, dtype=dtype)[:, None] - (height - 1) / 2
    column = column - (2 * u[:, 2] - 1) * translate * width
    row = row - (2 * u[:, 3] - 1) * translate * height
    from_column = cos * column + sin * row
    from_row = cos * row - sin * column
    if flip:
        from_column = torch.where(u[:, 0] < 0.5, -from_column, from_column)
    grid = torch.stack([from_column * (2 / width), from_row * (2 / height)], -1)
    return grid_sample(x.to(dtype), grid, padding_mode="zeros", align_corners=False).to(x.dtype)


def augment_signals(
    x: Tensor, u: Tensor, noise: Tensor, *, shift: float, scale: float, noise_level: float
) -> Tensor:
    """Shifts, scales and adds noise to signals.

    Args:
        x: Signals of shape (N, L).
        u: Uniform numbers in [0, 1) of shape (N, 2): for the shift and the scale.
        noise: Standard normal numbers of shape (N, L).
        shift: The shift is uniform within ± this part of L, by linear interpolation; the ends are repeated.
        scale: The factor is uniform in [1 - scale, 1 + scale].
        noise_level: Standard deviation of the noise, added last.

    Returns:
        Signals of x's shape, dtype and device.
    """
    length = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    signed = 2 * u.to(dtype) - 1
    position = torch.arange(length, device=x.device, dtype=dtype) - signed[:, :1] * (shift * length)
    position = position.clamp(0, length - 1)
    left = position.floor().long()
    right = (left + 1).clamp(max=length - 1)
    part = position - left
    signal = x.to(dtype)
    shifted = signal.gather(1, left) * (1 - part) + signal.gather(1, right) * part
    return (shifted * (1 + signed[:, 1:] * scale) + noise.to(dtype) * noise_level).to(x.dtype)
