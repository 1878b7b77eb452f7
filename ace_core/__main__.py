"""``python -m ace_core``: the engine without a browser."""

from __future__ import annotations

from ace_core.cli import main

if __name__ == "__main__":
    main()
