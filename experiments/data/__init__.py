"""From a config's ``data`` section to examples, in memory or as a stream."""
