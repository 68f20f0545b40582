"""`python -m genius_lite`, which is what launchers of several processes start."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Python looks for modules in the working directory first, where a `yaml.py` may lie beside somebody's recipe.
        del sys.path[0]
    from genius_lite.cli import main

    main()
