"""The life of a node around one model: load, activate, compute in a thread of its own, free."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Protocol

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from ego_world_model.ros.diagnostics import ERROR, Diagnostics
from ego_world_model.ros.model_thread import ModelThread
from ego_world_model.ros.run import StartError


class ModelSettings(Protocol):
    """What every model node's settings say."""

    checkpoint: str
    device: str
    threads: int
    niceness: int


class ModelNode(LifecycleNode):
    """A lifecycle node that owns a model and a thread, and no algorithm.

    A subclass says how the model is loaded (``_load``), what the node does with it (``_adopt``),
    what its thread does (``_work``), and what becoming active or inactive means (``_set_active``).

    Args:
        model: what the model is, in messages: "world model".
        product: what the thread makes, in messages: "rollout".
        declare_settings: declares the node's parameters.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str,
        product: str,
        declare_settings: Callable[[LifecycleNode], Any],
    ) -> None:
        super().__init__(name)
        self._what, self._product = model, product
        self._settings = declare_settings(self)
        self._diagnostics = Diagnostics(self)
        self._active = False
        self._next_start = 0.0
        self._refusal = ""
        self._thread = ModelThread(
            self._work,
            on_error=self._failed,
            threads=self._settings.threads,
            niceness=self._settings.niceness,
            name=name,
        )
        # Ctrl-C must not wait for long work: steps that follow it cancel.
        self.context.on_shutdown(self._thread.begin_closing)
        self._diagnostics.value("checkpoint", self._settings.checkpoint)
        self._diagnostics.value("state", "unconfigured")

    def autostart(self) -> None:
        """Configure and activate.

        Raises:
            StartError: if the checkpoint cannot be loaded.
        """
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() != TransitionCallbackReturn.SUCCESS:
                raise StartError(self._refusal or "a lifecycle transition failed; see the log")

    # ---------------------------------------------------------------- for subclasses

    def _load(self) -> Any:
        """The model, from the settings' checkpoint; any exception refuses the configuration."""
        raise NotImplementedError

    def _adopt(self, model: Any) -> str:
        """Take the loaded model and join the graph; what the log says about it."""
        raise NotImplementedError

    def _work(self) -> None:
        """In the model's thread, whenever it is woken."""
        raise NotImplementedError

    def _set_active(self, active: bool) -> None:
        self._active = active
        self._next_start = 0.0
        self._diagnostics.value("state", "active" if active else "inactive")

    def _forget(self) -> None:
        """Let go of the model."""
        raise NotImplementedError

    def _leave_graph(self) -> None:
        """Destroy what a node does not destroy by itself."""

    # ---------------------------------------------------------------- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the checkpoint; a broken one leaves the node unconfigured and says why."""
        settings, started = self._settings, time.monotonic()
        try:
            # Not in the model's thread: at its low priority, imports would hold Python's lock long.
            model = self._load()
        except Exception as error:  # whatever is wrong with a file, the user must read which
            self._refusal = (
                f"{self._what} checkpoint {settings.checkpoint!r} cannot be loaded: {error}"
            )
            self.get_logger().fatal(self._refusal)
            self._diagnostics.problem("checkpoint failed", self._refusal, level=ERROR)
            return TransitionCallbackReturn.FAILURE
        # A million objects of torch live as long as the process: left in the collector's sight,
        # each full collection would hold up the callbacks, and the exit, for a second or two.
        gc.collect()
        gc.freeze()
        about = self._adopt(model)
        self.get_logger().info(
            f"loaded {settings.checkpoint!r} in {time.monotonic() - started:.1f} s: {about} on "
            f"{settings.device}, {settings.threads} thread(s)"
        )
        self._diagnostics.value("state", "inactive")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to compute."""
        self._set_active(True)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop; what is being computed is not published."""
        self._set_active(False)
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model for good."""
        self._release()
        self._thread.close()
        return super().on_shutdown(state)

    def destroy_node(self) -> None:
        """End the thread before the publishers that it uses."""
        self._thread.close()
        self._release()
        self._leave_graph()
        super().destroy_node()

    def _release(self) -> None:
        self._set_active(False)
        self._forget()
        self._diagnostics.value("state", "unconfigured")

    def _failed(self, error: Exception) -> None:
        """Work failed for a reason that no input explains; the next frame tries again."""
        if self.context.ok():
            self._diagnostics.warn(
                f"{self._product}s failed",
                f"{self._product} failed: {type(error).__name__}: {error}",
                level=ERROR,
            )


def started(node_class: Callable[[], ModelNode]) -> ModelNode:
    """A node, configured and activated where its parameter ``autostart`` says so."""
    node = node_class()
    if node.get_parameter("autostart").value:
        try:
            node.autostart()
        except BaseException:
            node.destroy_node()
            raise
    return node
