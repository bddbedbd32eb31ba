"""``python -m evalkit``."""

from evalkit.cli.main import main

if __name__ == "__main__":
    main()
