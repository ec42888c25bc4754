"""What can be asked: flags, presets, rules and the commands; nothing heavy is imported."""
