"""The shipped configs of structured extraction and of code, and their tiny decoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rows import WriteRows
from transformers import AutoTokenizer

from grpo_lightning.__main__ import main
from grpo_lightning.tasks import Extraction, Programs, Task
from grpo_lightning.tasks.base import SPLITS

ROOT = Path(__file__).parents[2]
TINY: dict[str, tuple[Task, str]] = {
    "extraction": (Extraction(prompt_template="{prompt}", shots=0), "tiny_decoder_json"),
    "programs": (Programs(prompt_template="Write f(x): {prompt}."), "tiny_decoder_code"),
}
MBPP_ROW = {"text": "Add one.", "code": "def add(n):\n    return n + 1", "test_list": ["assert add(1) == 2"]}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the repository's root, since the shipped configs name their files relative to it."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def overrides(tiny_model: Callable[[str], str], write_jsonl: WriteRows) -> dict[str, dict[str, str]]:
    """The overrides with which each config trains here: no warm start, which is a separate config, and no hub."""
    from_scratch = {"warm_start": "null", "model.init_args.policy.init": "random"}
    real = {"model.init_args.policy.path": tiny_model("lfm2"), "data.max_prompt_tokens": "2000"}
    for split in ("train", "validation", "test"):
        folder = write_jsonl(f"mbpp/{split}.jsonl", [MBPP_ROW] * 4).parent
    return {
        "quickstart_json": from_scratch,
        "quickstart_json_sft": {},
        "quickstart_code": from_scratch,
        "quickstart_code_sft": {},
        "smollm2_json": real,
        "smollm2_json_sft": real,
        "smollm2_gym": real | {f"data.task.init_args.{split}_size": "8" for split in SPLITS},
        "lfm_json": real,
        "lfm_mbpp": real | {"data.task.init_args.path": str(folder)},
    }


CONFIGS = [
    "quickstart_json",
    "quickstart_json_sft",
    "quickstart_code",
    "quickstart_code_sft",
    "smollm2_json",
    "smollm2_json_sft",
    "smollm2_gym",
    "lfm_json",
    "lfm_mbpp",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_trains(name: str, overrides: dict[str, dict[str, str]], tmp_path: Path) -> None:
    few = {
        "trainer.default_root_dir": str(tmp_path), "trainer.accelerator": "cpu", "trainer.max_steps": "1",
        "trainer.val_check_interval": "1", "trainer.limit_val_batches": "1", "trainer.enable_progress_bar": "false",
        "data.prompts_per_step": "2", "data.group_size": "2", "data.val_batch_size": "4",
        "data.sampling.max_new_tokens": "8",
    }  # fmt: skip
    if name != "lfm_mbpp":
        few["data.task.init_args.train_size"] = "40"
    options = [text for key, value in (few | overrides[name]).items() for text in (f"--{key}", value)]
    main(["fit", "--config", f"configs/{name}.yaml", *options])
    (run,) = (tmp_path / name).iterdir()
    assert (run / "checkpoints/last.ckpt").is_file()
    assert (run / "policy/tokenizer_config.json").is_file()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gold_answers_satisfy_the_configs_verifier(
    name: str, overrides: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    task, verifier = config["data"]["task"], config["model"]["init_args"]["verifiers"][0]["class_path"]
    few = {} if task["class_path"] == "MBPP" else {f"data.task.init_args.{split}_size": "20" for split in SPLITS}
    few |= {key: value for key, value in overrides[name].items() if key.startswith("data.task")}
    options = [text for key, value in few.items() for text in (f"--{key}", value)]
    main(["check", "--config", f"configs/{name}.yaml", *options])
    wanted = f"{task['class_path']}: every gold answer that was checked is correct to {verifier}"
    assert wanted in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["json", "code"])
def test_a_quickstart_and_its_warm_start_agree(kind: str) -> None:
    grpo, sft = (yaml.safe_load((ROOT / f"configs/quickstart_{kind}{end}.yaml").read_text()) for end in ("", "_sft"))
    assert grpo["warm_start"] == f"configs/quickstart_{kind}_sft.yaml"
    assert grpo["data"]["task"] == sft["data"]["task"]
    assert grpo["model"]["init_args"]["verifiers"] == sft["model"]["init_args"]["verifiers"]
    assert grpo["data"]["sampling"]["max_new_tokens"] == sft["data"]["sampling"]["max_new_tokens"]


@pytest.mark.parametrize("name", TINY)
def test_prompts_and_solutions_are_short(name: str) -> None:
    task, folder = TINY[name]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs" / folder)
    prompts = task.prompts("train")
    chats = [prompt.messages for prompt in prompts]
    rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    assert len(rendered) == len(prompts)
    assert max(map(len, rendered)) <= 40
    assert max(map(len, tokenizer([prompt.solution for prompt in prompts]).input_ids)) + 1 <= 32
