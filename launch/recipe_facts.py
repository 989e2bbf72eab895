"""What launch scripts need to know about a recipe, as assignments for bash.

Usage: eval "$(python -m launch.recipe_facts RECIPE [a.b=c ...])"
       python -m launch.recipe_facts --open-corpus RECIPE [a.b=c ...]

The second form prints nothing: it refuses a corpus that is not there or not packed as the recipe
says in half a second, where a start of all processes would take many.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from data_prep.shards import open_corpus
from training.config.load import load_recipe
from training.config.shipped import find_ds_config, find_recipe

_OPEN_CORPUS = "--open-corpus"


def main(arguments: list[str]) -> int:
    """Print them; an error in the recipe, or no DeepSpeed JSON, is one message and exit code 2."""
    opens_corpus = arguments[0] == _OPEN_CORPUS
    arguments = arguments[opens_corpus:]
    try:
        recipe = load_recipe(arguments[0], arguments[1:])
        if opens_corpus:
            open_corpus(recipe.data.corpus).open_pack(recipe.data.sequence_tokens)
            return 0
        find_ds_config(recipe.deepspeed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # absolute: a launcher may start processes in another folder
    run_dir = Path(recipe.run_dir).absolute()
    print(f"RECIPE_FILE={shlex.quote(str(find_recipe(arguments[0])))}")
    print(f"SEQUENCE_PARALLEL_SIZE={recipe.train.sequence_parallel_size}")
    print(f"RUN_DIR={shlex.quote(str(run_dir))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
