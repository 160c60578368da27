"""Recordings of others in our dataset layout: ROS 2 bags, teleoperation episodes, LeRobot sets.

A source (``base.Source``) yields frames with joint positions of a named robot; ``run.run_import``
turns them into episodes with hand slots by forward kinematics, writes them, goes on where an
earlier run stopped, and reports what was rejected and why.
"""
