"""The kvferry command.

    main.py         reads the arguments, runs a subcommand, and turns errors into exit statuses
    registered.py   the list of subcommands
    declaration.py  what a subcommand declares: its name, help, options and function
    status.py       the exit statuses
    output.py       text for people, or JSON
    completion.py   scripts by which shells complete the command
    manual.py       the man page, docs/kvferry.1

A subcommand is a module with a COMMAND. The parser, the man page and the completion are made from these declarations.
"""
