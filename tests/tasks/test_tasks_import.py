from __future__ import annotations

import subprocess
import sys


def test_importing_tasks_imports_no_heavy_library() -> None:
    code = "import sys, grpo_lightning.tasks; print(*sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
