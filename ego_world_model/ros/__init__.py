"""The ROS 2 layer: it converts messages, schedules work and publishes; algorithms live elsewhere.

This is the only place that imports ``rclpy``. Modules here need the interfaces that the package's
build generates (``ego_world_model.msg``); the rest of the package works without ROS.
"""
