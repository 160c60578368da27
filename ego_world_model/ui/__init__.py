"""Browser pages, served on the loopback; no ROS here."""
