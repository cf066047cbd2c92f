"""From a path to pixels and evidence."""
