"""The subcommands of ``mpq``, one a file."""
