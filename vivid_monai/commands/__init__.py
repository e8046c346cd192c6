"""The subcommands of ``vivid``: `add_NAME` adds options; `run_NAME` is what it does, its docstring the help."""
