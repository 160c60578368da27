"""The H1's graph; `ros2 launch ego_world_model h1.launch.py --show-args` lists the arguments."""

from ego_world_model.ros.launching import launch_description


def generate_launch_description():
    return launch_description("h1")
