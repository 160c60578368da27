"""Coloured point clouds from depth that is aligned to the colour image."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from ego_world_model.camera import PinholeCamera

_FIELDS = [
    PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
    for i, name in enumerate(("x", "y", "z", "rgb"))
]
_POINT_BYTES = 16


def cloud_from_depth(
    depth: NDArray[np.float32],
    rgb: NDArray[np.uint8],
    camera: PinholeCamera,
    *,
    header: Header,
    stride: int = 1,
) -> PointCloud2:
    """The pixels that have depth as an unordered cloud in the optical frame, metres.

    Args:
        depth: (H, W) float32 metres, 0 where unknown.
        rgb: (H, W, 3) uint8 of the same size.
        camera: intrinsics of that size.
        stride: every n-th row and column becomes a point.

    Raises:
        ValueError: if the sizes differ.
    """
    size = (camera.height, camera.width)
    if depth.shape != size or rgb.shape[:2] != size:
        raise ValueError(
            f"depth {depth.shape}, image {rgb.shape[:2]} and camera {size} must have one size; "
            "subscribe to depth that the driver aligned to the colour image"
        )
    depth, rgb = depth[::stride, ::stride], rgb[::stride, ::stride]
    rows, columns = np.nonzero(depth > 0)
    z = depth[rows, columns]
    pixels = np.column_stack([columns, rows]) * stride
    points = np.empty((len(z), 4), np.float32)
    points[:, :3] = camera.unproject(pixels, z)
    # RViz and PCL read colour as the bits of one float: 0x00RRGGBB.
    colour = rgb[rows, columns].astype(np.uint32)
    bits = (colour[:, 0] << 16) | (colour[:, 1] << 8) | colour[:, 2]
    points[:, 3] = bits.view(np.float32)
    data = array("B")
    data.frombytes(memoryview(points).cast("B"))
    return PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=_FIELDS,
        is_bigendian=False,
        point_step=_POINT_BYTES,
        row_step=_POINT_BYTES * len(points),
        data=data,
        is_dense=True,
    )
