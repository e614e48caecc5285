"""The console commands; each module adds one subcommand and holds no logic of its own."""
