"""``python -m turnout`` is the same as ``turnout``."""

import sys

from .cli import main

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # The current folder, which -m puts there and an installed script does not.
        del sys.path[0]
    sys.exit(main())
