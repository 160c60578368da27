"""`bench` measures real rollouts by stage, and knows what they need before it loads anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from ego_world_model import cli
from ego_world_model.bench import memory, sizes, stages
from ego_world_model.bench.sizes import SIZES, PublishedSize, build_random, random_config
from ego_world_model.world_model import WorldModel
from ego_world_model.world_model.checkpoint import read_config
from ego_world_model.world_model.model import SHIPPED

SMALL = PublishedSize(layers=3, heads=1, ffn=64, image_tokens=True)


def bench(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *(str(word) for word in words)])


def refused(result: Result) -> str:
    assert result.exit_code in (1, 2), result.output
    return " ".join(result.stderr.replace("│", " ").split())


# ---------------------------------------------------------------------------------- what is timed


def test_the_shipped_model_is_measured_by_stage(tmp_path: Path) -> None:
    """Every stage of every rollout, for each number of candidates, in a table and as JSON."""
    out = tmp_path / "new" / "bench.json"
    words = ("--repeats", 2, "--warmup", 1, "--candidates", 1, "--candidates", 2, "--steps", 3)
    result = bench(*words, "--frames", 5, "--height", 64, "--width", 96, "--out", out)
    assert result.exit_code == 0, result.output
    for text in ("tiny, 5 frames of 96x64", "2 candidate(s), ms", "median", "p90", "p99", "peak"):
        assert text in result.output
    document = json.loads(out.read_text())
    assert (document["model"], document["dtype"], document["steps"]) == ("tiny", "float32", 3)
    assert [run["candidates"] for run in document["runs"]] == [1, 2]
    for run in document["runs"]:
        measured = run["stages"]
        counts = {stage: len(values["seconds"]) for stage, values in measured.items()}
        once = dict.fromkeys(("encode", "control", "decode", "whole rollout"), 2)
        assert counts == once | {"one denoising step": 6}
        stage_sum = sum(sum(values["seconds"]) for values in measured.values())
        whole = sum(measured["whole rollout"]["seconds"])
        assert whole < stage_sum < 2 * whole, "the stages make up the whole"
        step = measured["one denoising step"]
        assert min(step["seconds"]) <= step["p50"] <= step["p90"] <= max(step["seconds"])
        assert step["peak_bytes"] > document["estimated_bytes"] / 10


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = WorldModel.from_pretrained("tiny")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    measured = stages.measure(model, candidates=1, repeats=1, warmup=0)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert stages.TEXT not in measured, "tiny reads no text"


def test_a_published_size_can_be_cut_to_a_few_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A block is timed; what all of them would take is computed and said to be. Guidance means two
    passes a step."""
    monkeypatch.setitem(SIZES, "wan-14b", SMALL)
    out = tmp_path / "bench.json"
    words = ("--layers", 2, "--frames", 5, "--height", 16, "--width", 32, "--steps", 2)
    result = bench("--model", "wan-14b", *words, "--repeats", 1, "--warmup", 0, "--out", out)
    assert result.exit_code == 0, result.output
    assert "cut to 2 of 3 layers" in result.output
    assert "not measured, computed for 1 candidate(s): a step of all 3 layers" in result.output
    assert "2 passes x 1 layers" in result.output
    document = json.loads(out.read_text())
    assert (document["dtype"], document["guidance"]) == ("bfloat16", 5.0)
    (run,) = document["runs"]
    assert len(run["stages"]["one transformer block"]["seconds"]) == 2 * 2 * 2


# --------------------------------------------------------------------------------- published sizes


@pytest.mark.parametrize(
    "name, transformer, encoders", [("wan-14b", 16.4e9, 6.31e9), ("wan-1.3b", 1.42e9, 5.68e9)]
)
def test_published_sizes_have_the_published_parameters(
    name: str, transformer: float, encoders: float
) -> None:
    """Counted without memory for them; LoRA layers are ours."""
    model = build_random(name, random_config(name), torch.bfloat16, "meta")
    count = sum(p.numel() for n, p in model.backbone.named_parameters() if ".lora_" not in n)
    assert count == pytest.approx(transformer, rel=0.01)
    count = sum(p.numel() for p in model.encoders.parameters())
    assert count == pytest.approx(encoders, rel=0.01)
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert model.backbone.transformer.patch_embedding.in_channels == 52


def test_random_models_have_finite_values_and_the_buffers_of_real_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values that overflow, or tables left empty, would not take their usual time."""
    monkeypatch.setitem(SIZES, "wan-14b", SMALL)
    config = random_config("wan-14b", layers=1)
    model = build_random("wan-14b", config, torch.float32, "cpu")
    assert all(p.isfinite().all() for p in model.parameters())
    fresh = build_random("wan-14b", config, torch.float32, "cpu")
    for (name, buffer), (_, other) in zip(
        model.named_buffers(), fresh.named_buffers(), strict=True
    ):
        assert buffer.device.type == "cpu" and torch.equal(buffer, other), name
    assert model.autoencoder.std.mean() == pytest.approx(2.6, abs=1)
    assert model.backbone.transformer.rope.freqs_cos[0].eq(1).all()


# ------------------------------------------------------------------------------------------ memory


def test_memory_is_what_lives_at_one_time() -> None:
    """Results that are gone do not count, weights and views of them neither, attention's matrix is
    never held."""
    weight = torch.empty(256, 256, device="meta")

    def chain() -> torch.Tensor:
        x = torch.empty(1024, 256, device="meta")  # 1 MiB
        for _ in range(5):
            x = x @ weight.T  # before and after: 2 MiB
        return x

    def attention() -> torch.Tensor:
        q = torch.empty(1, 2, 8192, 16, device="meta")  # 1 MiB; the matrix would be 512 MiB
        return F.scaled_dot_product_attention(q, q, value=q)

    known = [weight.untyped_storage()]
    assert memory._peak(chain, known) == 2 * 2**20
    assert memory._peak(attention, known) == 2 * 2**20


def test_need_follows_the_model_and_the_rollout() -> None:
    config = read_config(SHIPPED / "tiny")[0]
    with torch.device("meta"):
        plan = WorldModel(config).eval()
    real = WorldModel.from_pretrained("tiny")
    need = memory.memory_need(plan, 1)
    held = sum(t.numel() * t.element_size() for t in (*real.parameters(), *real.buffers()))
    assert need.weights == pytest.approx(held, rel=0.01)
    assert need.total > need.weights + max(need.activations.values())
    eight = memory.memory_need(plan, 8)
    assert eight.weights == need.weights
    assert eight.activations["decode"] == pytest.approx(8 * need.activations["decode"], rel=0.1)
    assert eight.activations["encode"] == need.activations["encode"]


def test_what_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named are the need and what is available; --force goes on."""

    def loading(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(memory, "free_memory", lambda device: 20 * 2**30)
    monkeypatch.setattr(sizes, "_fill", loading)
    words = ("--model", "wan-14b", "--frames", 5)
    message = refused(bench(*words))
    assert "wan-14b, 5 frames of 832x480" in message
    assert "GiB: weights 43." in message and "cpu has 20.0 GiB available" in message
    assert "--layers need less" in message
    assert str(bench(*words, "--force").exception) == "loaded"
    monkeypatch.setattr(memory, "free_memory", lambda device: 50 * 2**20)
    monkeypatch.setattr(WorldModel, "from_pretrained", loading)
    assert "cpu has 50 MiB available" in refused(bench())


def test_weights_of_a_checkpoint_must_fit_into_main_memory_on_their_way_to_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = {"cpu": 10 * 2**30, "cuda": 80 * 2**30}
    monkeypatch.setattr(memory, "free_memory", lambda device: free[device.type])
    need = memory.MemoryNeed(weights=40 * 2**30, activations={"decode": 2**30})
    gpu = torch.device("cuda")
    memory.check_memory(need, gpu, what="wan", loads_on_cpu=False)
    with pytest.raises(memory.NotEnoughMemory, match="40.0 GiB there; 10.0 GiB are available"):
        memory.check_memory(need, gpu, what="wan", loads_on_cpu=True)


def test_mistakes_are_named() -> None:
    assert "tiny declares its own" in refused(bench("--dtype", "bfloat16"))
    assert "tiny declares its own" in refused(bench("--layers", 2))
    assert "wan-14b has 1 to 40 layers" in refused(bench("--model", "wan-14b", "--layers", 41))
    assert "give float32, bfloat16 or float16" in refused(
        bench("--model", "wan-14b", "--dtype", "int8")
    )
    assert "num_frames 10 must be 1 plus a multiple" in refused(
        bench("--model", "wan-14b", "--layers", 1, "--frames", 10)
    )
    assert "only cpu and cuda" in refused(bench("--device", "meta"))
    assert "no world-model checkpoint at" in refused(bench("--model", "no_such_model"))
    if not torch.cuda.is_available():
        assert "no CUDA device" in refused(bench("--device", "cuda"))
