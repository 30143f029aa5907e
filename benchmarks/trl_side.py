"""GRPO steps of TRL's GRPOTrainer, well configured, with the time and memory of each phase.

Rollouts are forced to the lengths that our side sampled: a logits processor puts the end of sequence at each row's last
position and nowhere else. On the CPU its own time is subtracted from the rollout's.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from datasets import Dataset
from meters import Peak, now
from our_side import TINY_LR, Step
from peft import LoraConfig
from shapes import Shape, reward, texts
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.generation import LogitsProcessor, LogitsProcessorList
from trl import GRPOConfig, GRPOTrainer

Lengths = Callable[[int], Sequence[int]]
"""A function that maps a step to the lengths of its rows."""


class ScriptedEnd(LogitsProcessor):
    """Ends row ``n`` exactly at its ``lengths[n]``-th token; rows at the token limit do not end."""

    def __init__(self, lengths: Sequence[int], cap: int, ends: Sequence[int], device: torch.device) -> None:
        self.ends = list(ends)
        self.lengths_N = torch.tensor([length if length < cap else cap + 1 for length in lengths], device=device)
        self.device = device
        self.step = 0
        self.seconds = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        start = time.process_time()
        self.step += 1
        scores[:, self.ends] = torch.where(self.lengths_N == self.step, 1e4, -1e4)[:, None]
        if self.device.type == "cpu":
            # On CUDA these are two kernel launches; synchronising at every token would cost more.
            self.seconds += time.process_time() - start
        return scores


class _TimedTrainer(GRPOTrainer):
    """GRPOTrainer with timed phases."""

    side: TRLSide

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().compute_loss(*args, **kwargs)
        self.side.losses.append(loss.detach())
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.side.timed("training", super().training_step, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        outputs = self.side.timed("collect", super()._generate_and_score_completions, inputs)
        self.side.note(outputs)
        return outputs

    def _generate(self, prompts: list) -> Any:
        return self.side.timed("rollout", super()._generate, prompts)

    def _calculate_rewards(self, *args: Any) -> Any:
        return self.side.timed("scoring", super()._calculate_rewards, *args)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.side.timed("old", super()._get_per_token_logps_and_entropies, *args, **kwargs)


class _Turns(TrainerCallback):
    """Gives our side its turn before each rollout of TRL, and reports TRL's step after it."""

    def __init__(self, side: TRLSide, steps: Callable[[int], Sequence[int]], done: Callable[[int, Step], None]) -> None:
        self.side, self.lengths, self.done = side, steps, done

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.side.shape.updates == 0:
            self.side.begin(self.lengths(state.global_step // self.side.shape.updates))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.side.shape.updates == 0:
            self.done(state.global_step // self.side.shape.updates - 1, self.side.end())


class TRLSide:
    """A GRPOTrainer for one shape.

    Args:
        shape: the shape of the model and the step.
        folder: folder of the model.
        device: device to run on.
        microbatch: rows per micro-batch.
        optimizer: a function that builds the optimizer from the parameters; ``None`` for AdamW.
        rollout_func: replaces generation in the check of agreement.
        steps: number of rollouts in the run.
        memory: measure memory instead of time.
        options: options of GRPOConfig.
    """

    def __init__(
        self,
        shape: Shape,
        folder: Path | str,
        device: torch.device,
        microbatch: int,
        optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        rollout_func: Any = None,
        steps: int = 1,
        memory: bool = False,
        **options: Any,
    ) -> None:
        warnings.filterwarnings("ignore", module="trl|transformers|torch")
        self.shape, self.device, self.steps = shape, device, steps
        self.peak = Peak(device, memory)
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.losses: list[Tensor] = []
        self.out = tempfile.TemporaryDirectory()
        assert shape.rows % microbatch == 0, f"{microbatch} rows do not divide {shape.rows}"
        mixed = shape.precision == "bf16-mixed"
        config: dict[str, Any] = {
            "output_dir": self.out.name, "per_device_train_batch_size": microbatch,
            "gradient_accumulation_steps": shape.rows // microbatch, "num_generations": shape.group_size,
            "num_iterations": shape.updates, "max_completion_length": shape.cap, "beta": shape.beta,
            "max_grad_norm": 1.0, "gradient_checkpointing": False, "bf16": mixed, "top_k": 0, "top_p": 1.0,
            "temperature": shape.temperature, "max_steps": steps * shape.updates, "use_cpu": device.type == "cpu",
            "report_to": [],
            "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "shuffle_dataset": False,
            "dataloader_pin_memory": False, "seed": 0, "loss_type": "grpo", "learning_rate": TINY_LR,
            "lr_scheduler_type": "constant", "weight_decay": 0.0,
            # By default TRL weights the KL by the ratio (arXiv 2512.02556), unlike GRPO's original loss.
            "use_bias_correction_kl": False,
        }  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, shape.dtype)).to(device)
        lora = None
        if shape.lora is not None:
            lora = LoraConfig(
                r=shape.lora, lora_alpha=2 * shape.lora, target_modules="all-linear", task_type="CAUSAL_LM"
            )
        prompts = [{"prompt": [{"role": "user", "content": text}]} for text in texts(shape)]
        self.trainer = _TimedTrainer(
            model=model,
            reward_funcs=_rewards,
            args=GRPOConfig(**config | options),
            # One pass of the data is one step.
            train_dataset=Dataset.from_list(prompts),
            processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
            peft_config=lora,
            rollout_func=rollout_func,
        )
        if optimizer is not None:
            parameters = [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]
            self.trainer.optimizer = optimizer(parameters)
        self.trainer.side = self
        self.trainer.remove_callback(PrinterCallback)
        self.base = self.peak.held()

    def run(self, lengths: Lengths, done: Callable[[int, Step], None]) -> None:
        """Run all steps; ``lengths`` is called before each step and ``done`` after it."""
        self.trainer.add_callback(_Turns(self, lengths, done))
        self.trainer.train()

    # -- one step ---------------------------------------------------------------------------------------------------

    def begin(self, lengths: Sequence[int]) -> None:
        """Start timing a step; ``lengths`` are those that its rows will have."""
        self.seconds, self.peaks = {}, {}
        self.script = ScriptedEnd(lengths, self.shape.cap, self.trainer.eos_token_ids, self.device)
        generate = type(self.trainer.accelerator.unwrap_model(self.trainer.model)).generate
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        model.generate = lambda **inputs: generate(model, **inputs, logits_processor=LogitsProcessorList([self.script]))
        self.peak.reset()
        self.started = now(self.device)

    def end(self) -> Step:
        """Return the measurements of the step."""
        step = now(self.device) - self.started
        self.peaks["update"] = self.peak.peak() - self.base
        rollout = self.seconds["rollout"] - self.script.seconds
        scoring = self.seconds["scoring"]
        seconds = {
            "rollout": rollout,
            "scoring": scoring,
            "old": self.seconds.get("old", 0.0),
            "update": step - self.script.seconds - rollout - scoring,
            "step": step - self.script.seconds,
            "passes": self.seconds["training"] - self.seconds["collect"],
        }
        return Step(seconds, self.lengths, self.prompt_lengths, peaks=self.peaks)

    def note(self, outputs: dict[str, Any]) -> None:
        """Record the generated lengths, and start measuring the update's memory."""
        self.lengths = outputs["completion_mask"].sum(1).tolist()
        self.prompt_lengths = outputs["prompt_mask"].sum(1).tolist()
        self.peaks["rollout"] = self.peak.peak() - self.base
        self.peak.reset()

    def timed(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function and add its time to a phase."""
        start = now(self.device)
        result = function(*args, **kwargs)
        self.seconds[name] = self.seconds.get(name, 0.0) + now(self.device) - start
        return result

    # -- forward and backward passes only ---------------------------------------------------------------------------

    def passes(self, rows: int | None = None, backward: bool = True) -> float:
        """Measure the passes over the last rollout in seconds.

        Args:
            rows: rows per micro-batch; ``None`` for those of the trainer.
            backward: whether to run the backward passes too.
        """
        trainer = self.trainer
        chunks: dict[str, Any] = {}
        for inputs in trainer._buffered_inputs:
            for key, value in inputs.items():
                if isinstance(value, Tensor) and value.dim():
                    chunks.setdefault(key, []).append(value)
        tensors = {key: torch.cat(values) for key, values in chunks.items()}
        size = rows or trainer.args.per_device_train_batch_size
        saved = [parameter.grad for parameter in trainer.model.parameters()]
        for parameter in trainer.model.parameters():
            parameter.grad = None
        accumulation, trainer.current_gradient_accumulation_steps = (
            trainer.current_gradient_accumulation_steps,
            self.shape.rows // size,
        )
        start = now(self.device)
        for first in range(0, self.shape.rows, size):
            inputs = {key: value[first : first + size] for key, value in tensors.items()}
            with torch.set_grad_enabled(backward):
                loss = trainer.compute_loss(trainer.model, inputs)
            if backward:
                trainer.accelerator.backward(loss)
        seconds = now(self.device) - start
        trainer.current_gradient_accumulation_steps = accumulation
        for parameter, grad in zip(trainer.model.parameters(), saved, strict=True):
            parameter.grad = grad
        return seconds

    def fastest_microbatch(self) -> int:
        """Return the fastest of the shape's micro-batch sizes, by the passes over the last rollout."""
        candidates = [rows for rows in self.shape.trl_microbatches if self.shape.rows % rows == 0]
        return min(candidates, key=self.passes)


@contextmanager
def head_on_completions() -> Iterator[None]:
    """Make TRL's head score only the completion tokens on the CPU, as it does on a GPU."""
    original = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = original


def _rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [reward(ids) for ids in completion_ids]
