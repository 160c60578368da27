"""The hands' next move: a flow-matching policy from image, words and hands to a chunk of motion."""

from ego_world_model.policy.chunk import HandChunk

__all__ = ["HandChunk", "MotionPolicy", "PolicyConfig"]


def __getattr__(name: str) -> object:
    if name in ("MotionPolicy", "PolicyConfig"):  # the networks import torch, chunks do not
        from ego_world_model.policy import policy

        return getattr(policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
