"""The `moegraft` command and `python -m moegraft`."""

from moegraft.cli import main

if __name__ == "__main__":
    main()
