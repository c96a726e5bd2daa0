"""`python -m sogclr` is `sogclr`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
