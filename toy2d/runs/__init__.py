"""Run folders that survive a crash, their files and records, command lines and statistics."""
