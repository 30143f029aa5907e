"""Several methods on one task: trains, tests and compares them. The studies are those of ``scripts/studies.py``.

    make compare                                       # the same as: python scripts/compare.py
    python scripts/compare.py --smoke --runs runs/smoke --out report   # two steps of one seed, to see that it works
    python scripts/compare.py --study lfm_gsm8k        # LFM2.5-1.2B on GSM8K, the untouched model first: needs a GPU
    python scripts/compare.py --study lfm_gsm8k --model FOLDER --methods untouched sft sft_grpo \\
        -- --data.task.init_args.path FOLDER --trainer.max_steps 40

A method that continues from the policy of another one waits for it. Runs execute in parallel, each on one thread. A
finished run is not repeated, so the command can be restarted after an interruption. Then every policy is tested, and
`grpo compare` writes its report. Options after ``--`` go to every run. Paths are relative to the repository.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from studies import SMOKE, STUDIES, Method, Study

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Plan:
    """The runs of one comparison.

    Args:
        study: what is compared.
        methods: the methods of the study that are run.
        runs: folder of all runs.
        out: folder of the report.
        seeds: the seeds of each method.
        tokens: budget of generated tokens per run; ``None``: the steps of the configs.
        smoke: run two tiny steps instead of a whole run.
        model: replaces the model of the configs.
        options: arguments of `grpo` for every run.
    """

    study: Study
    methods: tuple[Method, ...]
    runs: Path
    out: Path
    seeds: tuple[int, ...]
    tokens: int | None
    smoke: bool
    model: str | None
    options: tuple[str, ...]

    def folder(self, method: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.runs / method / f"seed-{seed}"

    def order(self) -> list[tuple[Method, int]]:
        """Return the method and the seed of each run, which comes after the one that it continues from."""
        # Without training, the seeds do not differ.
        return [(method, seed) for method in self.methods for seed in self.seeds[: None if method.trains else 1]]

    def commands(self, method: Method, seed: int) -> list[list[str]]:
        """Return the arguments of `grpo` that train a run and test its last policy."""
        folder = self.folder(method.name, seed)
        shared = [f"configs/{method.config}.yaml", *_arguments(self._options(method, seed)), *self.options]
        if not method.trains:
            return [["test", "--config", *shared]]
        options = {"ckpt_path": str(folder / "checkpoints/last.ckpt"), "run_dir": str(folder / "test")}
        return [["fit", "--config", *shared], ["test", "--config", str(folder / "config.yaml"), *_arguments(options)]]

    def _options(self, method: Method, seed: int) -> dict[str, str]:
        options = {"seed_everything": str(seed), "run_dir": str(self.folder(method.name, seed))}
        if method.start is not None:
            options["model.init_args.policy.path"] = str(self.folder(method.start, seed) / "policy")
            options["model.init_args.policy.init"] = "pretrained"
        elif self.model is not None:
            options["model.init_args.policy.path"] = self.model
        if method.trains:
            options |= self._lengths(method)
        return options | method.options | (SMOKE if self.smoke else {})

    def _lengths(self, method: Method) -> dict[str, str]:
        """Return what ends a run, and that it is validated before its first step."""
        profiler, stop = "{class_path: VRAMProfiler}", self.study.stops.get(method.name)
        options = {} if method.start is None else {"summary.validate_first": "true"}
        if method.samples and self.tokens is not None:
            stop = f"{{class_path: TokenBudget, init_args: {{tokens: {self.tokens}}}}}"
            # The budget ends the run, not the number of steps.
            options |= {"warm_start": "null", "trainer.max_steps": "10000"}
        callbacks = [profiler] if stop is None else [profiler, stop]
        return options | {"trainer.callbacks": f"[{', '.join(callbacks)}]"}

    def compare(self) -> list[str]:
        """Return the arguments of `grpo` that write the report."""
        runs = [f"{method.title}={self.runs / method.name}" for method in self.methods]
        title = self.study.title + (f" at {self.tokens:,} generated tokens" if self.tokens is not None else "")
        return ["compare", *runs, "--out", str(self.out), "--title", title]

    def grpo(self, args: list[str], stdout: object = None) -> int:
        """Run `grpo` on one thread, and return its exit code."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"HF_HUB_OFFLINE": "1"} if self.study.offline else {})
        command = [sys.executable, "-m", "grpo_lightning", *args]
        return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.STDOUT).returncode  # type: ignore[call-overload,no-any-return]


def _arguments(options: dict[str, str]) -> list[str]:
    return [text for key, value in options.items() for text in (f"--{key}", value)]


def make(plan: Plan, method: Method, seed: int, start: Future[None] | None) -> None:
    """Train and test one run, unless it is finished."""
    if start is not None:
        start.result()
    folder = plan.folder(method.name, seed)
    for number, args in enumerate(plan.commands(method, seed)):
        done = folder / f"{args[0]}.done"
        if done.is_file():
            if done.read_text() == shlex.join(args):
                continue
            raise SystemExit(f"{folder} was written by a different command: remove it, or give another --runs")
        # An interrupted run is repeated from the start.
        shutil.rmtree(folder if number == 0 else folder / "test", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{args[0]}.log"
        print(f"{method.title}, seed {seed}: grpo {args[0]} ...", flush=True)
        with log.open("w") as file:
            code = plan.grpo(args, stdout=file)
        if code:
            raise SystemExit(f"grpo {args[0]} of {folder} failed with exit code {code}: see {log}")
        done.write_text(shlex.join(args))


def run(plan: Plan, jobs: int) -> None:
    """Make all runs, `jobs` at a time, and the report. Shipped configs name their files relative to the root."""
    os.chdir(ROOT)
    runs: dict[tuple[str, int], Future[None]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        # In order, so a run can only wait for one that is already running.
        for method, seed in plan.order():
            start = runs[method.start, seed] if method.start is not None else None
            runs[method.name, seed] = pool.submit(make, plan, method, seed, start)
        for future in runs.values():
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if plan.grpo(plan.compare()):
        raise SystemExit("grpo compare failed")


def parse(args: list[str] | None = None) -> tuple[Plan, int]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), default="quickstart")
    parser.add_argument("--runs", type=Path, help="folder of all runs (default: runs/STUDY)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: the study's)")
    parser.add_argument("--methods", nargs="+", help="what they continue from is always included (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, help="budget of generated tokens per run (default: the study's)")
    parser.add_argument("--jobs", type=int, help="number of parallel runs, with one thread each (default: the study's)")
    parser.add_argument("--model", help="hub name or folder of another model than that of the configs")
    parser.add_argument("--smoke", action="store_true", help="two tiny steps of one seed")
    parser.add_argument("options", nargs="*", help="after --: options of grpo for every run")
    given = parser.parse_args(args)
    study = STUDIES[given.study]
    names = [method.name for method in study.methods]
    chosen = set(given.methods or names)
    if not chosen <= set(names):
        parser.error(f"--methods: {given.study} has {', '.join(names)}")
    chosen |= {start for method in study.methods if method.name in chosen and (start := method.start) is not None}
    plan = Plan(
        study,
        tuple(method for method in study.methods if method.name in chosen),
        given.runs or Path("runs") / given.study,
        given.out or Path(study.out),
        tuple(given.seeds[:1] if given.smoke else given.seeds),
        given.tokens or study.tokens,
        given.smoke,
        given.model,
        tuple(given.options),
    )
    return plan, given.jobs or study.jobs


if __name__ == "__main__":
    run(*parse())
