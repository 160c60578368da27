"""A humanoid at a table in MuJoCo: the scene, scripted tasks and the head camera's pictures."""

from ego_world_model.simulation.goals import Goal
from ego_world_model.simulation.renderer import MASK_CLASSES, Observation, SceneRenderer
from ego_world_model.simulation.scene import SPLITS, Scene, make_scene
from ego_world_model.simulation.table_top import SceneState, TableTop
from ego_world_model.simulation.tasks import TASKS, Wanted

__all__ = [
    "MASK_CLASSES",
    "SPLITS",
    "TASKS",
    "Goal",
    "Observation",
    "Scene",
    "SceneRenderer",
    "SceneState",
    "TableTop",
    "Wanted",
    "make_scene",
]
