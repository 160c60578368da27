"""The library and the offline commands for pip; colcon builds the same sources by CMakeLists.txt.

The nodes also need ROS 2 and the interfaces of msg/ and action/, which only CMakeLists.txt builds:
script/setup does that without a ROS installation.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
NAME = "ego_world_model"


def requirements(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    stripped = (line.split("#")[0].strip() for line in lines)
    return [line for line in stripped if line]


def shared_files(*folders):
    """(destination, files) pairs that keep the folders' structure below share/."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path.relative_to(ROOT) for path in sorted(files) if "__pycache__" not in path.parts]
    return [(f"share/{NAME}/{path.parent}", [str(path)]) for path in kept]


version = re.search(r"<version>(.+)</version>", (ROOT / "package.xml").read_text()).group(1)
readme = ROOT / "README.md"

setup(
    name=NAME,
    version=version,
    description="Imagine what a humanoid's head camera will see, from a frame and a hand motion",
    long_description=readme.read_text() if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={
        NAME: [
            *("**/*.xml", "**/*.yaml", "**/*.json", "**/*.safetensors", "**/*.npz", "**/*.md"),
            *("**/*.html", "**/*.css", "**/*.js"),
        ]
    },
    data_files=shared_files("config", "launch"),
    python_requires=">=3.10,<3.14",
    install_requires=requirements("library"),
    extras_require={"test": requirements("test")},
    entry_points={"console_scripts": ["ego-world-model = ego_world_model.cli:main"]},
    zip_safe=False,
)
