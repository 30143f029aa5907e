"""SFT, PPO, GRPO and GRPO with refinement on the quickstart task, from the same warm starts, at equal generated tokens.

    make compare                                       # the same as: python scripts/compare.py
    python scripts/compare.py --smoke --runs runs/smoke --out report   # two steps of one seed, to see that it works

One warm start is trained per seed, and all methods continue from its policy. Runs execute in parallel, each on one
thread. A finished run is not repeated, so the command can be restarted after an interruption. Then every policy is
tested, and `grpo compare` writes its report. Nothing is downloaded. Paths are relative to the root of the repository.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
WARM_START = "sft"
TOKENS = 1_100_000  # as many as 200 steps of configs/quickstart.yaml generate


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        name: name of the folder of its runs.
        title: name in the report.
        config: name of the config that trains it.
        options: options that override the config's.
        samples: whether it generates the completions it learns from, and so is limited by the token budget.
    """

    name: str
    title: str
    config: str
    options: dict[str, str] = field(default_factory=dict)
    samples: bool = True


STOPS = {
    WARM_START: "{class_path: EarlyStopping, init_args: {monitor: val/accuracy, mode: max, stopping_threshold: 0.4, "
    "patience: 1000}}",
    "sft_converged": "{class_path: EarlyStopping, init_args: {monitor: val/accuracy, mode: max, patience: 10}}",
}
"""How runs without a token budget stop: the warm start as in its config, the other when accuracy no longer improves."""

METHODS = (
    Method(WARM_START, "SFT (warm start)", "quickstart_sft", samples=False),
    Method("sft_converged", "SFT (converged)", "quickstart_sft", {"trainer.max_steps": "3000"}, samples=False),
    Method("ppo", "PPO", "quickstart_ppo"),
    Method("grpo", "GRPO", "quickstart"),
    Method("grpo_no_std", "GRPO without the std", "quickstart", {"model.init_args.advantage": "none-scaled"}),
    # Two more samples per prompt, as many as refinement may add: does the feedback help, or the second chance?
    Method("grpo_group10", "GRPO, 10 samples per prompt", "quickstart", {"data.group_size": "10"}),
    Method(
        "refine_distill", "GRPO + refinement (distill)", "quickstart",
        {"data.refinement": "{mode: distill, budget: 2}"},
    ),
    Method(
        "refine_in_context", "GRPO + refinement (in_context)", "quickstart",
        {"data.refinement": "{mode: in_context, budget: 2}"},
    ),
)  # fmt: skip
SMOKE = {
    "trainer.max_steps": "2", "trainer.val_check_interval": "1", "trainer.limit_val_batches": "1",
    "data.prompts_per_step": "2", "data.val_batch_size": "4", "data.task.init_args.test_size": "8",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The runs of one comparison.

    Args:
        runs: folder of all runs.
        out: folder of the report.
        methods: the methods to compare.
        seeds: the seeds of each method.
        tokens: budget of generated tokens per run.
        smoke: run two tiny steps instead of a whole run.
    """

    runs: Path
    out: Path
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    tokens: int
    smoke: bool

    def folder(self, method: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.runs / method / f"seed-{seed}"

    def fit(self, method: Method, seed: int) -> list[str]:
        """Return the arguments of `grpo` that train a run."""
        options = {"seed_everything": str(seed), "run_dir": str(self.folder(method.name, seed))}
        if method.name != WARM_START:
            options["model.init_args.policy.path"] = str(self.folder(WARM_START, seed) / "policy")
            options["model.init_args.policy.init"] = "pretrained"
            options["summary.validate_first"] = "true"
        stop = STOPS.get(method.name, f"{{class_path: TokenBudget, init_args: {{tokens: {self.tokens}}}}}")
        options["trainer.callbacks"] = f"[{{class_path: VRAMProfiler}}, {stop}]"
        if method.samples:
            # The budget ends the run, not the number of steps.
            options |= {"warm_start": "null", "trainer.max_steps": "10000"}
        options |= method.options | (SMOKE if self.smoke else {})
        return ["fit", "--config", f"configs/{method.config}.yaml", *_arguments(options)]

    def test(self, method: Method, seed: int) -> list[str]:
        """Return the arguments of `grpo` that test the last policy of a run."""
        folder = self.folder(method.name, seed)
        options = {"ckpt_path": str(folder / "checkpoints/last.ckpt"), "run_dir": str(folder / "test")}
        return ["test", "--config", str(folder / "config.yaml"), *_arguments(options)]

    def compare(self) -> list[str]:
        """Return the arguments of `grpo` that write the report."""
        runs = [f"{method.title}={self.runs / method.name}" for method in self.methods]
        title = f"The quickstart task at {self.tokens:,} generated tokens"
        return ["compare", *runs, "--out", str(self.out), "--title", title]


def _arguments(options: dict[str, str]) -> list[str]:
    return [text for key, value in options.items() for text in (f"--{key}", value)]


def make(plan: Plan, method: Method, seed: int, warm_start: Future[None] | None) -> None:
    """Train and test one run, unless it is finished."""
    if warm_start is not None:
        warm_start.result()
    folder = plan.folder(method.name, seed)
    for args, marker in ((plan.fit(method, seed), "fit.done"), (plan.test(method, seed), "test.done")):
        done = folder / marker
        if done.is_file():
            if done.read_text() == shlex.join(args):
                continue
            raise SystemExit(f"{folder} was written by a different command: remove it, or give another --runs")
        # An interrupted run is repeated from the start.
        shutil.rmtree(folder if args[0] == "fit" else folder / "test", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{args[0]}.log"
        print(f"{method.title}, seed {seed}: grpo {args[0]} ...", flush=True)
        with log.open("w") as file:
            code = _grpo(args, stdout=file)
        if code:
            raise SystemExit(f"grpo {args[0]} of {folder} failed with exit code {code}: see {log}")
        done.write_text(shlex.join(args))


def _grpo(args: list[str], stdout: object = None) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "grpo_lightning", *args]
    return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.STDOUT).returncode  # type: ignore[call-overload,no-any-return]


def run(plan: Plan, jobs: int) -> None:
    """Make all runs, `jobs` at a time, and the report. Shipped configs name their files relative to the root."""
    os.chdir(ROOT)
    with ThreadPoolExecutor(jobs) as pool:
        # Warm starts are submitted first, so a run can only wait for a warm start that is already running.
        warm_starts = {seed: pool.submit(make, plan, METHODS[0], seed, None) for seed in plan.seeds}
        rest = [method for method in plan.methods if method.name != WARM_START]
        runs = [pool.submit(make, plan, method, seed, warm_starts[seed]) for seed in plan.seeds for method in rest]
        for future in [*warm_starts.values(), *runs]:
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if _grpo(plan.compare()):
        raise SystemExit("grpo compare failed")


def parse(args: list[str] | None = None) -> tuple[Plan, int]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [method.name for method in METHODS]
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the report")
    parser.add_argument("--methods", nargs="+", choices=names, default=names, help="the warm start is always included")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, default=TOKENS, help="budget of generated tokens per run")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs, with one thread each")
    parser.add_argument("--smoke", action="store_true", help="two tiny steps of one seed")
    given = parser.parse_args(args)
    chosen = tuple(method for method in METHODS if method.name in {WARM_START, *given.methods})
    seeds = tuple(given.seeds[:1] if given.smoke else given.seeds)
    return Plan(given.runs, given.out, chosen, seeds, given.tokens, given.smoke), given.jobs


if __name__ == "__main__":
    run(*parse())
