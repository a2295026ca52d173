"""Every tool ends in the same way."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from densesiam_d2 import tools
from densesiam_d2.tools.command_line import naming, tool

PARTS = {"command_line", "grid_command", "onnx_file", "reader_pool"}  # what tools share
TOOLS = [module.name for module in pkgutil.iter_modules(tools.__path__) if module.name not in PARTS]


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1)])
def test_the_status_is_what_main_returns(returned, status):
    assert tool(lambda argv: returned)(["word"]) == status


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("no key X"), 2, "test_command_line: no key X\n"),
        (FileNotFoundError("no file x"), 2, "test_command_line: no file x\n"),
        (ModuleNotFoundError("No module named 'x'"), 2, "test_command_line: No module named 'x'\n"),
        (KeyboardInterrupt(), 75, "test_command_line: stopped; run the same command again\n"),
    ],
)
def test_errors_of_the_user_are_one_line(error, status, line, capsys):
    @tool
    def main(argv):
        raise error

    assert main() == status
    assert capsys.readouterr().err == line


def test_faults_of_the_program_keep_their_traceback():
    @tool
    def main(argv):
        raise KeyError("x")

    with pytest.raises(KeyError):
        main()


def test_a_source_is_named_once():
    for text, named in (("no key X", "a.yaml: no key X"), ("a.yaml: no key X", "a.yaml: no key X")):
        with pytest.raises(ValueError, match=f"^{named}$"), naming(Path("a.yaml")):
            raise ValueError(text)


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_uses_it(name):
    module = importlib.import_module(f"densesiam_d2.tools.{name}")
    assert module.main.__wrapped__.__module__ == module.__name__
    ending = '\nif __name__ == "__main__":\n    sys.exit(main())\n'
    assert Path(module.__file__).read_text().endswith(ending)


def test_it_needs_no_torch():
    code = "import sys, densesiam_d2.tools.command_line; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
