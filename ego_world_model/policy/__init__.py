"""The hands' next move: a flow-matching policy from picture, words and hands to a chunk of motion."""

from ego_world_model.policy.chunk import HandChunk

__all__ = ["HandChunk"]
