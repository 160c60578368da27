"""Relative topic names of the graph: what remappings and the table of nodes refer to."""

IMAGE = "camera/color/image_raw"
CAMERA_INFO = "camera/color/camera_info"
DEPTH = "camera/aligned_depth_to_color/image_raw"
JOINT_STATES = "joint_states"
JOINT_TRAJECTORY = "joint_trajectory"
PLANNED = "joint_trajectory/planned"
HAND_JOINTS = "hands/joints"
