"""`python -m mpiserve`."""

from mpiserve.cli import main

if __name__ == "__main__":
    main()
