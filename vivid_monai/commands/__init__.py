"""The subcommands of ``vivid``: each has a function `add_NAME`, which adds its options to its parser."""
