"""Read a robot's kinematic tree from MJCF or URDF, through MuJoCo or pinocchio."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
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
        names: movable joints, model order.
        lower, upper: (nq,) radians. A driver's limits are narrowed to where its followers are
            within theirs.
        links: every link (body) name.
    """

    names: tuple[str, ...]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    links: tuple[str, ...]
    couplings: tuple[Coupling, ...]


def build_pinocchio_model(path: Path, urdf: str | None = None) -> pin.Model:
    """Pinocchio model of an MJCF or URDF file whose root link does not move.

    Args:
        urdf: text of a URDF to read instead; ``path`` then only names it in errors.

    Raises:
        ValueError: if the file cannot be parsed, or has joints other than hinges and slides.
    """
    if urdf is not None or _is_urdf(path):
        root = _urdf_tree(path, urdf)
        try:
            return pin.buildModelFromXML(ElementTree.tostring(root, encoding="unicode"))
        except ValueError as error:
            raise ValueError(f"{path}: pinocchio cannot read this URDF: {error}") from error
    return _from_mujoco(_load_mjcf(path), path)


def read_joint_table(path: Path, urdf: str | None = None) -> JointTable:
    """Joint names, limits, links and couplings of an MJCF or URDF file.

    Args:
        urdf: text of a URDF to read instead; ``path`` then only names it in errors.

    Raises:
        ValueError: as ``build_pinocchio_model``; also for a coupling that is not linear, follows a
            joint that follows another or does not exist, or leaves its driver no range.
    """
    model = build_pinocchio_model(path, urdf)
    pairs = zip(model.names[1:], model.joints[1:], strict=True)
    unbounded = [name for name, joint in pairs if joint.nq != 1]
    if unbounded:
        raise ValueError(
            f"{path}: only joints with one coordinate are supported (bounded hinges); write "
            f"{', '.join(unbounded)} as revolute with limits, or as fixed where it does not matter"
        )
    names = tuple(model.names[1:])
    described = urdf is not None or _is_urdf(path)
    couplings = tuple(_urdf_mimics(_urdf_tree(path, urdf)) if described else _mjcf_couplings(path))
    lower, upper = model.lowerPositionLimit.copy(), model.upperPositionLimit.copy()
    followers = {coupling.follower for coupling in couplings}
    for coupling in couplings:
        if coupling.driver not in names or coupling.driver in followers:
            raise ValueError(
                f"{path}: joint {coupling.follower!r} follows {coupling.driver!r}, which is no "
                "movable joint or follows another one itself; name the joint that moves both"
            )
        _narrow(coupling, names, lower, upper, path)
    body = pin.FrameType.BODY
    links = tuple(frame.name for frame in model.frames if frame.type == body)
    return JointTable(names, lower, upper, links, couplings)


def _narrow(
    coupling: Coupling,
    names: tuple[str, ...],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    path: Path,
) -> None:
    """Narrow the driver's limits to where its follower is within the follower's limits."""
    driver, follower = names.index(coupling.driver), names.index(coupling.follower)
    if coupling.multiplier == 0.0:
        return
    ends = (np.array([lower[follower], upper[follower]]) - coupling.offset) / coupling.multiplier
    lower[driver] = max(lower[driver], ends.min())
    upper[driver] = min(upper[driver], ends.max())
    if lower[driver] > upper[driver]:
        raise ValueError(
            f"{path}: no position of {coupling.driver!r} keeps {coupling.follower!r}, which "
            "follows it, within its limits; check multiplier, offset and limits"
        )


def _is_urdf(path: Path) -> bool:
    return path.suffix.lower() == ".urdf"


def _urdf_tree(path: Path, urdf: str | None) -> ElementTree.Element:
    """Root element of a URDF, its shapes left out: meshes are not read and need not exist."""
    try:
        root = ElementTree.fromstring(path.read_text("utf-8") if urdf is None else urdf)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: no XML ({error})") from None
    if root.tag != "robot":
        raise ValueError(f"{path}: holds <{root.tag}>, a URDF is one <robot>")
    for link in root.iter("link"):
        for shape in [*link.findall("visual"), *link.findall("collision")]:
            link.remove(shape)
    return root


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


def _urdf_mimics(root: ElementTree.Element) -> Iterable[Coupling]:
    for joint in root.iter("joint"):
        mimic = joint.find("mimic")
        if mimic is not None:
            yield Coupling(
                joint.attrib["name"],
                mimic.attrib["joint"],
                float(mimic.get("multiplier", 1.0)),
                float(mimic.get("offset", 0.0)),
            )


def _mjcf_couplings(path: Path) -> Iterable[Coupling]:
    """``equality/joint`` constraints between two joints, as MuJoCo compiles them."""
    model = _load_mjcf(path)
    for i in np.flatnonzero(model.eq_type == int(mujoco.mjtEq.mjEQ_JOINT)):
        first, second = int(model.eq_obj1id[i]), int(model.eq_obj2id[i])
        if second < 0:  # holds one joint in place: no coupling
            continue
        follower, driver = model.joint(first).name, model.joint(second).name
        offset, multiplier, *higher = (float(v) for v in model.eq_data[i, :5])
        if any(higher):
            raise ValueError(
                f"{path}: the coupling of {follower!r} to {driver!r} is not linear; give polycoef "
                "only its first two numbers"
            )
        # MuJoCo counts both joints from their positions in the model's reference pose
        start, driven = (
            model.qpos0[model.jnt_qposadr[first]],
            model.qpos0[model.jnt_qposadr[second]],
        )
        yield Coupling(follower, driver, multiplier, offset + start - multiplier * driven)
