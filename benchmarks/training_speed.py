"""Seconds for an optimiser step, ours against the notebook's recipe and plain TRL + PEFT, from one run on one GPU.

    python benchmarks/training_speed.py --model MODEL --qa QA.json [--steps 40] [--sides ours notebook plain 7gib] [--profile]

Each side trains in a separate process on the same rows in the same order: NF4, LoRA r=16 on all projections, 8 rows a step. Reports the
median time of a step after the warm-up; PyTorch's peak allocated and reserved memory, and the memory in use on the card at the end, CUDA and its
graphs included; and how far the losses of the first steps are from the notebook's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = {
    "notebook": "Unsloth, 2 x 4, Unsloth's checkpointing",
    "plain": "TRL + PEFT, 2 x 4, checkpointing",
    "ours": "this harness, as planned",
    "2gpus": "this harness, on two GPUs",
    "7gib": "this harness, planned for 7 GiB",
    "packed": "this harness, packed, no CUDA graphs",
    "padded": "this harness, rows side by side",
}
STOCK = ("notebook", "plain")
"""The sides that use TRL's own trainer."""


def settings_of(side: str) -> dict[str, Any]:
    """Settings of the train section."""
    common = {
        "max_steps": 1,
        "optimizer": "adamw_8bit",
        "eval_rows": 0,
        "batch_size": 8,
        "seed": 3407,
        "max_length": 512,
    }
    special: dict[str, dict[str, Any]] = {
        "plain": {"engine": "peft"},
        "7gib": {"memory_limit_gib": 7.0},
        "packed": {"cuda_graphs": False},
        "padded": {"packing": False},
    }
    return common | special.get(side, {})


def train(side: str, model_path: Path, qa: Path, steps: int, profile: bool) -> dict[str, Any]:
    """Trains `steps` steps, or the first quarter of them on the slow sides; returns the measurements."""
    from harness.config import TEMPLATE, Train
    from harness.models.base_model import quiet_libraries, read_config
    from harness.prompt import Prompter
    from harness.questions import dataset
    from harness.training import plan as planning
    from harness.training.distributed import broadcast, processes
    from harness.training.model import add_lora, device_memory, load_model

    quiet_libraries()
    settings = Train(**settings_of(side) | {"max_steps": steps})
    loaded = time.monotonic()
    os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp()
    if side == "notebook":
        os.environ.update(UNSLOTH_DISABLE_AUTO_PADDING_FREE="0", UNSLOTH_BLOCK_COMPILE="1")  # as Unsloth comes
    among = processes()
    broadcast(None, among, cpu=False)
    model, tokenizer = load_model(model_path, settings, "cuda", among)
    loaded = time.monotonic() - loaded

    import torch
    from transformers import TrainerCallback

    prompter = Prompter(tokenizer, TEMPLATE)
    questions = dataset.load(qa)
    rows = [
        prompter.example(q.question, q.answer, train_on="answer", max_length=settings.max_length, name=q.id)
        for q in questions
    ]
    stock = side in STOCK
    stop = max(steps // 4, 12) if stock else steps
    if stock:
        plan: Any = "micro-batches of 2"
    else:
        from harness.training import packing

        packs = packing.is_supported(model)
        shape = planning.Shape.of(read_config(model_path))
        plan = planning.make(
            shape,
            settings,
            [len(r.input_ids) for r in rows],
            8 // among.world,
            memory_bytes=device_memory(),
            packing=packs,
            graphs=packs,
        )
    model = add_lora(model, settings, engine=settings.engine, checkpointing=stock or plan.checkpointing)

    class Clock(TrainerCallback):
        """The end time and the loss of each step."""

        def __init__(self) -> None:
            self.ends: list[float] = []
            self.losses: list[float] = []
            self.profiler: Any = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if profile and state.global_step == steps - 4:
                torch.cuda.synchronize()
                self.profiler = torch.profiler.profile(activities=list(torch.profiler.supported_activities()))
                self.profiler.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # A slow side ends early, with the learning-rate schedule of the full length.
            control.should_training_stop |= state.global_step >= stop

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                self.ends.append(time.perf_counter())
                self.losses.append(logs["loss"])

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        if stock:
            trainer = stock_trainer(model, tokenizer, rows, settings, steps, out, clock)
        else:
            from harness.training.trainer import Recipe, make_trainer

            recipe = Recipe(settings, plan, steps, Path(out), "cuda", print, among)
            trainer = make_trainer(model, tokenizer, rows, [], recipe, clock)
        trainer.args.save_strategy = "no"
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        plan = plan if stock else trainer.plan
    took = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    steady = took[len(took) // 3 : -4 if profile else None]
    if clock.profiler is not None:
        torch.cuda.synchronize()
        clock.profiler.__exit__(None, None, None)
        tell_profile(clock.profiler, 4)
    free, total = torch.cuda.mem_get_info()
    return {
        "side": side,
        "plan": str(plan),
        "seconds": statistics.median(steady),
        "spread": [min(steady), max(steady)],
        "first": took[: len(took) // 3],
        "allocated": torch.cuda.max_memory_allocated(),
        "taken": torch.cuda.max_memory_reserved(),
        "card": total - free,
        "losses": clock.losses,
        "load_seconds": loaded,
    }


def stock_trainer(model: Any, tokenizer: Any, rows: list[Any], settings: Any, steps: int, out: str, clock: Any) -> Any:
    """The notebook's trainer: micro-batches of 2 rows, 4 a step."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_steps,
        optim=settings.optimizer,
        weight_decay=settings.weight_decay,
        gradient_checkpointing=True,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=True,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    data = Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]})
    return SFTTrainer(model=model, processing_class=tokenizer, args=arguments, train_dataset=data, callbacks=[clock])


def tell_profile(profiler: Any, steps: int) -> None:
    """Prints the device time of a step by kernel, as the mean of `steps` steps."""
    events = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
    busy = sum(e.self_device_time_total for e in events) / steps / 1e6
    count = sum(e.count for e in events if e.self_device_time_total > 0) / steps
    print(f"    profile: {busy:.3f} s of kernels and {count:,.0f} of them a step", flush=True)
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:14]:
        print(
            f"      {event.self_device_time_total / steps / 1e3:7.2f} ms  {event.count // steps:6d} x  {event.key[:100]}"
        )


def main() -> None:
    """Runs each side in a separate process and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--qa", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["notebook", "plain", "ours", "7gib"])
    parser.add_argument("--profile", action="store_true", help="say where the time of our steps goes")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        profile = options.profile and options.side not in STOCK
        with contextlib.redirect_stdout(sys.stderr):
            found = train(options.side, options.model, options.qa, options.steps, profile)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return
    results = []
    for side in options.sides:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if side == "2gpus" else []
        asked = ["--side", side, "--model", str(options.model), "--qa", str(options.qa), "--steps", str(options.steps)]
        command = [sys.executable, *several, __file__, *asked, *(["--profile"] if options.profile else [])]
        # torchrun gives each process one thread unless OMP_NUM_THREADS is set; TRL refuses to train where one process sees several GPUs.
        threads, gpu = (
            str(max((os.cpu_count() or 2) // 2, 1)),
            os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0],
        )
        own = {"OMP_NUM_THREADS": threads} if several else {"CUDA_VISIBLE_DEVICES": gpu}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})
        if done.returncode:
            print(f"{side}: failed\n{done.stderr[-3000:]}", flush=True)
            continue
        found = json.loads(next(line for line in done.stdout.splitlines()[::-1] if line.startswith("{")))
        results.append(found)
        shown = ("    profile", "      ", "out of memory", "steps cannot")
        print(
            "\n".join(
                line
                for line in done.stderr.splitlines()
                if line.startswith(shown) and "%|" not in line and "File" not in line
            )
        )
        print(f"{SIDES[side]}: {found['seconds']:.4f} s/step; {found['plan']}")
        print("    losses " + " ".join(f"{loss:.4f}" for loss in found["losses"][:12]), flush=True)
    print_results(results)


def print_results(results: list[dict[str, Any]]) -> None:
    """The table, as Markdown."""
    reference = {r["side"]: r["seconds"] for r in results}
    notebook = next((r for r in results if r["side"] == "notebook"), results[0])
    print(
        "\n| side | s/step | against the notebook | against plain | peak GiB allocated | peak GiB taken | GiB of the card in the end | loss apart, first 10 steps |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for r in results:
        ratios = [
            f"{reference[side] / r['seconds']:.1f}x" if side in reference else "" for side in ("notebook", "plain")
        ]
        apart = max(abs(a - b) / b for a, b in zip(r["losses"][:10], notebook["losses"][:10], strict=False))
        print(
            f"| {SIDES[r['side']]} | {r['seconds']:.4f} ({r['spread'][0]:.3f} to {r['spread'][1]:.3f}) | {' | '.join(ratios)} "
            f"| {r['allocated'] / 2**30:.1f} | {r['taken'] / 2**30:.1f} | {r['card'] / 2**30:.1f} | {apart:.2%} |"
        )


if __name__ == "__main__":
    main()
