"""`python -m ae_toolkit` is `ae`."""

from ae_toolkit.cli.app import main

if __name__ == "__main__":
    main()
