"""What several commands take alike."""

import argparse
from pathlib import Path


def add_subject(parser: argparse.ArgumentParser) -> None:
    """A target, its drafter, and prompts."""
    parser.add_argument("--target", type=Path, required=True, help="directory of the target model")
    parser.add_argument("--drafter", type=Path, required=True, help="directory of the EAGLE-3 drafter")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="JSONL files, or directories of them")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
