"""``python -m mpq_compile``: the command line."""

from mpq_compile.cli import main

if __name__ == "__main__":
    main()
