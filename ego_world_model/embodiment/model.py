"""Read a robot's kinematic tree from MJCF or URDF, through MuJoCo or pinocchio."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import pinocchio as pin
from numpy.typing import NDArray


@dataclass(frozen=True)
class Coupling:
    """A joint that follows another: follower = multiplier * driver + offset (radians)."""

    follower: str
    driver: str
    multiplier: float
    offset: float


@dataclass(frozen=True)
class JointTable:
    """Movable joints and links of a model.

    Attributes:
        names: movable joints, model order; ``lower``/``upper`` (nq,) radians.
        links: every link (body) name.
    """

    names: tuple[str, ...]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    links: tuple[str, ...]
    couplings: tuple[Coupling, ...]


def build_pinocchio_model(path: Path) -> pin.Model:
    """Pinocchio model of an MJCF or URDF file whose root link does not move.

    Raises:
        ValueError: if the file cannot be parsed, or has joints other than hinges and slides.
    """
    if path.suffix.lower() == ".urdf":
        try:
            return pin.buildModelFromUrdf(str(path))
        except ValueError as error:
            raise ValueError(f"{path}: pinocchio cannot read this URDF: {error}") from error
    return _from_mujoco(_load_mjcf(path), path)


def read_joint_table(path: Path) -> JointTable:
    """Joint names, limits, links and couplings of an MJCF or URDF file."""
    model = build_pinocchio_model(path)
    if any(joint.nq != 1 for joint in model.joints[1:]):
        raise ValueError(f"{path}: only joints with one coordinate are supported (bounded hinges)")
    body = pin.FrameType.BODY
    return JointTable(
        names=tuple(model.names[1:]),
        lower=model.lowerPositionLimit.copy(),
        upper=model.upperPositionLimit.copy(),
        links=tuple(frame.name for frame in model.frames if frame.type == body),
        couplings=_couplings(path),
    )


def _load_mjcf(path: Path) -> mujoco.MjModel:
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise ValueError(f"{path}: MuJoCo cannot read this MJCF: {error}") from error


def _from_mujoco(source: mujoco.MjModel, path: Path) -> pin.Model:
    """The same tree in pinocchio. Built joint by joint, because pinocchio's own MJCF reader drops
    massless links and reads angles by its own rules."""
    model = pin.Model()
    model.name = path.stem
    parent_joint = {0: 0}
    in_joint = {0: pin.SE3.Identity()}  # pose of each body in the frame of its joint
    for body in range(1, source.nbody):
        parent = int(source.body_parentid[body])
        local = pin.SE3(pin.Quaternion(*source.body_quat[body]).matrix(), source.body_pos[body])
        placement = in_joint[parent] * local if parent else pin.SE3.Identity()
        joint_id = parent_joint[parent]
        count = int(source.body_jntnum[body])
        if count > 1:
            raise ValueError(f"{path}: body {source.body(body).name!r} has {count} joints, max. 1")
        in_joint[body] = placement
        if count == 1:
            joint_id, in_joint[body] = _add_joint(model, source, body, joint_id, placement, path)
        parent_joint[body] = joint_id
        name = source.body(body).name
        model.addFrame(pin.Frame(name, joint_id, in_joint[body], pin.FrameType.BODY))
    return model


def _add_joint(
    model: pin.Model,
    source: mujoco.MjModel,
    body: int,
    parent_joint: int,
    placement: pin.SE3,
    path: Path,
) -> tuple[int, pin.SE3]:
    """Append the joint of ``body``; returns its id and the body's pose in the joint frame."""
    j = int(source.body_jntadr[body])
    kind = mujoco.mjtJoint(int(source.jnt_type[j]))
    if kind == mujoco.mjtJoint.mjJNT_FREE:  # a floating base is the root frame here
        return parent_joint, placement
    kinds = {
        mujoco.mjtJoint.mjJNT_HINGE: pin.JointModelRevoluteUnaligned,
        mujoco.mjtJoint.mjJNT_SLIDE: pin.JointModelPrismaticUnaligned,
    }
    if kind not in kinds:
        raise ValueError(f"{path}: joint {source.joint(j).name!r} is neither hinge nor slide")
    anchor = source.jnt_pos[j]
    lower, upper = source.jnt_range[j] if source.jnt_limited[j] else (-np.pi, np.pi)
    joint_id = model.addJoint(
        parent_joint,
        kinds[kind](*source.jnt_axis[j]),
        placement * pin.SE3(np.eye(3), anchor),
        source.joint(j).name,
        np.array([np.inf]),
        np.array([np.inf]),
        np.array([lower]),
        np.array([upper]),
    )
    model.addJointFrame(joint_id, 0)
    return joint_id, pin.SE3(np.eye(3), -anchor)


def _couplings(path: Path) -> tuple[Coupling, ...]:
    """URDF ``mimic`` tags, or MJCF ``equality/joint`` constraints of first order."""
    root = ElementTree.parse(path).getroot()
    found = []
    if path.suffix.lower() == ".urdf":
        for joint in root.iter("joint"):
            mimic = joint.find("mimic")
            if mimic is not None:
                found.append(
                    Coupling(
                        joint.attrib["name"],
                        mimic.attrib["joint"],
                        float(mimic.get("multiplier", 1.0)),
                        float(mimic.get("offset", 0.0)),
                    )
                )
        return tuple(found)
    for constraint in root.findall("./equality/joint"):
        coefficients = [float(v) for v in constraint.get("polycoef", "0 1 0 0 0").split()]
        found.append(
            Coupling(
                constraint.attrib["joint1"],
                constraint.attrib["joint2"],
                coefficients[1],
                coefficients[0],
            )
        )
    return tuple(found)
