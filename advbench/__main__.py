"""The entry point of ``python -m advbench``."""

from advbench.cli.main import main

if __name__ == "__main__":
    main()
