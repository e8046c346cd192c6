"""The subcommands of ``vivid``: each module registers its arguments and the function that runs."""
