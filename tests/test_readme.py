"""The README is true: its Python runs as written, its commands are the ones that CI calls."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_as_written_one_after_another(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    checks = [
        "import torch; torch.set_num_threads(1)",
        *blocks,
        "assert 0.0 <= float(robust) <= float(clean) <= 1.0",
        "assert set(losses) >= {'loss', 'ce', 'isotropic', 'anisotropic', 'regulariser'}",
        "from attacks_pool import pool; from defenses import registry",
        "assert 'my-noise' in pool.names() and 'label-smoothing' in registry.names()",
        "own = registry.build('label-smoothing', classifier, parameters={'smoothing': '0.2'})",
        "own.fit(loader, [pool.get('my-noise', eps=0.1)], plan=TrainPlan(epochs=1))",
    ]
    script = tmp_path / "readme.py"
    script.write_text("\n".join(checks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[01]\.\d+ ok\n", done.stdout)


def test_ci_finds_the_test_command() -> None:
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert "advbench run --defense air --sequence fgsm,pgd,cw" in commands[0]
    assert commands[1].endswith("-m pytest")


def test_commands_name_options_that_exist() -> None:
    from advbench.cli.main import app

    options = {
        option
        for command in app.registered_commands
        for option in re.findall(r"--[a-z-]+", " ".join(_declared(command.callback)))
    }
    shown = re.findall(r"^advbench (?:run|leaderboard) .*$", README, flags=re.MULTILINE)
    assert len(shown) >= 8
    for line in shown:
        for option in re.findall(r"(?<!\S)--[a-z-]+", line):
            assert option in options | {"--help"}, line


def _declared(callback: object) -> list[str]:
    """The option names of a command: explicit ones, and those that Typer makes of parameter names."""
    import inspect
    import typing

    names = []
    for name, hint in typing.get_type_hints(callback, include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            names += [text for text in getattr(part, "param_decls", None) or () if text.startswith("--")]
        names.append("--" + name.rstrip("_").replace("_", "-"))
    assert inspect.isfunction(callback)
    return names
