"""What a file's metadata declare of its origin."""
