"""Tasksets of the package ``verifiers`` 0.4, of one turn and without a runtime: their prompts, and their rewards.

docs/howto/verifiers-environments.md says how to use this file. ``verifiers`` is installed in a separate environment,
whose Python runs this file; a run of ``grpo`` imports it for :func:`reward`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any

_one_at_a_time = threading.Lock()


def reward(completions: list[Any], task: list[str], taskset: dict[str, Any], python: str) -> list[float | Exception]:
    """Score completions by the taskset's own rewards; one that cannot be scored has an exception instead.

    Args:
        completions: texts, or lists of one message.
        task: what the rows have in their column ``task``.
        taskset: the taskset's config: its ``id``, and its other options.
        python: the Python of the environment with ``verifiers``.
    """
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    with _one_at_a_time:
        process = _scoring_process(python, json.dumps(taskset))
        print(json.dumps(list(zip(task, texts, strict=True))), file=process.stdin, flush=True)
        line = process.stdout.readline()
    if not line:
        _scoring_process.cache_clear()
        raise RuntimeError("the process that scores has ended; what it printed says why")
    return [value if isinstance(value, float) else RuntimeError(value) for value in json.loads(line)]


@lru_cache
def _scoring_process(python: str, taskset: str) -> Any:
    command = [python, __file__, "score", taskset]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main(action: str, config: dict[str, Any]) -> None:
    """``rows``: print a row per task, to train on. ``score``: answer each line of input with a line of rewards."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a taskset prints is not an answer
    import verifiers.v1 as vf

    taskset = vf.load_taskset(vf.taskset_config_type(config["id"]).model_validate(config))
    task_type = vf.task_type(config["id"])
    if not issubclass(vf.environment_class(config["id"]), vf.SingleAgentEnv):
        sys.exit(f"{config['id']}: has more than one agent, so a completion alone cannot be scored")
    if action == "rows":
        for task in taskset:
            refuse(task, taskset)
            print(json.dumps({"prompt": messages(task.data), "task": task.data.model_dump_json()}), file=answers)
        return

    async def scores(pairs: list[tuple[str, str]]) -> list[float | str]:
        tasks = [task_type(task_type.data_type().model_validate_json(data), taskset.config.task) for data, _ in pairs]
        for task in tasks:
            refuse(task, taskset)
        return await asyncio.gather(*(score(task, text) for task, (_, text) in zip(tasks, pairs, strict=True)))

    with asyncio.Runner() as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(scores(json.loads(line)))), file=answers, flush=True)


def refuse(task: Any, taskset: Any) -> None:
    """Exit if a task is more than a prompt and rewards that read the reply: rewards would be wrong, or missing."""
    import verifiers.v1 as vf

    scorers = [*task.hooks("reward"), *task.hooks("metric"), *(judge.score for judge in task.plugged_judges())]
    runtimes = [inspect.signature(scorer).parameters.get("runtime") for scorer in scorers]
    found = {
        "tools": taskset.toolsets(taskset.config) or task.toolsets(task.config),
        "a setup or finalize": any(getattr(type(task), h) is not getattr(vf.Task, h) for h in ("setup", "finalize")),
        "a container image": task.data.image,
        "rewards that need a runtime": any(found is not None and found.default is found.empty for found in runtimes),
    }
    if any(found.values()):
        sys.exit(f"{type(task).__name__} {task.data.idx}: has {', '.join(what for what in found if found[what])}")


def messages(data: Any) -> list[dict[str, Any]]:
    """The prompt of a task as a chat."""
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return [*system, {"role": "user", "content": data.prompt}]
    return [*system, *(turn.model_dump(include={"role", "content"}) for turn in data.prompt or [])]


async def score(task: Any, text: str) -> float | str:
    """The reward of a reply, or what went wrong."""
    import verifiers.v1 as vf

    turns = vf.TaskData(prompt=[*messages(task.data), {"role": "assistant", "content": text}]).prompt
    nodes = [
        vf.MessageNode(parent=place - 1 if place else None, message=turn, sampled=place == len(turns) - 1)
        for place, turn in enumerate(turns)
    ]
    recorded = vf.TraceTask(type=type(task).__name__, data=task.data)
    trace = vf.Trace(task=recorded, agent=vf.AgentInfo(config=vf.AgentConfig()), nodes=nodes)
    try:
        await task.score(trace)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return float(trace.reward)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
