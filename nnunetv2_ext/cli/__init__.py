"""The commands: one module each, which reads the arguments, makes one call and turns a user error into one line."""
