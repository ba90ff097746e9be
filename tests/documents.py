"""The code blocks of the documents, and how a test runs those of a group.

The first line of a block names its language and the group of blocks that it belongs to:

    ```sh tour

The blocks of a group are run one after the other, in one shell, in the order of the documents. A block "```text output"
holds what the block before it prints.
"""

import dataclasses
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Printed by the shell between two blocks.
SEPARATOR = "--- end of a block ---"


@dataclasses.dataclass
class Block:
    document: str
    line: int
    language: str
    group: str
    text: str
    # What the block prints, where the document shows it.
    output: str | None = None

    def __str__(self):
        return f"{self.document}:{self.line}"


def documents():
    """All documents of the repository for its users and maintainers."""
    top = [path for path in ROOT.glob("*.md")]
    below = [path for directory in ("docs", "examples", "src", "host") for path in (ROOT / directory).rglob("*.md")]
    return sorted(top) + sorted(below)


def parse(name, text):
    """The fenced blocks of a Markdown text."""
    found, block = [], None
    for number, line in enumerate(text.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if not line.lstrip().startswith("```"):
            if block:
                block.text += line[block_indent:] + "\n"
        elif block:
            if (block.language, block.group) == ("text", "output"):
                assert found, f"{block}: no block before this output"
                found[-1].output = block.text
            else:
                found.append(block)
            block = None
        else:
            words = line.strip().removeprefix("```").split() + ["", ""]
            block, block_indent = Block(name, number, words[0], words[1], ""), indent
    assert block is None, f"{block}: the block has no end"
    return found


def all_blocks():
    return [block for path in documents() for block in parse(str(path.relative_to(ROOT)), path.read_text())]


def of_group(group):
    found = [block for block in all_blocks() if block.group == group]
    assert found, f"no document has a block of the group {group}"
    return found


def without_numbers(output):
    """The lines of an output, with what differs from run to run replaced: numbers, identifiers and months."""
    output = re.sub(r"\b[0-9a-f]{16,}\b", "ID", output)
    output = re.sub(r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b", "Mon", output)
    return [re.sub(r"\d+", "0", line.rstrip()) for line in output.strip().splitlines()]


def script(blocks, python):
    """A shell script that runs blocks of the languages `sh` and `python`."""
    parts = []
    for block in blocks:
        assert block.language in ("sh", "python"), f"{block}: cannot run {block.language}"
        text = block.text if block.language == "sh" else f"{python} - <<'END OF PYTHON'\n{block.text}END OF PYTHON\n"
        parts.append(f"{text}echo; echo '{SEPARATOR}'\n")
    return "set -eu\n" + "".join(parts)


def run(blocks, directory, env, python="python3", timeout=300):
    """Runs the blocks in a directory; fails if a command fails or prints something else than the document shows."""
    result = subprocess.run(
        ["bash", "-c", script(blocks, python)],
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=timeout,
    )
    printed = result.stdout.split(SEPARATOR + "\n")
    everything = f"{result.stdout}\n{result.stderr}"
    assert len(printed) == len(blocks) + 1, f"{blocks[len(printed) - 1]} failed ({result.returncode}):\n{everything}"
    assert result.returncode == 0, everything
    for block, output in zip(blocks, printed):
        if block.output is not None:
            assert without_numbers(output) == without_numbers(block.output), f"{block} prints:\n{output}"
