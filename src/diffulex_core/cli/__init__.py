"""The `diffulex` command; its subcommands are added by plugins."""
