"""`python -m diffulex_core` is the `diffulex` command."""

from diffulex_core.cli.app import main

if __name__ == "__main__":
    main()
