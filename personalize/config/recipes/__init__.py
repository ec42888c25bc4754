"""Published settings as functions, one module for each source."""
